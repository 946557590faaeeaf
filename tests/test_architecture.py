"""The architecture, held by tests: which way imports point, that importing does nothing, what may never appear."""

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "open_bench"

BASE = {"errors", "files"}
# What each part may import; a part is a folder or a module of the package, or a module that stands apart in its folder.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "text": set(),
    "machine": set(),
    "events": set(),
    "plugins": {"errors"},
    "config": {*BASE, "events"},
    "environments": {*BASE, "config", "plugins"},
    "weights.format": BASE,
    "algorithms": {*BASE, "config", "plugins", "environments"},
    "optimizers": {*BASE, "config", "plugins", "algorithms", "weights.format"},  # never told where they run
    "training": {*BASE, "config", "machine", "environments", "algorithms"},  # receives optimizers as values
    "evaluation": {*BASE, "config", "text"},  # reads stored rows
    "weights": {*BASE, "optimizers", "weights.format"},
    "optimizers.resolve": {
        *BASE,
        "config",
        "plugins",
        "algorithms",
        "optimizers",
        "training",
        "weights",
        "weights.format",
    },
    "progress": {"events", "text"},
}
MAY_IMPORT["experiments"] = {*MAY_IMPORT} - {"experiments"}
for study in ("tuning", "meta_training", "generalization"):
    MAY_IMPORT[study] = {*MAY_IMPORT["experiments"], "experiments"}
MAY_IMPORT["reports"] = {
    *BASE,
    "text",
    "config",
    "evaluation",
    "experiments",
    "weights.format",
}  # reads results folders
MAY_IMPORT["reports"] |= {"meta_training", "generalization"}  # how what was stored is asked for
MAY_IMPORT["exchange"] = {*MAY_IMPORT} - {"reports"}
for whole in ("api", "cli"):
    MAY_IMPORT[whole] = {*MAY_IMPORT}
ABOVE = ("experiments", "tuning", "meta_training", "generalization", "exchange", "api", "cli")
# Modules that need what is above their folder.
APART = {
    "open_bench.weights.format": "weights.format",
    "open_bench.optimizers.resolve": "optimizers.resolve",
    "open_bench.optimizers.conformance": "optimizers.resolve",
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imports(name: str, lazy: bool = True) -> Iterator[str]:
    """Full names of what a module imports; with ``lazy`` inside functions too. Never what only type checkers see."""
    waiting: list[ast.AST] = [tree(name)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def own(name: str, lazy: bool = True) -> set[str]:
    """Modules of this package that a module imports."""
    found = set()
    for imported in imports(name, lazy):
        parent = imported.rpartition(".")[0]
        if imported in MODULES:
            found.add(imported)
        elif parent in MODULES:
            found.add(parent)
    return found - {name}


def part(name: str) -> str:
    """The part of the package that a module belongs to; "" for the package itself and its ``__main__``."""
    if name in APART:
        return APART[name]
    return "" if name in ("open_bench", "open_bench.__main__") else name.split(".")[1]


def test_the_reader_of_imports_sees_them() -> None:
    assert "open_bench.training.lifetime" in own("open_bench.training.mesh")
    assert "open_bench.experiments.session" in own("open_bench.api")
    assert "open_bench.experiments.session" not in own("open_bench.api", lazy=False)
    assert "open_bench.optimizers.registry" in own("open_bench.optimizers.resolve")


@pytest.mark.parametrize("name", [name for name in MODULES if part(name)])
def test_imports_point_one_way(name: str) -> None:
    source = part(name)
    assert source in MAY_IMPORT, f"open_bench/{source} has no place in the order of imports: give it one in MAY_IMPORT"
    for imported in own(name):
        target = part(imported)
        assert target in {"", source, *MAY_IMPORT[source]}, f"{name} imports {imported}"


def test_no_part_is_above_itself() -> None:
    """The table has no cycle, so there is an order of the parts."""
    left = {source: set(targets) for source, targets in MAY_IMPORT.items()}
    while left:
        lowest = {source for source, targets in left.items() if not targets & left.keys()}
        assert lowest, f"these import each other: {sorted(left)}"
        for source in lowest:
            del left[source]


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_the_documented_order_is_the_tables(page: str) -> None:
    """Every part stands in it once, after all that it may import."""
    text = (ROOT / page).read_text(encoding="utf-8")
    order = text[text.index("errors, text, events") : text.index("→ cli")] + "→ cli"
    steps = [re.sub(r" \(.*?\)", "", step).strip().split(", ") for step in order.split("→")]
    place = {name: at for at, names in enumerate(steps) for name in names}
    assert place.keys() == MAY_IMPORT.keys()
    for source, targets in MAY_IMPORT.items():
        if source not in ABOVE:  # those may all below them
            assert not [target for target in targets if place[target] >= place[source]], source


def test_there_are_no_cycles() -> None:
    """Among the imports that importing executes; the package's own ``__init__`` imports nothing at all."""
    graph = {name: own(name, lazy=False) for name in MODULES}
    assert not graph["open_bench"]
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name not in done:
            for imported in graph[name]:
                visit(imported, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def users_of(*packages: str) -> set[str]:
    """Modules that import one of these packages."""
    roots = tuple(f"{package}." for package in packages)
    return {name for name in MODULES if any(f"{imported}.".startswith(roots) for imported in imports(name))}


def test_stored_rows_are_read_without_jax() -> None:
    assert "open_bench.training.lifetime" in users_of("jax")
    readers = {name for name in MODULES if part(name) == "evaluation"}
    assert not readers & users_of("jax", "jaxlib", "flax", "optax", "gymnax")


def test_only_adapters_know_the_environment_suites() -> None:
    assert users_of("gymnax") == {"open_bench.environments.gymnax"}
    assert users_of("brax", "mujoco") == {"open_bench.environments.brax"}
    assert users_of("craftax") == {"open_bench.environments.craftax"}


def test_only_one_module_knows_meshes_and_sharding() -> None:
    assert users_of("jax.sharding", "jax.experimental") == {"open_bench.training.mesh"}
    calls = {
        name
        for name in MODULES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Attribute) and node.attr in {"shard_map", "pmap", "make_mesh"}
    }
    assert calls == {"open_bench.training.mesh"}


def test_only_one_module_knows_ray() -> None:
    assert users_of("ray") == {"open_bench.experiments.remote"}


def test_nothing_is_pickled() -> None:
    assert not users_of("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
    for name in MODULES:
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), name
                assert node.value.value is False, name


# --- importing does nothing -------------------------------------------------------------------------------------------


def python(code: str, *, folder: Path | None = None, **environment: str) -> str:
    """Run ``code`` in a fresh interpreter; its output."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=folder or ROOT,
        env={**clean, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_importing_the_package_is_light() -> None:
    heavy = {"jax", "jaxlib", "numpy", "pandas", "matplotlib", "gymnax", "optax", "flax", "rich", "pydantic"}
    loaded = python("import open_bench, sys; print(*sys.modules)").split()
    assert "open_bench" in loaded
    assert not heavy & set(loaded)


def test_evaluation_loads_no_jax() -> None:
    names = [name for name in MODULES if part(name) == "evaluation"]
    loaded = python(f"import sys, {', '.join(names)}; print(*sys.modules)").split()
    assert set(names) <= set(loaded)
    assert "jax" not in loaded


IMPORT_EVERYTHING = """
import importlib, os, sys

def watch(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        raise RuntimeError("importing does " + event)

sys.addaudithook(watch)
before = dict(os.environ)
for name in {names!r}:
    importlib.import_module(name)
changed = {{key for key in before.keys() | os.environ.keys() if before.get(key) != os.environ.get(key)}}
assert not {{key for key in changed if key.startswith(("JAX", "XLA", "TF_CPP"))}}, changed
import jax
jax.config.update("jax_num_cpu_devices", 3)  # raises when a backend has started
assert len(jax.devices()) == 3
assert jax.config.jax_compilation_cache_dir is None
print("fine")
"""


@pytest.mark.slow
def test_importing_everything_starts_no_backend_and_opens_no_socket(tmp_path: Path) -> None:
    # gymnax itself computes while it is imported, so its adapter is imported by use alone.
    adapter = "open_bench.environments.gymnax"
    assert not [name for name in MODULES if adapter in own(name, lazy=False)]
    names = [name for name in MODULES if name != adapter]
    output = python(IMPORT_EVERYTHING.format(names=names), folder=tmp_path, JAX_PLATFORMS="cpu", HOME=str(tmp_path))
    assert output.endswith("fine\n")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_the_watch_for_sockets_sees_one(tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text("import socket\nsocket.socket()\n")
    with pytest.raises(AssertionError, match=r"importing does socket\.__new__"):
        python(IMPORT_EVERYTHING.format(names=["talks"]), PYTHONPATH=str(tmp_path))


# --- the repository and the wheel -------------------------------------------------------------------------------------


def tracked(*folders: str) -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_machine_or_a_package_index() -> None:
    """Paths of the machine that something was made on, and addresses of package indexes, are nobody else's."""
    forbidden = ["/".join(["", "work", ""]), "index" + "-url", "pypi" + ".org/simple", "files.python" + "hosted.org"]
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {word}" for word in forbidden if word in text]
    assert not found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index",
         "--disable-pip-version-check", "--wheel-dir", str(folder), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    (built,) = folder.glob("open_bench-*.whl")
    return built


def test_the_wheel_holds_the_package_and_what_ships(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    shipped = {path.relative_to(ROOT).as_posix() for path in tracked("configs", "baselines")}
    assert len(shipped) > 10
    assert {f"open_bench/_shipped/{name}" for name in shipped} <= names
    assert {path.relative_to(ROOT).as_posix() for path in tracked("open_bench")} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"open_bench"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_source_archive_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """Whoever builds from it, without git and network, gets what the checkout gives."""

    def build(kind: str, folder: Path) -> Path:
        command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(tmp_path / kind)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return next((tmp_path / kind).iterdir())

    with tarfile.open(build("sdist", ROOT)) as source:
        source.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.glob("open_bench-*")
    assert {"examples", "tests", "CHANGELOG.md", "LICENSE"} <= {path.name for path in folder.iterdir()}
    with zipfile.ZipFile(build("wheel", folder)) as theirs, zipfile.ZipFile(wheel) as ours:
        assert set(theirs.namelist()) == set(ours.namelist())
        differing = [name for name in ours.namelist() if theirs.read(name) != ours.read(name)]
    assert not differing


TRAIN = """
import open_bench
from open_bench import config
from open_bench import files
assert open_bench.__file__.startswith({folder!r}), open_bench.__file__
assert str(files.configs_dir()).startswith({folder!r})
assert str(files.baselines_dir()).startswith({folder!r})
assert "quick" in config.shipped("studies")
settings = {{"num_steps": 8, "update_epochs": 1, "num_minibatches": 2, "hidden": [8]}}
scores = open_bench.train("adam", "cartpole", steps=640, settings=settings)
assert len(scores) == 1
print(open_bench.load_runs().experiments["hyperparameter_origin"].item())
"""


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Unpacked where the checkout is not in sight, it finds its own configs and baselines, and trains."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    output = python(TRAIN.format(folder=str(site)), folder=elsewhere, PYTHONPATH=str(site), JAX_PLATFORMS="cpu",
                    HOME=str(tmp_path))  # fmt: skip
    assert output.split()[-1] in {"published", "tuned"}  # so the baselines were read
    assert list(elsewhere.glob("results/experiments/cartpole*/shard-0000/scores.csv"))
    (entry_points,) = site.glob("*.dist-info/entry_points.txt")
    assert "openbench = open_bench.cli.main:main" in entry_points.read_text()
