"""Fetching published weights: from their authors' address, a mirror, or a folder that someone copied.

The weights belong to their authors and do not ship with open-bench; what is published where is one table,
``PUBLISHED``. pooch downloads. A file arrives in a folder ``.fetching-…``, which belongs to its address, and is used
only when it is whole and verified:
against its SHA-256 where that is known; else its length is checked, the first fetch records the SHA-256 in
``fetched.json``, and later ones are checked against that.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from open_bench.errors import near_matches
from open_bench.files import read_json
from open_bench.optimizers import registry
from open_bench.weights import library
from open_bench.weights.format import Theta, Weights, WeightsError, content_hash, save_weights, write

RECORD, STAGE = "fetched.json", ".fetching"
TIMEOUT = 60.0  # seconds without a byte
CHUNK = 1 << 16
MAX_BYTES = 1 << 30  # a server that sends more is not sending weights

Progress = Callable[[str, int, int | None], None]  # (file, bytes so far, bytes in all or None)
Digests = dict[str, dict[str, Any]]  # file → {"bytes", "sha256"}


class File(NamedTuple):
    """A published file; None where its authors do not say."""

    name: str
    sha256: str | None = None
    size: int | None = None  # bytes


@dataclasses.dataclass(frozen=True)
class Published:
    """Weights that lie at a public address.

    Attributes:
        name: what they are called in the library. One file becomes ``NAME.safetensors`` there, several the folder NAME.
        optimizer: whose weights they are.
        base_url: address of the folder; ends in "/".
        files: what lies there.
        license: of the weights.
        environments: what they were trained on, by open-bench's names; empty where it has none for it.
    """

    name: str
    optimizer: str
    base_url: str
    files: tuple[File, ...]
    license: str
    environments: tuple[str, ...] = ()


_OPEN_URL = (
    "https://raw.githubusercontent.com/AlexGoldie/rl-learned-optimization/"
    "b65037bd89c09f31e80c5d49f1d78cc9c6dc43e0/rl_optimizer/pretrained/"
)


def _open(name: str, sha256: str, *environments: str, optimizer: str = "open") -> Published:
    return Published(name, optimizer, _OPEN_URL, (File(f"{name}_OPEN.npy", sha256),), "Apache-2.0", environments)


PUBLISHED: Mapping[str, tuple[Published, ...]] = {
    "velo": (
        Published(
            "velo",
            "velo",
            "https://storage.googleapis.com/gresearch/learned_optimization/pretrained_lopts/"
            "aug12_continue_on_bigger_2xbs_200kstep_bigproblem_v2_5620/",
            (File("params", size=9_282_564), File("config.gin")),
            "Apache-2.0",
        ),
    ),
    "celo": (
        Published(
            "celo",
            "celo",
            "https://raw.githubusercontent.com/amoudgl/celo/66d976116f39da286951f0c5e0a18eee8d1fd66b/"
            "algoperf/submissions/celo/",
            (File("theta.state", "35683c6123069c101d62ec1f8b2e6d70d50a43e67ebe09953b27620a7dcb836b"),),
            "MIT",
        ),
    ),
    "open": (
        _open("ant", "e1901cafe323d1c5619b84e5178b3075c95a7cde920777e2c15e58c812c3e725", "ant"),
        _open("asterix", "55d96c80dca70e4a308352798daec00fc962d7a3faacc24f612e1b437c1893aa", "asterix"),
        _open("breakout", "d7f0876c78736a0e354f8837e2a549dc7f45ff4d01f952ba9d547d8afc6f7926", "breakout"),
        _open("freeway", "97ea3f8f9a6e34523dd50c138a1538b33fbd2b1c3a5ee05a31014460825ea9f0", "freeway"),
        _open("gridworld", "16ebb93a79adbcbfdb3e6019986109ee374764cb9cc8b0ad65f69bdcaedd9bb5", "gridworld/rand_all"),
        # "multi" was trained on several environments; its repository does not say which.
        _open("multi", "9ba2dea70b0b308a365516dab092808b7b9211c70072bca934d83affaee5f60c", optimizer="open-large"),
        _open("spaceinvaders", "42845f4c0b6b460789afffb1788f806e676b27acafa0febf34e86bd63d3e362f", "spaceinvaders"),
    ),
}


# Optimizers that use what was fetched without naming it.
OFFICIAL = tuple(
    weights.optimizer for group in PUBLISHED.values() for weights in group if weights.name == weights.optimizer
)


def ways_to_fetch(optimizer: str) -> dict[str, str]:
    """Name, such as "velo" or "open@breakout", → command that brings it, for all published weights of an optimizer."""
    return {
        used_as(each): f"openbench weights fetch {group}" + (f" {each.name}" if len(all_of) > 1 else "")
        for group, all_of in PUBLISHED.items()
        for each in all_of
        if each.optimizer == optimizer
    }


def used_as(published: Published) -> str:
    """The name of an optimizer with these weights: "open@breakout", "celo"."""
    own = published.optimizer
    return own if published.name == own else f"{own}@{published.name}"


def fetch_weights(
    name: str,
    only: Sequence[str] = (),
    source: str | Path | None = None,
    folder: str | Path | None = None,
    *,
    official: bool = True,
    progress: Progress | None = None,
    published: Mapping[str, tuple[Published, ...]] = PUBLISHED,
) -> list[tuple[Published, Path]]:
    """Bring weights that are published under a name to the library; returns what they are and where they lie.

    What is there already is verified, and nothing is contacted for it if its hash tells what it is. What is damaged is
    replaced.

    Args:
        name: as "open" or "velo".
        only: names of some of them, as "breakout"; by default all.
        source: another address of the folder (http or https), or a local folder.
        folder: where to keep them instead of the library.
        official: False: accept other weights of the same optimizer, whose lengths and hashes differ; neither their
            license nor their environments are known, and what is there already is compared with the source.
        progress: called as bytes arrive.
        published: what is published under which name.

    Raises:
        WeightsError: unknown name, no network, missing file, wrong length or hash, other weights of that name in the
            library. Nothing is retried.
    """
    if source is not None and not str(source).strip():
        raise WeightsError("the source is empty: give an address or a folder, or leave it out")
    chosen = _choose(name, only, published)
    if folder is None:
        for weights in chosen:
            library.check_can_keep(weights.name)
    home = Path(folder) if folder else library.library_dir()
    return [(each, fetch_one(each, home, source, official=official, progress=progress)) for each in chosen]


def _choose(name: str, only: Sequence[str], published: Mapping[str, tuple[Published, ...]]) -> list[Published]:
    """The published weights that are meant; WeightsError with near matches for a name that means none."""
    if name not in published:
        group = next((group for group, all_of in published.items() if name in [each.name for each in all_of]), None)
        hint = near_matches(name, published) if group is None else f" Did you mean {group} {name}?"
        raise WeightsError(f"no published weights '{name}'.{hint} Known: {', '.join(published)}")
    known = {weights.name: weights for weights in published[name]}
    for each in only:
        if each not in known:
            raise WeightsError(
                f"no weights '{each}' are published under {name}.{near_matches(each, known)} Known: {', '.join(known)}"
            )
    return [known[each] for each in dict.fromkeys(only or known)]


def fetch_one(
    published: Published,
    folder: Path,
    source: str | Path | None = None,
    *,
    official: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Bring one published θ to ``folder``; see ``fetch_weights``. Returns the file or folder in it."""
    address = str(published.base_url if source is None else source)
    if not official:
        files = tuple(File(file.name) for file in published.files)
        published = dataclasses.replace(published, files=files, license="", environments=())
    if len(published.files) == 1:
        return _fetch_file(published, folder, address, progress)
    return _fetch_folder(published, folder, address, official, progress)


