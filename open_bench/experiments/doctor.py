"""Whether this installation can work: versions, devices, memory, folders; and what to do about what is wrong."""

import importlib.metadata
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import NamedTuple

import jax
from packaging.requirements import Requirement

from open_bench import machine
from open_bench.errors import UserError, installed_with
from open_bench.experiments.store import Store
from open_bench.training.devices import start
from open_bench.weights.library import library_dir

PACKAGE = "open-bench"
OK, NOTE, WRONG = "ok", "note", "wrong"
GIB = 2**30
LEAST_MEMORY, LEAST_DISK = 2 * GIB, 1 * GIB
MUCH_CACHE = 10 * GIB
NO_EXTRA = ("dev", "cuda12", "cuda13")  # for developers; and told with the devices
DEADLOCK = "jaxlib 0.10 deadlocks on a CPU in vmapped lifetimes: pip install 'jax<0.10' 'jaxlib<0.10'"


class Finding(NamedTuple):
    """One thing that was looked at: its ``status`` is ok, note (worth knowing) or wrong; ``advice`` says what to do."""

    name: str
    status: str
    detail: str
    advice: str = ""


def examine(results: Path) -> list[Finding]:
    """Look at everything; ``results`` is the folder that results would go to. Starts JAX, writes nothing that stays."""
    return [*_packages(), *_devices(), *_memory(), _cache(), *_folders(results), *_extras()]


def _packages() -> Iterator[Finding]:
    """Every requirement of the package against what is installed."""
    try:
        declared = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or ()]
    except PackageNotFoundError:
        yield Finding("packages", WRONG, f"{PACKAGE} itself is not installed", "pip install . in its checkout")
        return
    needed = [each for each in declared if each.marker is None]
    broken = [finding for each in needed if (finding := unmet(each, machine.installed_version(each.name)))]
    yield from broken
    shown = ", ".join(f"{name} {machine.installed_version(name)}" for name in (PACKAGE, "jax", "jaxlib", "optax"))
    yield Finding("packages", OK, f"{shown}; {len(needed) - len(broken)} of {len(needed)} requirements are met")


def unmet(requirement: Requirement, version: str) -> Finding | None:
    """What is wrong with an installed version ("absent": with there being none); None when nothing is."""
    if version != "absent" and requirement.specifier.contains(version, prereleases=True):
        return None
    wanted = f"{PACKAGE} needs {requirement.name} {requirement.specifier}".rstrip()
    deadlocks = requirement.name in ("jax", "jaxlib") and version.startswith("0.10.")
    advice = DEADLOCK if deadlocks else f"pip install '{requirement}'"
    return Finding(f"package {requirement.name}", WRONG, f"{version}; {wanted}", advice)


def _devices() -> Iterator[Finding]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX may have started already, with what is told here anyway
            found = start()
    except (RuntimeError, UserError) as error:
        yield Finding("devices", WRONG, f"JAX finds none: {error}", "unset JAX_PLATFORMS, or repair the driver")
        return
    kinds = ", ".join(sorted({device.device_kind for device in found}))
    yield Finding("devices", OK, f"{len(found)} × {found[0].platform} ({kinds}), {machine.available_cores()} cores")
    cards = machine.graphics_cards()
    if cards and found[0].platform == "cpu":
        yield Finding(
            "graphics cards", NOTE, f"{', '.join(cards)}: not used by JAX",
            f"{installed_with('cuda12')} (or cuda13), and unset JAX_PLATFORMS",
        )  # fmt: skip


def _memory() -> Iterator[Finding]:
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield _at_least("memory", there, LEAST_MEMORY, "take fewer devices and small agents (--devices 1)")
    for device in _there():
        limit = (device.memory_stats() or {}).get("bytes_limit")
        if limit is not None:
            yield _at_least(f"memory of {device}", int(limit), LEAST_MEMORY, "take --vmap-size 1")


def _there() -> list[jax.Device]:
    """Devices that JAX finds; none where it cannot start, which is a finding of its own."""
    try:
        return jax.local_devices()
    except RuntimeError:
        return []


def _at_least(name: str, there: int, least: int, advice: str) -> Finding:
    enough = there >= least
    return Finding(name, OK if enough else NOTE, f"{there / GIB:.1f} GiB", "" if enough else advice)


def _cache() -> Finding:
    """The folder of compiled programs."""
    configured = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if not configured:
        return Finding(
            "compiled programs", NOTE, "are not kept: every run compiles anew", "unset JAX_COMPILATION_CACHE_DIR"
        )
    folder = Path(configured)
    problem = unwritable(folder)
    if problem:
        return Finding(
            "compiled programs", WRONG, f"{folder}: {problem}", "set JAX_COMPILATION_CACHE_DIR to a folder of yours"
        )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    status, advice = (NOTE, "it may be removed at any time") if size > MUCH_CACHE else (OK, "")
    return Finding("compiled programs", status, f"{folder}: {size / 2**20:,.0f} MiB", advice)


def _folders(results: Path) -> Iterator[Finding]:
    try:
        Store(results).check_writable()
        problem = unwritable(results)
    except UserError as error:
        problem = str(error)
    if problem:
        yield Finding("results", WRONG, f"{results}: {problem}", "name another --results folder")
    else:
        free = shutil.disk_usage(_existing(results)).free
        yield _at_least("results", free, LEAST_DISK, "make room")._replace(
            detail=f"{results} can be written, {free / GIB:.1f} GiB free"
        )
    library = library_dir()
    problem = unwritable(library)
    advice = "set OPEN_BENCH_WEIGHTS to a folder of yours" if problem else ""
    yield Finding(
        "weights", WRONG if problem else OK, f"{library}{': ' + problem if problem else ' can be written'}", advice
    )


def _existing(path: Path) -> Path:
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def unwritable(folder: Path) -> str:
    """Why nothing can be written to a folder, or made where it does not exist; "" where it can."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return ""
    except (OSError, StopIteration) as error:
        return getattr(error, "strerror", None) or str(error)


def _extras() -> Iterator[Finding]:
    """Optional packages, by the extra that brings them."""
    try:
        declared = importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
        requirements = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or ()]
    except PackageNotFoundError:
        return
    for extra in sorted({*declared} - {*NO_EXTRA}):
        packages = [each for each in requirements if each.marker and each.marker.evaluate({"extra": extra})]
        problems = [found for each in packages if (found := unmet(each, machine.installed_version(each.name)))]
        if not problems:
            shown = ", ".join(f"{each.name} {machine.installed_version(each.name)}" for each in packages)
            yield Finding(f"extra {extra}", OK, shown)
        else:
            advice = f"{installed_with(extra)}, where you need it"
            yield Finding(f"extra {extra}", NOTE, "is not installed", advice)
