"""Tests run on four simulated CPU devices, so that sharding is tested without an accelerator."""

import os
import sys
import tempfile
import warnings
from pathlib import Path

# XLA logs an error for every program that comes from the cache; read when JAX is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import pytest
from commands import Answer, OpenBench
from jaxtyping import install_import_hook

# Shapes in annotations are checked in whatever of these packages a test imports, at tracing time.
CHECKED = ["open_bench.algorithms", "open_bench.optimizers.learned", "open_bench.training"]
install_import_hook(CHECKED, "beartype.beartype")

jax.config.update("jax_num_cpu_devices", 4)
# Programs that several tests or processes compile are compiled once; the folder is shared by all workers of a run.
_CACHE = os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"open-bench-tests-{os.getuid()}" / "jax")
)
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.devices()  # now: a test that asks for fewer devices would else leave as many to the tests after it
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)  # as devices.start() has it


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with numbers measured on the original implementations."""
    return Path(__file__).parent / "golden"


@pytest.fixture
def openbench(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> OpenBench:
    """``openbench(*arguments)`` in this process."""
    from open_bench.cli import main as cli

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # what main changes is put back
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "argv", ["openbench", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        return Answer(code, *capfd.readouterr())

    return call