def _fetch_file(published: Published, folder: Path, address: str, progress: Progress | None) -> Path:
    """Weights in one file: kept as safetensors, which say where they are from."""
    path, (file,) = folder / f"{published.name}.safetensors", published.files
    there = library.held(published.name, folder)
    known = there.metadata.get("sha256") if there is not None and file.sha256 is not None else None
    if there is not None and known is not None:
        if known != file.sha256:
            raise _others(published, folder)
        return library.names_in(folder)[published.name]
    stage, digests = _bring(published, folder, address, None, progress)
    facts: dict[str, Any] = {
        "imported_from": file.name,
        "optimizer": published.optimizer,
        "sha256": digests[file.name]["sha256"],
        "source": address,
    }
    if published.license:
        facts["license"] = published.license
    if published.environments:
        facts["environments"] = {name: {} for name in published.environments}
    try:
        found = library.import_file(stage / file.name, registry.known()[published.optimizer])
        _check_same(there, found.theta, published, folder)
        if there is None or file.sha256 is not None:  # the published ones are known by their hash from now on
            save_weights(path, found.theta, found.metadata | facts | (there.metadata if there is not None else {}))
    finally:
        _remove(stage)
    return path if path.exists() else library.names_in(folder)[published.name]


def _fetch_folder(published: Published, home: Path, address: str, official: bool, progress: Progress | None) -> Path:
    """Weights in several files: kept as they are, beside a record of their hashes."""
    folder, spec = home / published.name, registry.known()[published.optimizer]
    record = _read_record(folder / RECORD, published)
    there = _held_in_files(published, home)
    place = library.names_in(home).get(published.name, folder)
    if there is not None and place == folder and official:
        digests = _verify(published, folder, record)
    else:
        stage, digests = _bring(published, folder, address, None if there is not None else record, progress)
        try:
            if there is not None:
                _check_same(there, library.import_file(stage, spec).theta, published, home)
                return place
            for file in published.files:
                (stage / file.name).replace(folder / file.name)
            if place != folder:
                place.unlink()  # a damaged file, which would come first
        finally:
            _remove(stage)
    if record is None:
        facts = {"source": address, "files": digests} | ({"license": published.license} if published.license else {})
        write(folder / RECORD, (json.dumps(facts, indent=2) + "\n").encode())
    return folder


