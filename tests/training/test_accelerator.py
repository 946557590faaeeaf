"""The accelerator's ladder (benchmarks/accelerator.py): it resumes, ends in time, and stops where memory does."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from click.testing import CliRunner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def accelerator() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield runpy.run_path(str(BENCHMARKS / "accelerator.py"))
    for name in ("throughput", "timed"):
        sys.modules.pop(name, None)


def test_a_ladder_goes_on_and_ends_where_memory_does(accelerator: Any) -> None:
    measured: list[str] = []

    def rung(ladder: str, name: str, fails: str = "") -> Any:
        def measure() -> dict[str, Any]:
            measured.append(name)
            if fails:
                raise jax.errors.JaxRuntimeError(fails)
            return {"env_steps_per_second": 1000}

        return accelerator["Rung"](ladder, name, (), measure)

    rungs = [rung("a", "a1"), rung("a", "a2", "RESOURCE_EXHAUSTED: 9 GiB"), rung("b", "b1"), rung("a", "a3")]
    known: dict[str, Any] = {}
    saved: list[int] = []
    assert accelerator["climb"](iter(rungs), known, 60.0, lambda: saved.append(len(known))) == "complete"
    assert (measured, saved) == (["a1", "a2", "b1"], [1, 2, 3])
    assert known["a2"] == {"error": "does not fit the device's memory"}
    ended = accelerator["climb"](iter([*rungs, rung("c", "c1")]), known, 0.0, lambda: None)
    assert ended == "out of time before c1: run it again to go on"
    assert measured == ["a1", "a2", "b1"]
    with pytest.raises(jax.errors.JaxRuntimeError, match="another reason"):
        accelerator["climb"](iter([rung("d", "d1", "another reason")]), known, 60.0, lambda: None)
    table = accelerator["markdown"](
        {"hardware": "1 × cpu", "packages": {"jax": "1"}, "revision": "abc"},
        known | {"r": {"ratio": 1.5, "low": 1.4, "high": 1.6, "compile_seconds": 2.0, "gib": 0.5}},
    )
    assert "| a1 | 1,000 |  |  |  |" in table
    assert "| r |  | 1.50 [1.40, 1.60] | 2.0 s | 0.50 GiB |" in table


def test_programs_of_later_rungs_are_compiled_with_the_first(accelerator: Any) -> None:
    asked: list[Any] = []

    class Programs:
        def has(self, keys: Any) -> bool:
            return set(keys) <= {key for some in asked for key in some}

        def compile(self, keys: Any, jobs: int) -> None:
            asked.append(keys)

    rungs = [
        accelerator["Rung"](name, name, needs, dict)
        for name, needs in [("known", [("lion", 1)]), ("a", [("adam", 1)]), ("b", [("adam", 1), ("open", 1)]),
                            ("c", [("open", 4)])]
    ]  # fmt: skip
    ahead = accelerator["compiled_ahead"]
    assert [rung.name for rung in ahead(rungs, {"known": {}}, Programs(), 2)] == ["a", "b", "c"]
    assert asked == [[("adam", 1), ("open", 1)], [("open", 4)]]
    asked.clear()
    assert len(list(ahead(rungs, {}, Programs(), 1))) == 4 and not asked


def test_figures_of_another_number_of_compile_jobs_are_not_mixed(accelerator: Any, tmp_path: Path) -> None:
    facts = {**accelerator["provenance"](), "compile_jobs": 10}
    (tmp_path / "measurements.json").write_text(json.dumps({"provenance": facts, "measurements": {}}))
    cached = jax.config.jax_enable_compilation_cache
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(accelerator["main"].callback.__globals__, "start", lambda count: jax.devices()[:count])
            answer = CliRunner().invoke(accelerator["main"], ["--out", str(tmp_path), "--minutes", "0.01"])
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    assert answer.exit_code == 2
    assert "another machine, revision or --compile-jobs" in answer.output


@pytest.mark.slow
def test_figures_are_of_lifetimes(accelerator: Any) -> None:
    programs = accelerator["Programs"]("cartpole", jax.devices()[0])
    programs.compile([("sgd", 1), ("adam", 1)], 2)
    figures = accelerator["throughput"](programs, "sgd", 1, 1)
    assert min(figures["env_steps_per_second"], figures["gib"], figures["compile_seconds"]) > 0
    assert accelerator["ratio"](lambda: 3.0, lambda: 2.0, 3) == {"ratio": 1.5, "low": 1.5, "high": 1.5}
