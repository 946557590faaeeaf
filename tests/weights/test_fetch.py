"""Fetching published weights, from a server on loopback: whole and verified, or not at all and explained."""

import dataclasses
import hashlib
import http.server
import json
import os
import shutil
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import serialization

from open_bench.environments.registry import load_environment
from open_bench.optimizers import registry
from open_bench.optimizers.learned import velo
from open_bench.optimizers.resolve import resolve
from open_bench.weights import library
from open_bench.weights.fetch import (
    PUBLISHED,
    File,
    Published,
    _check_length,
    _check_redirect,
    fetch_one,
    fetch_weights,
    used_as,
    ways_to_fetch,
)
from open_bench.weights.format import WeightsError, load_weights, save_weights

CHECKPOINT = Path(__file__).parents[1] / "golden" / "velo_small_checkpoint"
SMALL_BYTES = (CHECKPOINT / "params").stat().st_size
VELO = dataclasses.replace(PUBLISHED["velo"][0], files=(File("params", size=SMALL_BYTES), File("config.gin")))


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``content`` and misbehaves as its class attributes say."""

    content: dict
    cut, advertise, redirect, length = None, True, None, None

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        self.log.append(name)
        if self.redirect:
            self.send_response(302)
            self.send_header("Location", self.redirect)
            self.end_headers()
            return
        if name not in self.content:
            self.send_error(404)
            return
        body = self.content[name]
        self.send_response(200)
        if self.advertise:
            self.send_header("Content-Length", self.length or str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.cut if name == "params" else None])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """(address, handler class, names asked for) of a server on loopback."""
    content = {name: (CHECKPOINT / name).read_bytes() for name in ("params", "config.gin")}
    handler = type("Handler", (Server,), {"content": content, "log": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/velo", handler, handler.log
        running.shutdown()
        thread.join()


def fetch(folder, url, published=VELO, **options):
    return fetch_one(published, folder, url, **options)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


COMPLETE = ["velo/config.gin", "velo/fetched.json", "velo/params"]


def test_fetch_and_verify(server, tmp_path):
    url, handler, log = server
    seen = []
    assert fetch(tmp_path, url, progress=lambda *x: seen.append(x)) == tmp_path / "velo"
    assert files(tmp_path) == COMPLETE
    assert ("params", SMALL_BYTES, SMALL_BYTES) in seen
    record = json.loads((tmp_path / "velo" / "fetched.json").read_text())
    assert record["files"]["params"]["sha256"] == hashlib.sha256(handler.content["params"]).hexdigest()
    assert library.import_file(tmp_path / "velo", registry.known()["velo"]).theta
    requests = len(log)
    fetch(tmp_path, url)  # complete: verified, nothing is contacted
    assert len(log) == requests == 2


@pytest.mark.parametrize("advertise", [True, False])
def test_a_broken_download_is_never_accepted(server, tmp_path, advertise):
    url, handler, _ = server
    handler.cut, handler.advertise = 1000, advertise
    with pytest.raises(WeightsError, match="broke off .*start afresh" if advertise else "has 1000 bytes and"):
        fetch(tmp_path, url)
    assert files(tmp_path) == []
    handler.cut = None
    fetch(tmp_path, url)
    assert files(tmp_path) == COMPLETE
    assert (tmp_path / "velo" / "params").read_bytes() == handler.content["params"]


def test_wrong_content_is_refused_and_removed(server, tmp_path):
    url, handler, _ = server
    whole = handler.content["params"]
    for content, options, message in [
        (whole + b"x", {}, f"has {SMALL_BYTES + 1} bytes and {SMALL_BYTES} were expected"),
        (b"<html>sorry</html>", {}, "18 bytes"),
        (b"<html>sorry</html>", {"official": False}, "is no flax msgpack|not a flax msgpack"),
        (whole, {"published": PUBLISHED["velo"][0]}, "9282564 were expected"),
    ]:
        handler.content["params"] = content
        with pytest.raises(WeightsError, match=message):
            fetch(tmp_path, url, **options)
        assert files(tmp_path) == []
    handler.content["params"], handler.advertise = whole + b"x" * 200_000, False
    with pytest.raises(WeightsError, match="more than"):
        fetch(tmp_path, url)
    assert files(tmp_path) == []


def test_hashes_of_the_first_fetch_hold(server, tmp_path):
    url, handler, _ = server
    params = fetch(tmp_path, url) / "params"
    original = params.read_bytes()
    altered = original[:-4] + bytes([original[-4] ^ 1]) + original[-3:]
    params.write_bytes(altered)
    with pytest.raises(WeightsError, match="not the file of the first fetch"):
        fetch(tmp_path, url)
    params.unlink()
    handler.content["params"] = altered
    with pytest.raises(WeightsError, match="not the file of the first fetch"):
        fetch(tmp_path, url)
    assert not params.exists()
    handler.content["params"] = original
    fetch(tmp_path, url)
    assert files(tmp_path) == COMPLETE
    (tmp_path / "velo" / "fetched.json").write_text("{}")
    with pytest.raises(WeightsError, match="damaged"):
        fetch(tmp_path, url)


def test_what_one_address_sent_does_not_count_for_another(server, tmp_path):
    """A mirror that broke off after an altered file of the right length leaves nothing for the official address."""
    url, handler, log = server
    original, config = handler.content["params"], handler.content.pop("config.gin")
    handler.content["params"] = original[:-4] + bytes([original[-4] ^ 1]) + original[-3:]
    with pytest.raises(WeightsError, match="answered 404"):
        fetch(tmp_path, url.replace("/velo", "/mirror"))
    handler.content |= {"params": original, "config.gin": config}
    fetch(tmp_path, url)
    assert log == ["params", "config.gin", "params", "config.gin"]
    assert (tmp_path / "velo" / "params").read_bytes() == original
    assert json.loads((tmp_path / "velo" / "fetched.json").read_text())["license"] == "Apache-2.0"


def test_what_the_server_may_say(server, tmp_path):
    url, handler, log = server
    del handler.content["config.gin"]
    with pytest.raises(WeightsError, match=r"config.gin answered 404 .*check the address"):
        fetch(tmp_path, url)
    handler.content["config.gin"] = b""
    fetch(tmp_path, url)
    assert log == ["params", "config.gin", "config.gin"]  # params had arrived
    for target in ("ftp://127.0.0.1/params", "file:///etc/passwd"):
        handler.redirect = target
        with pytest.raises(WeightsError, match=f"redirects to {target}, which is not followed"):
            fetch(tmp_path / "other", url)


def test_redirects_within_http_are_followed(server, tmp_path):
    _, handler, _ = server

    class Moved(Server):
        content, log = handler.content, []

        def do_GET(self):
            self.redirect = None if "/new/" in self.path else f"/new/{self.path.rsplit('/', 1)[-1]}"
            super().do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Moved) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        fetch(tmp_path, f"http://127.0.0.1:{running.server_port}/old/")
        running.shutdown()
    assert files(tmp_path) == COMPLETE


@pytest.mark.parametrize(
    ("source", "target", "followed"),
    [
        ("https://a/x", "https://b/x", True),
        ("https://a/x", "/y", True),
        ("https://a/x", "//b/y", True),
        ("http://a/x", "https://b/x", True),
        ("http://a/x", "http://b/x", True),
        ("https://a/x", "http://a/x", False),
        ("https://a/x", "file:///etc/passwd", False),
        ("http://a/x", "ftp://a/x", False),
    ],
)
def test_no_redirect_leaves_https(source, target, followed):
    @dataclasses.dataclass
    class Response:
        url: str
        headers: dict
        is_redirect: bool = True

    try:
        _check_redirect(Response(source, {"location": target}))
    except WeightsError:
        assert not followed
    else:
        assert followed


def test_no_network(tmp_path):
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as closed:
        port = closed.server_port
    with pytest.raises(WeightsError, match=r"cannot be reached .*check the network, or give a local folder"):
        fetch(tmp_path, f"http://127.0.0.1:{port}/")


def test_a_local_folder(tmp_path):
    fetch(tmp_path / "a", str(CHECKPOINT))
    assert files(tmp_path / "a") == COMPLETE
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="cannot be copied"):
        fetch(tmp_path / "b", str(tmp_path / "empty"))
    unusable = ("http://[bad", "x" * 5000, "/" + "x" * 5000)
    for refused in ("ftp://host/x", "file:///tmp", str(tmp_path / "absent"), "gs://bucket/x", *unusable):
        with pytest.raises(WeightsError, match="neither") as error:
            fetch(tmp_path / "c", refused)
        assert len(str(error.value)) < 300


def test_a_folder_whose_name_is_no_text(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/d\xff")
    shutil.copytree(CHECKPOINT, folder)
    fetch(tmp_path / "library", folder)
    assert files(tmp_path / "library") == COMPLETE


@pytest.mark.parametrize("existing", [True, False])
def test_what_fails_leaves_no_empty_folder(server, tmp_path, single, existing):
    url, handler, _ = server
    home = tmp_path / "a" / "library"
    if existing:
        home.mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    del handler.content["params"]
    for published in (VELO, single[0]):
        for source in (url, str(tmp_path / "empty")):
            with pytest.raises(WeightsError, match=r"answered 404|cannot be copied"):
                fetch(home, source, published)
    handler.content["params"] = b"no checkpoint"
    with pytest.raises(WeightsError, match="13 bytes"):
        fetch(home, url)
    assert list((tmp_path / "a").rglob("*")) == ([home] if existing else [])
    assert (tmp_path / "a").exists() == existing


def test_an_answer_that_makes_no_sense(server, tmp_path):
    url, handler, _ = server
    handler.length = "many"
    with pytest.raises(WeightsError, match=r"params answered that it has 'many' bytes; check the address"):
        fetch(tmp_path, url)
    handler.length, handler.redirect = None, "http://[bad"
    with pytest.raises(WeightsError, match=r"params redirects to 'http://\[bad', which is no address"):
        fetch(tmp_path, url)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("promised", ["-5", "1.5", "ten", ""])
def test_a_length_is_a_number(promised):
    @dataclasses.dataclass
    class Response:
        headers: dict
        url: str = "http://a/x"

    with pytest.raises(WeightsError, match="bytes"):
        _check_length(Response({"content-length": promised}))
    _check_length(Response({"content-length": "12"}))
    _check_length(Response({}))


# --- other weights than the published ones ---------------------------------------------------------------------------


@pytest.fixture
def other_velo(tmp_path):
    """A folder with another θ of VeLO, which is read as well."""
    folder = tmp_path / "other-velo"
    shutil.copytree(CHECKPOINT, folder)
    content = serialization.msgpack_restore((folder / "params").read_bytes())
    content["params"] = jax.tree.map(lambda leaf: leaf + np.float32(1), content["params"])
    (folder / "params").write_bytes(serialization.msgpack_serialize(content))
    return folder


def test_other_files_are_compared_with_what_is_there(tmp_path, other_velo):
    fetch(tmp_path, str(CHECKPOINT), official=False)
    fetch(tmp_path, str(CHECKPOINT), official=False)
    assert sorted(json.loads((tmp_path / "velo" / "fetched.json").read_text())) == ["files", "source"]  # no license
    before = (tmp_path / "velo" / "params").read_bytes()
    with pytest.raises(WeightsError, match="velo holds other weights; remove it"):
        fetch(tmp_path, str(other_velo), official=False)
    assert (tmp_path / "velo" / "params").read_bytes() == before
    assert files(tmp_path / "velo") == ["config.gin", "fetched.json", "params"]
    with pytest.raises(WeightsError, match="cannot be copied"):
        fetch(tmp_path, str(tmp_path), official=False)  # which has not been looked at, else


def test_other_weights_in_one_file(tmp_path, single):
    published, file = single
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / file.name, np.zeros(1211, np.float32))
    path = fetch(tmp_path / "library", str(other), published, official=False)
    metadata = load_weights(path).metadata
    assert set(metadata) == {"imported_from", "optimizer", "sha256", "source"}  # neither license nor environments
    assert fetch(tmp_path / "library", str(other), published, official=False) == path
    for options in ({}, {"official": False}):
        with pytest.raises(WeightsError, match=r"toy.safetensors holds other weights; remove it"):
            fetch(tmp_path / "library", str(file.parent), published, **options)
    assert load_weights(path).metadata == metadata


# --- what is there already -------------------------------------------------------------------------------------------


def test_damaged_weights_are_fetched_again(tmp_path, single, other_velo):
    published, file = single
    path = fetch(tmp_path / "library", str(file.parent), published)
    whole = path.read_bytes()
    path.write_bytes(whole[:700])
    assert fetch(tmp_path / "library", str(file.parent), published) == path
    assert path.read_bytes() == whole
    params = fetch(tmp_path / "library", str(CHECKPOINT)) / "params"
    params.write_bytes(params.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="not the file of the first fetch"):
        fetch(tmp_path / "library", str(other_velo))
    fetch(tmp_path / "library", str(CHECKPOINT))
    assert params.read_bytes() == (CHECKPOINT / "params").read_bytes()
    shutil.rmtree(params.parent)
    (tmp_path / "library" / "velo.safetensors").write_bytes(whole[:700])
    assert fetch(tmp_path / "library", str(CHECKPOINT)) == params.parent
    assert files(tmp_path / "library") == ["toy.safetensors", *COMPLETE]


def test_what_was_imported_by_hand_is_there(tmp_path, single, monkeypatch, other_velo):
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "library"))
    published, file = single
    path, _ = library.import_named(file, "open", "toy")
    assert fetch(tmp_path / "library", str(file.parent), published) == path
    found = load_weights(path).metadata
    assert (found["license"], found["sha256"], found["environments"]) == (
        "MIT",
        published.files[0].sha256,
        {"breakout": {}},
    )
    path.unlink()
    np.save(path.with_suffix(".npy"), np.zeros(1211, np.float32))
    with pytest.raises(WeightsError, match=r"toy.npy holds other weights"):
        fetch(tmp_path / "library", str(file.parent), published)
    path, _ = library.import_named(CHECKPOINT, "velo")
    assert fetch(tmp_path / "library", str(CHECKPOINT)) == path
    with pytest.raises(WeightsError, match=r"velo.safetensors holds other weights"):
        fetch(tmp_path / "library", str(other_velo))
    assert files(tmp_path / "library") == ["toy.npy", "velo.safetensors"]
    assert not (tmp_path / "library" / "velo").exists()


# --- one file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def single(tmp_path):
    """A published vector of OPEN, and the file that holds it."""
    (tmp_path / "source").mkdir()
    file = tmp_path / "source" / "toy_OPEN.npy"
    np.save(file, np.linspace(-1, 1, 1211, dtype=np.float32))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Published("toy", "open", "https://nowhere/", (File(file.name, digest),), "MIT", ("breakout",)), file


def test_a_single_file_is_kept_as_safetensors_that_say_where_it_is_from(server, tmp_path, single):
    url, handler, log = server
    published, file = single
    handler.content[file.name] = file.read_bytes()
    path = fetch(tmp_path / "library", url, published)
    assert files(tmp_path / "library") == ["toy.safetensors"]
    metadata = load_weights(path).metadata
    assert metadata == {
        "environments": {"breakout": {}}, "imported_from": file.name, "license": "MIT", "optimizer": "open",
        "sha256": published.files[0].sha256, "source": url,
    }  # fmt: skip
    assert fetch(tmp_path / "library", url, published) == path
    assert log == [file.name]
    save_weights(path, {"optimizer": {"a": np.ones(3)}})
    with pytest.raises(WeightsError, match="holds other weights"):
        fetch(tmp_path / "library", url, published)


def test_a_wrong_hash_is_refused(server, tmp_path, single):
    url, handler, _ = server
    published, file = single
    np.save(file, np.zeros(1211, np.float32))
    handler.content[file.name] = file.read_bytes()
    for source in (url, str(file.parent)):
        with pytest.raises(WeightsError, match="not the published file"):
            fetch(tmp_path / "library", source, published)
        assert files(tmp_path / "library") == []
    assert fetch(tmp_path / "library", url, published, official=False).name == "toy.safetensors"


def test_the_table_of_what_is_published():
    assert sorted(PUBLISHED) == ["celo", "open", "velo"]
    entries = [entry for group in PUBLISHED.values() for entry in group]
    assert len({entry.name for entry in entries}) == len(entries) == 9
    for entry in entries:
        library.check_can_keep(entry.name)  # nothing that ships takes the name
        assert entry.base_url.startswith("https://")
        assert entry.base_url.endswith("/")
        assert entry.optimizer in registry.known()
        assert entry.license
        assert all(file.sha256 is None or len(file.sha256) == 64 for file in entry.files)
        for environment in entry.environments:
            load_environment(environment)
    (velo,) = PUBLISHED["velo"]
    assert velo.base_url.startswith("https://storage.googleapis.com/gresearch/learned_optimization/")
    assert velo.files[0] == File("params", size=9_282_564)
    assert all(file.sha256 for name in ("open", "celo") for entry in PUBLISHED[name] for file in entry.files)


def test_how_weights_are_fetched_and_used():
    assert ways_to_fetch("velo") == {"velo": "openbench weights fetch velo"}
    assert ways_to_fetch("celo") == {"celo": "openbench weights fetch celo"}
    assert ways_to_fetch("open-large") == {"open-large@multi": "openbench weights fetch open multi"}
    assert ways_to_fetch("open")["open@breakout"] == "openbench weights fetch open breakout"
    assert ways_to_fetch("adam") == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vela",), r"no published weights 'vela'.*Did you mean .*velo"),
        (("breakout",), r"no published weights 'breakout'\. Did you mean open breakout"),
        (("open", ["breakuot"]), r"no weights 'breakuot' are published under open\. Did you mean breakout"),
        (("celo", ["breakout"]), r"no weights 'breakout' are published under celo\..*Known: celo"),
    ],
)
def test_unknown_names_are_explained(arguments, message):
    with pytest.raises(WeightsError, match=message):
        fetch_weights(*arguments)


@pytest.fixture
def toys(tmp_path, monkeypatch, server):
    """Address and table of stand-ins for OPEN's two sizes and Celo, served on loopback; the library is empty."""
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "library"))
    url, handler, _ = server
    folder = tmp_path / "served"
    folder.mkdir()
    np.save(folder / "toy_OPEN.npy", np.linspace(-1, 1, 1211, dtype=np.float32))
    np.save(folder / "toys_OPEN.npy", np.linspace(-1, 1, 3571, dtype=np.float32))
    shapes = jax.eval_shape(lambda: velo.init_theta(jax.random.key(0), velo.CELO, hidden=2))
    theta = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), shapes)
    (folder / "theta.state").write_bytes(serialization.msgpack_serialize(theta))
    handler.content |= {path.name: path.read_bytes() for path in folder.iterdir()}

    def entry(name, optimizer, file, *environments):
        sha256 = hashlib.sha256(handler.content[file]).hexdigest()
        return Published(name, optimizer, url + "/", (File(file, sha256),), "MIT", environments)

    open_ = entry("toy", "open", "toy_OPEN.npy", "breakout"), entry("toys", "open-large", "toys_OPEN.npy")
    return url, {"open": open_, "celo": (entry("celo", "celo", "theta.state"),)}


