"""Fetching VeLO's published weights: from the public bucket, a mirror, or a folder that someone copied.

The weights belong to their authors (Apache-2.0) and do not ship with open-bench. A file arrives in a folder
``.fetching`` inside the destination and moves to its place only when all files are there and verified. The first
fetch records the files' SHA-256 in ``fetched.json``; later ones are checked against it.
"""

import hashlib
import http.client
import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from open_bench.weights.format import WeightsError, write_atomically

VELO_URL = (
    "https://storage.googleapis.com/gresearch/learned_optimization/pretrained_lopts/"
    "aug12_continue_on_bigger_2xbs_200kstep_bigproblem_v2_5620/"
)
VELO_BYTES = 9_282_564  # length of the official file `params`
FILES = ("params", "config.gin")
RECORD, STAGE = "fetched.json", ".fetching"
TIMEOUT = 60.0  # seconds without a byte
CHUNK = 1 << 16
MAX_BYTES = 1 << 30  # a server that sends more is not sending these weights

Progress = Callable[[str, int, int | None], None]  # (file, bytes so far, bytes in all or None)


def fetch_velo(
    destination: str | Path,
    base_url: str = VELO_URL,
    *,
    params_bytes: int | None = VELO_BYTES,
    progress: Progress | None = None,
) -> Path:
    """Bring a VeLO checkpoint (``params`` and ``config.gin``) to a folder; returns the folder.

    A complete folder is verified and nothing is contacted. A download that breaks keeps what arrived when the
    server names the version it is sending (an ETag or a date), and the next call asks for the rest.

    Args:
        destination: folder, created when needed; usable as ``velo@destination``.
        base_url: address of a folder (http or https), or a local folder.
        params_bytes: length that ``params`` must have; None for checkpoints other than the official one.
        progress: called as bytes arrive.

    Raises:
        WeightsError: no network, missing file, wrong size, altered content, no VeLO checkpoint. Nothing is retried.
    """
    destination = Path(destination)
    record = _read_record(destination / RECORD)
    if not all((destination / name).is_file() for name in FILES):
        _bring(destination, str(base_url), record, params_bytes, progress)
    digests = _verify(destination, record, params_bytes)
    if record is None:
        content = {"source": str(base_url), "files": digests}
        write_atomically(destination / RECORD, (json.dumps(content, indent=2) + "\n").encode())
    return destination


def _bring(destination: Path, base_url: str, record: Any, params_bytes: int | None, progress: Progress | None) -> None:
    """Get all files into the stage, verify them there, and move them into place."""
    stage = destination / STAGE
    base = _base(base_url)
    try:
        stage.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{destination} cannot be created: {error.strerror or error}") from error
    for name in FILES:
        size = params_bytes if name == "params" else None
        if isinstance(base, Path):
            _copy(base / name, stage / name)
        elif not (stage / name).is_file():
            part = stage / f"{name}.part"
            _download(urllib.parse.urljoin(base, name), part, size, progress)
            part.replace(stage / name)
    try:
        _verify(stage, record, params_bytes)
    except WeightsError:
        shutil.rmtree(stage)  # resuming from bytes that proved wrong would fail for ever
        raise
    for name in FILES:
        (stage / name).replace(destination / name)
    shutil.rmtree(stage)


def _base(base_url: str) -> str | Path:
    """An address that ends in "/", or a local folder; anything else is refused."""
    scheme = urllib.parse.urlsplit(base_url).scheme
    if scheme in ("http", "https"):
        return base_url if base_url.endswith("/") else base_url + "/"
    if "://" in base_url or not Path(base_url).is_dir():
        raise WeightsError(f"{base_url} is neither an http(s) address nor a local folder")
    return Path(base_url)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise WeightsError(f"{source} cannot be copied: {error.strerror or error}") from error


# --- verification --------------------------------------------------------------------------------------------------