def _held_in_files(published: Published, home: Path) -> Weights | None:
    """The weights of that name; None where there are none, or files are missing or damaged."""
    folder = home / published.name
    if library.names_in(home).get(published.name) != folder:
        return library.held(published.name, home)
    paths = [folder / file.name for file in published.files]
    if not all(path.is_file() for path in paths):
        return None
    try:
        return library.import_file(folder, registry.known()[published.optimizer])
    except WeightsError:
        if not all(os.access(path, os.R_OK) for path in paths):
            raise
        return None


def _check_same(there: Weights | None, theta: Theta, published: Published, home: Path) -> None:
    """Refuse to replace other weights of that name."""
    if there is not None and there.hash != content_hash(theta):
        raise _others(published, home)


def _others(published: Published, home: Path) -> WeightsError:
    place = library.names_in(home)[published.name]
    return WeightsError(f"{place} holds other weights; remove it, or choose another folder")


def _bring(
    published: Published, folder: Path, address: str, record: Digests | None, progress: Progress | None
) -> tuple[Path, Digests]:
    """Get all files into a stage below ``folder`` and verify them there: (stage, digests).

    What is wrong is removed, what arrived whole stays; no empty folder does.
    """
    stage, base = folder / f"{STAGE}-{hashlib.sha256(os.fsencode(address)).hexdigest()[:8]}", _base(address)
    made = [stage, *(each for each in (folder, *folder.parents) if not each.exists())]
    try:
        _fill(stage, base, published, progress)
        try:
            return stage, _verify(published, stage, record)
        except WeightsError:
            shutil.rmtree(stage)
            raise
    except BaseException:
        for each in made:
            with contextlib.suppress(OSError):  # it is not empty
                each.rmdir()
        raise


def _fill(stage: Path, base: str | Path, published: Published, progress: Progress | None) -> None:
    """Get all files into the stage."""
    try:
        stage.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{stage.parent} cannot be created: {error.strerror or error}") from error
    for file in published.files:
        if not isinstance(base, Path):
            _download(base, file, stage, [other.name for other in published.files], progress)
            continue
        try:
            write(stage / file.name, (base / file.name).read_bytes())
        except OSError as error:
            raise WeightsError(f"{base / file.name} cannot be copied: {error.strerror or error}") from error


def _remove(stage: Path) -> None:
    """Remove a stage, and the folder that it lies in where that was made for it alone."""
    shutil.rmtree(stage)
    with contextlib.suppress(OSError):
        stage.parent.rmdir()


def _base(address: str) -> str | Path:
    """An address that ends in "/", or a local folder; anything else is refused."""
    with contextlib.suppress(OSError, ValueError):  # too long for a path; no address
        if urllib.parse.urlsplit(address).scheme in ("http", "https"):
            return address if address.endswith("/") else address + "/"
        if "://" not in address and Path(address).is_dir():
            return Path(address)
    raise WeightsError(f"{address[:200]} is neither an http(s) address nor a local folder")


# --- verification --------------------------------------------------------------------------------------------------