def test_what_was_fetched_works_by_name(toys, server):
    _, table = toys
    for name, only in (("open", ["toy"]), ("open", []), ("celo", [])):
        for entry, path in fetch_weights(name, only, published=table):
            found = resolve(used_as(entry))
            assert found.weights.hash == load_weights(path).hash
            assert found.weights.metadata["source"] == entry.base_url
    assert [used_as(entry) for group in table.values() for entry in group] == ["open@toy", "open-large@toys", "celo"]
    assert server[2] == ["toy_OPEN.npy", "toys_OPEN.npy", "theta.state"]  # each once
    listed = {
        each.name: (each.belongs_to, each.trained_on) for each in library.list_weights() if each.place != "shipped"
    }
    assert listed == {"toy": ("open", ("breakout",)), "toys": ("open-large", ()), "celo": ("celo", ())}
    with pytest.raises(WeightsError, match=r"not fit open-feedforward: .*weights of open: use them as open@toy$"):
        resolve("open-feedforward@toy")


def test_a_folder_with_the_published_names(toys, tmp_path):
    _, table = toys
    ((_, path),) = fetch_weights("celo", source=tmp_path / "served", folder=tmp_path / "there", published=table)
    assert path == tmp_path / "there" / "celo.safetensors"
    with pytest.raises(WeightsError, match=r"toy_OPEN.npy cannot be copied: No such file"):
        fetch_weights("open", source=path.parent, published=table)
    assert not (tmp_path / "library" / "toy.safetensors").exists()


