"""What reading stored rows may load."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_scores_and_report_never_import_jax_or_pyplot(tmp_path):
    """Also not while they work: rliable and matplotlib are imported late."""
    code = """
import sys
import open_bench.evaluation.bootstrap, open_bench.evaluation.boards, open_bench.files, open_bench.evaluation.metrics
import open_bench.evaluation.baseline_returns, open_bench.evaluation.schema, open_bench.evaluation.style
import open_bench.evaluation.figures, open_bench.evaluation.leaderboard, open_bench.evaluation.tables
heavy = {"matplotlib", "rliable", "scipy", "rich"} & set(sys.modules)
assert not heavy, heavy
sys.path.insert(0, "tests")
from synthetic import make_returns, make_runs
import matplotlib
settings = [name for name in matplotlib.rcParams if name != "backend"]  # looking that one up imports pyplot
before = [matplotlib.rcParams[name] for name in settings]
runs = make_runs({("adam", "a"): [3, 4, 5], ("lion", "a"): [4, 5, 6]}, curves=True)
from open_bench.evaluation.figures import save_figures
files = save_figures(runs, make_returns(a=(0, 5)), "quick", sys.argv[1], resamples=50)
assert len(files) == 5, files
assert [matplotlib.rcParams[name] for name in settings] == before
loaded = {"jax", "jaxlib", "flax", "matplotlib.pyplot"} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