def _read_record(path: Path) -> dict[str, Any] | None:
    """Name → {"bytes", "sha256"} of the first fetch, or None before it."""
    if not path.is_file():
        return None
    try:
        files = json.loads(path.read_text("utf-8"))["files"]
        return {name: {"bytes": int(files[name]["bytes"]), "sha256": str(files[name]["sha256"])} for name in FILES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is damaged; remove it to accept the files beside it as they are") from error


def _verify(folder: Path, record: Any, params_bytes: int | None) -> dict[str, Any]:
    """Check sizes, recorded hashes and that it is a checkpoint; returns name → {"bytes", "sha256"}."""
    from open_bench.optimizers.learned.velo import read_checkpoint

    digests: dict[str, dict[str, Any]] = {}
    for name in FILES:
        data = (folder / name).read_bytes()
        digests[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if name == "params" and params_bytes not in (None, len(data)):
            raise WeightsError(f"{folder / name} has {len(data)} bytes and {params_bytes} were expected")
        if record is not None and record[name] != digests[name]:
            raise WeightsError(
                f"{folder / name} is not the file of the first fetch: sha256 {digests[name]['sha256'][:16]}…, "
                f"recorded {record[name]['sha256'][:16]}…. Remove {name} to fetch it again, or also {RECORD} to accept "
                "a new version"
            )
    try:
        read_checkpoint(folder)
    except ValueError as error:
        raise WeightsError(f"what was fetched is no VeLO checkpoint: {error}") from error
    return digests


# --- http ----------------------------------------------------------------------------------------------------------


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http(s) only, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        allowed = ("https",) if urllib.parse.urlsplit(req.full_url).scheme == "https" else ("http", "https")
        if urllib.parse.urlsplit(newurl).scheme not in allowed:
            raise WeightsError(f"{req.full_url} redirects to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, part: Path, size: int | None, progress: Progress | None) -> None:
    """Get one file into ``part``, continuing what an earlier call left there when the server allows it."""
    version = part.with_suffix(".version")
    have, validator = _left_over(part, version)
    headers = {"User-Agent": "open-bench"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    with _open(urllib.request.Request(url, headers=headers), part, version) as response:
        if response.status != 206:
            have = 0  # the server sends it whole
        elif not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            _forget(part, version)
            raise WeightsError(f"{url}: the server continued at another place; run it again to start afresh")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        if size is not None and total not in (None, size):
            _forget(part, version)
            raise WeightsError(f"{url} has {total} bytes and {size} were expected: another file, or an error page")
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        _remember(version, "" if validator.startswith("W/") else validator)  # weak tags do not promise equal bytes
        _receive(response, url, part, version, have, total, size, progress)


def _left_over(part: Path, version: Path) -> tuple[int, str]:
    """(bytes of an earlier attempt that may be continued, the version they belong to), else (0, "")."""
    validator = version.read_text("utf-8") if version.is_file() else ""
    if not validator or not part.is_file():
        _forget(part, version)
        return 0, ""
    return part.stat().st_size, validator


def _remember(version: Path, validator: str) -> None:
    if validator:
        version.write_text(validator, "utf-8")
    else:
        version.unlink(missing_ok=True)


def _forget(part: Path, version: Path) -> None:
    part.unlink(missing_ok=True)
    version.unlink(missing_ok=True)


def _open(request: urllib.request.Request, part: Path, version: Path) -> Any:
    """The response, or WeightsError in words."""
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            _forget(part, version)
            raise WeightsError(f"{request.full_url}: the rest cannot be had; run it again to start afresh") from error
        hint = "; check the address" if error.code in (403, 404) else ""
        raise WeightsError(f"{request.full_url} answered {error.code} {error.reason}{hint}") from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise WeightsError(
            f"{request.full_url} cannot be reached ({reason}); check the network, or give a local folder that holds "
            f"{' and '.join(FILES)}"
        ) from error


def _receive(
    response: Any, url: str, part: Path, version: Path, have: int, total: int | None, size: int | None, progress: Any
) -> None:
    """Append the body to ``part``; WeightsError when it breaks off or is too long."""
    limit = size if size is not None else MAX_BYTES
    broken: Exception | None = None
    with part.open("ab" if have else "wb") as file:
        while have <= limit:
            try:
                chunk = response.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                broken = error
                break
            if not chunk:
                break
            file.write(chunk)
            have += len(chunk)
            if progress:
                progress(part.stem, have, total)
    if have > limit:
        _forget(part, version)
        raise WeightsError(f"{url} sends more than the {limit} bytes expected")
    if broken is None and total in (None, have):
        return
    kept = "what arrived is kept: run it again to continue" if version.is_file() else "run it again to start afresh"
    if not version.is_file():
        _forget(part, version)
    raise WeightsError(f"{url} broke off after {have} of {total or 'unknown'} bytes; {kept}") from broken
