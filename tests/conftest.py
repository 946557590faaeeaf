"""Tests run on four simulated CPU devices, so that sharding is tested without an accelerator."""

import io
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

# XLA logs an error for every program that comes from the cache; read when JAX is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Most of the tests' time is LLVM's, for programs that run for a moment. XLA's own passes stay; processes that a test
# starts do the same. Tests about numbers to the bit have the fixture ``optimized``.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import pytest
from commands import Answer, OpenBench
from jaxtyping import install_import_hook
from writers import FakeService

# Shapes in annotations are checked in whatever of these packages a test imports, at tracing time.
CHECKED = ["open_bench.algorithms", "open_bench.optimizers.learned", "open_bench.training"]
install_import_hook(CHECKED, "beartype.beartype")

hypothesis.settings.register_profile("busy", deadline=None)  # a busy machine is no fault of the code's
hypothesis.settings.load_profile("busy")
jax.config.update("jax_num_cpu_devices", 4)
# Programs that several tests or processes compile are compiled once; the folder is shared by all workers of a run.
_CACHE = os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"open-bench-tests-{os.getuid()}" / "jax")
)
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.devices()  # now: a test that asks for fewer devices would else leave as many to the tests after it
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)  # as devices.start() has it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules with the most slow tests come first, so that no worker is left alone with one at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def _optimized() -> Iterator[None]:
    """Programs are compiled as users have them."""
    from open_bench.experiments import programs

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    programs.forget()
    yield
    programs.forget()
    jax.config.update("jax_disable_most_optimizations", before)


optimized = pytest.fixture(_optimized, scope="module", name="optimized")
optimized_test = pytest.fixture(_optimized, name="optimized_test")


@pytest.fixture(autouse=True)
def forget_modules_of_the_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test imported from its own folder, the tests after it can't import."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    for name, module in list(sys.modules.items()) if folder else []:
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeService:
    """A stand-in for the package, which is not needed then."""
    service = FakeService()
    monkeypatch.setitem(sys.modules, "wandb", service)
    return service


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with numbers measured on the original implementations."""
    return Path(__file__).parent / "golden"


def exit_code(patch: pytest.MonkeyPatch, arguments: Sequence[object]) -> int:
    """Run the command line in this process; what it changes, ``patch`` puts back."""
    from open_bench.cli import main as cli

    patch.setattr(warnings, "showwarning", warnings.showwarning)
    patch.setattr(sys, "path", list(sys.path))
    patch.setattr(sys, "argv", ["openbench", *map(str, arguments)])
    try:
        cli.answer()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


@pytest.fixture(scope="module")
def openbench_of_a_module() -> OpenBench:
    """``openbench(*arguments)`` in this process, for fixtures that many tests share."""

    def call(*arguments: object) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            code = exit_code(patch, arguments)
        return Answer(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def openbench(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> OpenBench:
    """``openbench(*arguments)`` in this process."""

    def call(*arguments: object) -> Answer:
        capfd.readouterr()
        code = exit_code(monkeypatch, arguments)
        return Answer(code, *capfd.readouterr())

    return call