def _read_record(path: Path, published: Published) -> Digests | None:
    """What the first fetch recorded, or None before it."""
    if not path.is_file():
        return None
    try:
        files = read_json(path)["files"]
        return {
            name: {"bytes": int(files[name]["bytes"]), "sha256": str(files[name]["sha256"])}
            for name in (file.name for file in published.files)
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is damaged; remove it to accept the files beside it as they are") from error


def _verify(published: Published, folder: Path, record: Mapping[str, Any] | None) -> Digests:
    """Check lengths, hashes, and that the optimizer can read it."""
    digests: Digests = {}
    for name, sha256, size in published.files:
        data = (folder / name).read_bytes()
        found = digests[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if size not in (None, len(data)):
            raise WeightsError(f"{folder / name} has {len(data)} bytes and {size} were expected")
        if sha256 not in (None, found["sha256"]):
            raise WeightsError(f"{folder / name} is not the published file: its sha256 is {found['sha256'][:16]}…")
        if record is not None and record[name] != found:
            raise WeightsError(
                f"{folder / name} is not the file of the first fetch: sha256 {found['sha256'][:16]}…, recorded "
                f"{record[name]['sha256'][:16]}…. Remove {name} to fetch it again, or also {RECORD} to accept a new "
                "version"
            )
    library.import_file(
        folder if len(published.files) > 1 else folder / published.files[0].name, registry.known()[published.optimizer]
    )
    return digests


# --- http ----------------------------------------------------------------------------------------------------------


def _download(base: str, file: File, stage: Path, together: list[str], progress: Progress | None) -> None:
    """Get one file into the stage, whole or not at all; WeightsError says in words what went wrong."""
    import pooch
    import requests.exceptions as broken

    url, meter = base + file.name, _Meter(base + file.name, file, progress)
    downloader = pooch.HTTPDownloader(
        progressbar=meter,
        chunk_size=CHUNK,
        timeout=TIMEOUT,
        headers={"User-Agent": "open-bench", "Accept-Encoding": "identity"},
        hooks={"response": [_check_redirect, _check_length]},
    )
    pooch.get_logger().setLevel("ERROR")
    known = {file.name: f"sha256:{file.sha256}" if file.sha256 else None}
    try:
        pooch.Pooch(path=stage, base_url=base, registry=known).fetch(file.name, downloader=downloader)
    except WeightsError:
        raise
    except broken.HTTPError as error:
        raise WeightsError(f"{url} answered {error}; check the address") from error
    except (broken.ChunkedEncodingError, broken.ContentDecodingError) as error:
        raise WeightsError(f"{url} broke off after about {meter.done} bytes; run it again to start afresh") from error
    except broken.RequestException as error:
        where = f"check the network, or give a local folder that holds {' and '.join(together)}"
        raise WeightsError(f"{url} cannot be reached ({error}); {where}") from error
    except ValueError as error:
        if file.sha256 is not None and file.sha256 in str(error):  # pooch's word for another hash
            raise WeightsError(f"{url} is not the published file: {error}") from error
        raise WeightsError(f"{url} answered what makes no sense ({error}); check the address") from error
    except OSError as error:
        raise WeightsError(f"{stage} cannot be written: {error.strerror or error}") from error


def _check_redirect(response: Any, *_: Any, **__: Any) -> None:
    """Redirects lead to http(s) only, and never from https to http."""
    if not response.is_redirect:
        return
    location = response.headers["location"]
    allowed = ("https",) if urllib.parse.urlsplit(response.url).scheme == "https" else ("http", "https")
    try:
        target = urllib.parse.urljoin(response.url, location)
        scheme = urllib.parse.urlsplit(target).scheme
    except ValueError as error:
        raise WeightsError(f"{response.url} redirects to {location[:200]!r}, which is no address") from error
    if scheme not in allowed:
        raise WeightsError(f"{response.url} redirects to {target}, which is not followed")


def _check_length(response: Any, *_: Any, **__: Any) -> None:
    """The length that a server promises is a number."""
    promised = response.headers.get("content-length", "0")
    if not promised.isdecimal():
        raise WeightsError(f"{response.url} answered that it has {promised[:40]!r} bytes; check the address")


class _Meter:
    """What pooch tells of a download: passed on as progress, and stopped when it cannot be the file."""

    total = 0  # bytes; 0: the server does not say

    def __init__(self, url: str, file: File, progress: Progress | None):
        self.done, self._url, self._file, self._progress = 0, url, file, progress

    def update(self, count: int) -> None:
        """``count`` more bytes, rounded up to a whole chunk."""
        size = self._file.size
        if self.total and size not in (None, self.total):
            raise WeightsError(
                f"{self._url} has {self.total} bytes and {size} were expected: another file, or an error page"
            )
        limit = MAX_BYTES if size is None else size
        if self.done > limit:
            raise WeightsError(f"{self._url} sends more than the {limit} bytes expected")
        self.done += count
        if self._progress:
            self._progress(self._file.name, min(self.done, self.total or self.done), self.total or None)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass
