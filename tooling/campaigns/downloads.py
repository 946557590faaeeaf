"""``openbench weights fetch`` against a server on loopback that misbehaves."""

import contextlib
import dataclasses
import hashlib
import http.server
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np

from open_bench.errors import UserError
from open_bench.weights import fetch
from open_bench.weights.fetch import PUBLISHED, File, Published, fetch_one
from open_bench.weights.format import load_weights
from tooling.campaigns import ROOT

STALL, MOST_BYTES = 0.3, 4 << 20  # in place of a minute and a gigabyte: a campaign has hundreds of downloads
Answer = Callable[["_Handler", bytes], None]


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the server's ``behaviors`` say, by file; what has none is served well."""

    server: "_Server"

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        answer = self.server.behaviors.get(name, BEHAVIORS["well"])
        with contextlib.suppress(ConnectionError, TimeoutError):  # the client had enough
            answer(self, self.server.content.get(name, b""))
        self.close_connection = True

    def begin(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    content: dict[str, bytes]
    behaviors: dict[str, Answer]


def _well(handler: _Handler, body: bytes) -> None:
    handler.begin(Content_Length=len(body))
    handler.wfile.write(body)


def _stalls(handler: _Handler, body: bytes) -> None:
    handler.begin(Content_Length=len(body))
    handler.wfile.write(body[: len(body) // 2])
    time.sleep(4 * STALL)


def _says_nothing(handler: _Handler, body: bytes) -> None:
    time.sleep(4 * STALL)


def _truncates(handler: _Handler, body: bytes) -> None:
    handler.begin(Content_Length=len(body))
    handler.wfile.write(body[: len(body) // 3])


def _truncates_unannounced(handler: _Handler, body: bytes) -> None:
    handler.begin()
    handler.wfile.write(body[: len(body) // 3])


def _says_less(handler: _Handler, body: bytes) -> None:
    handler.begin(Content_Length=len(body) // 2)
    handler.wfile.write(body)


def _says_nonsense(handler: _Handler, body: bytes) -> None:
    handler.begin(Content_Length="many")
    handler.wfile.write(body)


def _serves_a_page(handler: _Handler, body: bytes) -> None:
    page = b"<html>Sign in to this network</html>"
    handler.begin(Content_Length=len(page), Content_Type="text/html")
    handler.wfile.write(page)


def _flips_a_bit(handler: _Handler, body: bytes) -> None:
    middle = len(body) // 2
    _well(handler, body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :])


def _never_ends(handler: _Handler, body: bytes) -> None:
    handler.begin()
    for _ in range(2 * MOST_BYTES >> 16):
        handler.wfile.write(bytes(1 << 16))


def _says_too_much(handler: _Handler, body: bytes) -> None:
    handler.begin(Content_Length=1 << 50)
    handler.wfile.write(body)


def _redirects_for_ever(handler: _Handler, body: bytes) -> None:
    handler.begin(302, Location=handler.path)


def _redirects_to_a_file(handler: _Handler, body: bytes) -> None:
    handler.begin(302, Location="file:///etc/passwd")


def _redirects_nowhere(handler: _Handler, body: bytes) -> None:
    handler.begin(302)


def _fails(handler: _Handler, body: bytes) -> None:
    handler.begin(503, Content_Length=0)


def _is_gone(handler: _Handler, body: bytes) -> None:
    handler.begin(404, Content_Length=0)


def _speaks_no_http(handler: _Handler, body: bytes) -> None:
    handler.wfile.write(b"\0\xff hello\r\n\r\n" + body[:100])


def _breaks_chunks(handler: _Handler, body: bytes) -> None:
    handler.begin(Transfer_Encoding="chunked")
    handler.wfile.write(b"10\r\n" + body[:16] + b"\r\nzz\r\n" + body[16:32])


def _claims_gzip(handler: _Handler, body: bytes) -> None:
    handler.begin(Content_Encoding="gzip", Content_Length=len(body))
    handler.wfile.write(body)


def _has_endless_headers(handler: _Handler, body: bytes) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 5000 + b"\r\n")


BEHAVIORS: dict[str, Answer] = {
    each.__name__.lstrip("_").replace("_", " "): each
    for each in (
        _well, _stalls, _says_nothing, _truncates, _truncates_unannounced, _says_less, _says_nonsense, _serves_a_page,
        _flips_a_bit, _never_ends, _says_too_much, _redirects_for_ever, _redirects_to_a_file, _redirects_nowhere,
        _fails, _is_gone, _speaks_no_http, _breaks_chunks, _claims_gzip, _has_endless_headers,
    )
}  # fmt: skip


class Downloads:
    """Weights in one file and in two, from a server that misbehaves in one way for each file."""

    def __init__(self, folder: Path):
        self._folder = folder
        checkpoint = ROOT / "tests" / "golden" / "velo_small_checkpoint"
        np.save(folder / "x.npy", np.linspace(-1, 1, 1211, dtype=np.float32))
        content = {name: (checkpoint / name).read_bytes() for name in ("params", "config.gin")}
        self._content = {**content, "x.npy": (folder / "x.npy").read_bytes()}
        file = lambda name: File(name, hashlib.sha256(self._content[name]).hexdigest(), len(self._content[name]))
        self._published = (
            dataclasses.replace(PUBLISHED["velo"][0], files=(file("params"), file("config.gin"))),
            Published("x", "open", "http://localhost/", (file("x.npy")._replace(size=None),), "MIT"),
        )
        fetch.TIMEOUT, fetch.MAX_BYTES = STALL, MOST_BYTES
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.content = self._content
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __call__(self, dice: Random) -> None:
        place = self._folder / "library"
        published = dice.choice(self._published)
        kinds = {file.name: dice.choice(([*BEHAVIORS], ["well"])[dice.random() < 0.3]) for file in published.files}
        self._server.behaviors = {name: BEHAVIORS[kind] for name, kind in kinds.items()}
        try:
            self._fetch(published, place)
        except UserError:
            assert not (place / "x.safetensors").exists() and not (place / "velo" / "params").exists(), kinds
            raise
        finally:
            self._server.behaviors = {}
            self._fetch(published, place)  # a server that serves well mends all
            shutil.rmtree(place)

    def _fetch(self, published: Published, place: Path) -> None:
        """Fetch; what is then there must be what is published."""
        path = fetch_one(published, place, f"http://127.0.0.1:{self._server.server_port}/a/")
        if path.is_dir():
            there = {file.name: (path / file.name).read_bytes() for file in published.files}
            assert there == {name: self._content[name] for name in there}, "accepted other content"
        else:
            facts = load_weights(path).metadata
            assert facts["sha256"] == published.files[0].sha256, "accepted other content"
        assert not list(place.rglob(".fetching")), "a stage is left"
