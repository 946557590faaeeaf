"""Packages that load at their first use."""

import subprocess
import sys
from pathlib import Path

import pytest

from open_bench.environments.deferred import deferred


def test_a_module_is_loaded_at_its_first_use_and_others_get_it_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "drawing_kit").mkdir()
    (tmp_path / "drawing_kit" / "__init__.py").write_text("")
    (tmp_path / "drawing_kit" / "pens.py").write_text("INK = 'blue'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with deferred("drawing_kit.pens", "json"):
        import json

        import drawing_kit.pens as mine  # type: ignore[import-not-found]

        assert json is sys.modules["json"] and json.loads("1") == 1  # was loaded before
    assert "drawing_kit.pens" not in sys.modules
    assert mine.INK == "blue"
    import drawing_kit.pens as theirs

    assert theirs is sys.modules["drawing_kit.pens"] and theirs is not mine
    with pytest.raises(AttributeError, match="PENCIL"):
        print(mine.PENCIL)
    for name in ("drawing_kit.pens", "drawing_kit"):
        monkeypatch.delitem(sys.modules, name)


def test_what_is_not_installed_is_missed_when_it_is_used() -> None:
    with deferred("no_such_kit"):
        import no_such_kit  # type: ignore[import-not-found]
    assert "no_such_kit" not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="no_such_kit"):
        no_such_kit.draw()


def test_gymnax_comes_without_what_it_draws_with() -> None:
    code = """if True:
        import sys
        import open_bench.environments.gymnax
        from gymnax.environments.misc import pong
        assert not {"seaborn", "scipy.stats", "matplotlib.pyplot"} & sys.modules.keys()
        print(pong.sns.color_palette("pastel")[0], pong.plt.figure.__name__)
    """
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.split(")")[-1].strip() == "figure"
