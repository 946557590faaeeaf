"""Every test has a library of weights of its own, and none that ship."""

from pathlib import Path

import pytest

from open_bench import files


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights that ship, beside the hyperparameters and returns that do."""
    baselines = tmp_path_factory.mktemp("baselines")
    (baselines / "weights").mkdir()
    for folder in ("hyperparameters", "returns"):
        (baselines / folder).symlink_to(files.baselines_dir() / folder)
    monkeypatch.setattr(files, "baselines_dir", lambda: baselines)
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "library"))
    return baselines / "weights"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """The user's library of weights."""
    return tmp_path / "library"
