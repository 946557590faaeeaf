"""Where the files that ship are found: ``configs/`` and ``baselines/``, installed or in a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _find(name: str) -> Path:
    """The folder inside the installed package (put there by the wheel), else beside it in the checkout."""
    installed = _PACKAGE / "_shipped" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def configs_dir() -> Path:
    """Folder with ``environments/``, ``studies/`` and ``meta/``."""
    return _find("configs")


def baselines_dir() -> Path:
    """Folder with tuned hyperparameters, reference and random returns, and weights."""
    return _find("baselines")