@pytest.mark.parametrize("advertise", [True, False])
def test_a_single_file_that_breaks_off_is_not_accepted(toys, server, advertise, tmp_path):
    _, handler, _ = server
    whole, handler.advertise = handler.content["theta.state"], advertise
    handler.content["theta.state"] = whole[:-10]
    with pytest.raises(WeightsError, match="not the published file"):
        fetch_weights("celo", published=toys[1])
    assert files(tmp_path / "library") == []
    handler.content["theta.state"] = whole
    assert fetch_weights("celo", published=toys[1])


def test_a_name_that_ships_is_not_fetched(toys):
    _, table = toys
    with pytest.raises(WeightsError, match="'open' names weights that ship"):
        fetch_weights("open", published={"open": (dataclasses.replace(table["open"][0], name="open"),)})


def test_the_command_line(toys, openbench, tmp_path):
    url, _ = toys
    answer = openbench("weights", "fetch", "celo", "--url", url, "--any-size")
    assert answer.code == 0, answer.err
    assert answer.out.endswith("celo.safetensors: verified, use it as celo\n")
    answer = openbench("weights", "fetch", "open", "breakout", "--url", tmp_path / "served")
    assert (answer.code, "breakout_OPEN.npy cannot be copied" in answer.err) == (2, True)
    (tmp_path / "served" / "toy_OPEN.npy").rename(tmp_path / "served" / "breakout_OPEN.npy")
    answer = openbench("weights", "fetch", "open", "breakout", "--url", tmp_path / "served")
    assert (answer.code, "breakout_OPEN.npy is not the published file" in answer.err) == (2, True)
    assert files(tmp_path / "library") == ["celo.safetensors"]
    for source in ("", " "):
        answer = openbench("weights", "fetch", "celo", "--url", source)
        assert (answer.code, "the source is empty" in answer.err) == (2, True)


@pytest.mark.skipif("OPEN_BENCH_REFERENCE_WEIGHTS" not in os.environ, reason="OPEN_BENCH_REFERENCE_WEIGHTS is not set")
def test_the_published_files_have_the_hashes_of_the_table(tmp_path):
    published = Path(os.environ["OPEN_BENCH_REFERENCE_WEIGHTS"])
    assert len(fetch_weights("open", source=published, folder=tmp_path / "library")) == 7
    shutil.copy(published / "celo_theta.state", tmp_path / "theta.state")
    ((celo, path),) = fetch_weights("celo", source=tmp_path, folder=tmp_path / "library")
    assert load_weights(path).metadata["license"] == celo.license == "MIT"
