"""Where a meta-training's history goes: lines and bars, the figure, TensorBoard, Weights & Biases."""

import importlib
import inspect
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from commands import OpenBench
from rich.console import Console
from tiny_meta import TINY
from writers import FakeService, series, written

import open_bench
from open_bench.cli import meta_train as command
from open_bench.config import shipped
from open_bench.errors import UserError
from open_bench.evaluation.style import png
from open_bench.events import Compiled, Ended, Evaluated, Event, Generation, Started, Work, several
from open_bench.experiments.execute import stream
from open_bench.experiments.history import TensorBoard, WeightsAndBiases, scalars
from open_bench.meta_training.figure import history_figure, save_history
from open_bench.meta_training.logging import Figure, Logged
from open_bench.progress import Lines, Tally, picture
from open_bench.weights.format import load_weights

SETTINGS = TINY | {"update_epochs": 1, "hidden": (4,)}


def row(generation: int, **more: Any) -> dict[str, Any]:
    """A line of a history whose numbers tell the generation."""
    return {
        "generation": generation,
        "fitness_mean": 10.0 * generation,
        "fitness_std": 1.5,
        "fitness_best": 10.0 * generation + 3,
        "fitness_worst": 1 / 3 * generation,  # no short decimal: it has to survive the file
        "diverged": 0,
        "unfinished": 0,
        "sigma": 0.3 * 0.99**generation,
        "theta_norm": 0.1 * generation,
        "lifetimes": 8 * generation,
        "env_steps": 800 * generation,
        "seconds": 2.5 * generation,
        **more,
    }


def evaluated(generation: int) -> dict[str, Any]:
    return row(generation, **{"return.cartpole": 100.0 + generation, "adam.cartpole": 200.0})


def store(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "history.csv", index=False)


# --- bars and lines ---------------------------------------------------------------------------------------------------


CARTPOLE = Work("cartpole", "cartpole", 20, 1280, 12)


def test_lines_show_fitness_time_left_and_the_mean_against_adam() -> None:
    console = Console(file=io.StringIO(), width=250, color_system=None)
    told = (
        Started("mine", (CARTPOLE,), generations=30, generations_done=4, parameters=1211),
        Compiled(CARTPOLE, 3.21),
        Generation(row(5), 50.0),
        Generation(row(6, diverged=2, unfinished=1), 7200.0),  # too soon after the one before
        Generation(evaluated(7), 7200.0),
        Generation(row(30), 0.0),
        Ended(),
    )
    watch = Lines(console, clock=lambda: 0.0)
    for event in told:
        watch(event)
    text = [line.partition("] ")[2] for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert text == [
        "mine: 30 generations, θ has 1,211 numbers, going on after generation 4",
        "cartpole: compiled in 3.2 s",
        "generation 5/30: fitness 50 ± 1.5, best 53, about 50 s left",
        "generation 7/30: fitness 70 ± 1.5, best 73; mean θ on cartpole 107 (Adam 200), about 2.0 h left",
        "generation 30/30: fitness 300 ± 1.5, best 303",
    ]


def test_a_bar_shows_the_same_and_keeps_the_latest_evaluation_in_sight() -> None:
    tally = Tally(clock=lambda: 0.0)
    for event in (
        Started("mine", (CARTPOLE,), generations=30, generations_done=4, parameters=1211),
        Compiled(CARTPOLE, 3.0),
        Generation(evaluated(5), 300.0),
        Generation(row(6, diverged=2), 240.0),
        Evaluated(3, 12),
    ):
        tally(event)
    above, below = picture(tally, 250, elapsed=60.0)
    assert above.startswith("mine ")
    assert "generation 6 of 30" in above
    assert above.endswith("4.0 min left")
    expected = "fitness 60 ± 1.5, best 63, 2 diverged; mean θ on cartpole 105 (Adam 200); 3 of 12 lifetimes"
    assert below.strip() == expected


# --- what writers are told --------------------------------------------------------------------------------------------


class Notes:
    """A writer that notes what it is told."""

    name = "notes"

    def __init__(self, there: int = 0, fails_at: int | None = None, refuses: Exception | None = None):
        self._there, self._fails_at, self._refuses = there, fails_at, refuses
        self.rows: list[dict[str, Any]] = []
        self.ended: list[bool] = []

    def begin(self) -> int:
        if self._refuses:
            raise self._refuses
        return self._there

    def write(self, rows: Any) -> None:
        self.rows += rows
        if any(each["generation"] == self._fails_at for each in rows):
            raise OSError(28, "No space left on device")

    def end(self, finished: bool) -> None:
        self.ended.append(finished)


def evolve(writers: Sequence[Any], folder: Path, done: int, until: int, total: int = 9) -> None:
    """What an evolution tells: generations ``done + 1`` to ``until``; a cut one ends with Ctrl-C."""
    watcher = Logged(folder, writers)
    with stream(watcher):
        watcher(Started("custom", generations=total, generations_done=done, parameters=10))
        for generation in range(done + 1, until + 1):
            store(folder, [row(each) for each in range(1, generation + 1)])
            watcher(Generation(row(generation), 1.0))
        if until < total:
            raise KeyboardInterrupt


def test_a_resumed_writer_hears_every_generation_once_in_order(tmp_path: Path) -> None:
    """The process died after generation 4 was stored and before it was told, and 4 are done."""
    store(tmp_path, [row(each) for each in (1, 2, 3, 4)])
    anew, knows_three = Notes(), Notes(there=3)
    evolve([anew, knows_three], tmp_path, done=4, until=9)
    assert [each["generation"] for each in anew.rows] == list(range(1, 10))
    assert [each["generation"] for each in knows_three.rows] == list(range(4, 10))
    assert anew.rows == [row(each) for each in range(1, 10)]  # to the last bit, though it went through a file
    assert anew.ended == knows_three.ended == [True]


def test_a_writer_hears_what_is_stored_of_an_evolution_that_is_cut_or_over(tmp_path: Path) -> None:
    cut, over, nothing = Notes(), Notes(), Notes()
    with pytest.raises(KeyboardInterrupt):
        evolve([nothing], tmp_path, done=0, until=0)
    with pytest.raises(KeyboardInterrupt):
        evolve([cut], tmp_path, done=0, until=2)
    store(tmp_path, [row(each) for each in range(1, 10)])
    evolve([over], tmp_path, done=9, until=9)
    assert (nothing.rows, nothing.ended) == ([], [False])
    assert ([each["generation"] for each in cut.rows], cut.ended) == ([1, 2], [False])
    assert ([each["generation"] for each in over.rows], over.ended) == (list(range(1, 10)), [True])


def test_a_writer_that_fails_is_left_out_with_a_warning(tmp_path: Path) -> None:
    failing, other = Notes(fails_at=3), Notes()
    with pytest.warns(UserWarning, match=r"notes: OSError: .*No space left on device.*training goes on") as caught:
        evolve([failing, other], tmp_path, done=0, until=9)
    assert len(caught) == 1
    assert caught[0].filename.endswith("history.py")  # or the command line would not show it
    assert ([each["generation"] for each in failing.rows], failing.ended) == ([1, 2, 3], [])
    assert ([each["generation"] for each in other.rows], other.ended) == (list(range(1, 10)), [True])


def test_what_fails_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="notes cannot be started: OSError: no connection"):
        evolve([Notes(refuses=OSError("no connection"))], tmp_path, 0, 9)


def test_the_users_watcher_is_told_everything_and_first(tmp_path: Path) -> None:
    told: list[Any] = []
    notes = Notes()
    watcher = several([told.append, Logged(tmp_path, [notes]), lambda event: told.append(len(notes.rows))])
    events: list[Event] = [
        Started("a", generations=9),
        Compiled(CARTPOLE, 2.0),
        Evaluated(1, 2),
        Generation(row(1), 3.0),
    ]
    for event in events:
        watcher(event)
    assert told[::2] == events
    assert told[1::2] == [0, 0, 0, 1]


def test_scalars_are_grouped_and_leave_out_what_is_not_known() -> None:
    found = scalars({**evaluated(2), "return.catch": float("nan"), "fitness_worst": float("nan")}, "generation")
    assert found["fitness/mean"] == 20.0
    assert found["return/cartpole"] == 102.0
    assert found["sigma"] == pytest.approx(0.3 * 0.99**2)
    assert found["env_steps"] == 1600
    assert not {"return/catch", "fitness/worst", "generation"} & set(found)


# --- the figure -------------------------------------------------------------------------------------------------------


def panels(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {axis.get_title(): axis for axis in history_figure(pd.DataFrame(rows), "mine").axes}


def test_the_figure_draws_fitness_evaluations_sigma_and_failures() -> None:
    rows = [row(1), evaluated(2), row(3, diverged=2, unfinished=1), evaluated(4)]
    found = panels(rows)
    assert set(found) == {
        "fitness", "evaluation on cartpole", "σ of the search distribution", "members without fitness"
    }  # fmt: skip
    best, mean = (line.get_ydata() for line in found["fitness"].get_lines())
    np.testing.assert_allclose(mean, [10, 20, 30, 40])
    np.testing.assert_allclose(best, [13, 23, 33, 43])
    band = found["fitness"].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (8.5, 41.5)
    theta, adam = found["evaluation on cartpole"].get_lines()
    assert theta.get_xydata().tolist() == [[2, 102], [4, 104]]
    assert set(adam.get_ydata()) == {200.0}
    np.testing.assert_allclose(
        found["σ of the search distribution"].get_lines()[0].get_ydata(), [r["sigma"] for r in rows]
    )
    assert [bar.get_height() for bar in found["members without fitness"].patches] == [0, 0, 2, 0, 0, 0, 1, 0]
    assert set(panels([row(1)])) == {"fitness", "σ of the search distribution"}


def test_the_figure_copes_with_generations_and_evaluations_that_failed() -> None:
    nan = float("nan")
    lost = row(1, diverged=8, fitness_mean=nan, fitness_std=nan, fitness_best=nan)
    found = panels([lost, row(2, **{"return.cartpole": nan, "adam.cartpole": nan})])
    assert len(found["evaluation on cartpole"].get_lines()) == 1
    assert png(history_figure(pd.DataFrame([lost]), "lost")).startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_same_history_gives_the_same_files(tmp_path: Path) -> None:
    history = pd.DataFrame([row(1), evaluated(2)])
    first, second = (save_history(history, tmp_path / name / "history", "mine") for name in "ab")
    assert [path.name for path in first] == ["history.png", "history.pdf"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[1].read_bytes().startswith(b"%PDF")


def test_the_figure_is_written_at_every_evaluation_and_at_the_end(tmp_path: Path) -> None:
    writer = Figure(tmp_path, "mine")
    assert writer.begin() == 0
    writer.write([row(1)])
    assert not list(tmp_path.iterdir())
    writer.write([evaluated(2)])
    early = (tmp_path / "history.png").read_bytes()
    writer.write([{**row(3), "return.cartpole": float("nan")}])
    assert (tmp_path / "history.png").read_bytes() == early
    writer.end(True)
    assert (tmp_path / "history.png").read_bytes() != early
    assert (tmp_path / "history.pdf").is_file()


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def test_tensorboard_gets_every_column_by_generation(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    writer = TensorBoard(tmp_path, "generation")
    assert writer.begin() == 0
    writer.write([row(1), evaluated(2)])
    assert series(tmp_path, "fitness/mean") == [(1, 10.0), (2, 20.0)]  # at once: nothing waits in a buffer
    writer.write([row(3)])
    writer.end(True)
    assert series(tmp_path, "fitness/mean") == [(1, 10.0), (2, 20.0), (3, 30.0)]
    assert series(tmp_path, "return/cartpole") == [(2, 102.0)]
    assert series(tmp_path, "adam/cartpole") == [(2, 200.0)]
    assert series(tmp_path, "sigma") == [(n, np.float32(0.3 * 0.99**n)) for n in (1, 2, 3)]
    times = [each.wall_time for each in written(tmp_path) if each.summary.value]
    assert times[1] - times[0] == pytest.approx(2.5, abs=1e-3)  # told at once, apart by what the evolution took


def test_tensorboard_begins_anew_when_resumed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    (tmp_path / "notes.txt").write_text("mine")
    for until in (2, 4):
        writer = TensorBoard(tmp_path, "generation")
        writer.begin()
        writer.write([row(each) for each in range(1, until + 1)])  # killed: it never ends
    assert [step for step, _ in series(tmp_path, "fitness/mean")] == [1, 2, 3, 4]
    assert (tmp_path / "notes.txt").read_text() == "mine"


# --- Weights & Biases -------------------------------------------------------------------------------------------------


def test_wandb_gets_every_generation_and_goes_on_with_the_same_run(wandb: FakeService, tmp_path: Path) -> None:
    settings = {"project": "project", "id": "0123456789", "name": "mine", "dir": str(tmp_path),
                "config": {"sigma": 0.3}}  # fmt: skip
    weights = tmp_path / "latest.safetensors"
    weights.touch()

    def writer() -> WeightsAndBiases:
        return WeightsAndBiases("generation", lambda: [weights], **settings)

    with pytest.raises(KeyboardInterrupt):
        evolve([writer()], tmp_path, done=0, until=4)
    store(tmp_path, [row(each) for each in range(1, 6)])  # stored by a process that died before it told
    evolve([writer()], tmp_path, done=5, until=9)
    (run,) = wandb.runs.values()
    assert sorted(run) == list(range(1, 10))
    assert run[5]["fitness/mean"] == 50.0
    assert wandb.calls == [{**settings, "resume": "allow"}] * 2
    assert [each.finished for each in wandb.opened] == [1, 0]
    assert [[each.files for each in run.artifacts] for run in wandb.opened] == [[], [["latest.safetensors"]]]


def test_without_wandb_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] in ("wandb", "tensorboardX"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return importing(name, *arguments, **options)

    importing = importlib.import_module
    for name in [name for name in sys.modules if name.partition(".")[0] in ("wandb", "tensorboardX")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib, "import_module", absent)
    arguments = {"steps": 64, "settings": SETTINGS, "population": 2, "results": tmp_path, "devices": 1}
    with pytest.raises(UserError, match=r'wandb is not installed: pip install "\.\[wandb\]" in a clone'):
        open_bench.meta_train("open", ["cartpole"], wandb="project", **arguments)
    with pytest.raises(UserError, match=r'tensorboardX is not installed: pip install "\.\[tensorboard\]" in a clone'):
        open_bench.meta_train("open", ["cartpole"], tensorboard=True, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_called_wandb_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline runs leave one, and the command line imports from the folder that it is called in."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="wandb is not installed"):
        WeightsAndBiases("generation", project="project")
    sys.modules.pop("wandb", None)


# --- the whole way ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, FakeService]]:
    """A whole meta-training with everything that watches, in two sittings."""
    pytest.importorskip("tensorboardX")
    folder = tmp_path_factory.mktemp("watched")
    service = FakeService()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", service)
        patch.setenv("OPEN_BENCH_WEIGHTS", str(folder / "library"))
        for generations in (3, 5):
            done = open_bench.meta_train(
                "open", ["cartpole"], steps=64 * 16, settings=SETTINGS, population=4, generations=generations,
                sigma=1.0, fitness="mean_return", evaluate_every=2, evaluation_rollouts=1, vmap_size=1, devices=1,
                results=folder, name="mine", tensorboard=True, wandb="project",
            )  # fmt: skip
        yield done, service


@pytest.mark.slow
def test_a_meta_training_is_watched_from_its_first_generation_to_its_last(trained: tuple[Any, FakeService]) -> None:
    done, service = trained
    expected = done.history["fitness_mean"].to_numpy(np.float32)
    found = series(done.folder / "tensorboard", "fitness/mean")
    assert [step for step, _ in found] == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal([value for _, value in found], expected)
    assert [step for step, _ in series(done.folder / "tensorboard", "return/cartpole")] == [2, 3, 4, 5]  # 3: an end
    (run_id,) = service.runs
    assert [service.runs[run_id][step]["fitness/mean"] for step in (1, 2, 3, 4, 5)] == pytest.approx(expected)
    assert service.calls[0]["config"]["population"] == 4
    (artifact,) = service.opened[-1].artifacts
    assert (artifact.name, artifact.files) == ("mine", ["best.safetensors", "latest.safetensors"])
    for name in ("history.png", "history.pdf"):
        assert (done.folder / name).stat().st_size > 5000
    drawn = png(history_figure(pd.read_csv(done.folder / "history.csv"), "mine"))
    assert (done.folder / "history.png").read_bytes() == drawn


def test_the_cost_counts_over_all_sittings(trained: tuple[Any, FakeService]) -> None:
    done, _ = trained
    cost = load_weights(done.path).metadata["cost"]
    counted = {key: cost[key] for key in ("env_steps", "lifetimes", "generations", "devices")}
    assert counted == {"env_steps": 5 * 4 * 64 * 16, "lifetimes": 5 * 4, "generations": 5, "devices": 1}
    assert cost["seconds"] == done.history["seconds"].iloc[-1] > done.history["seconds"].iloc[2] > 0
    assert jax.devices()[0].platform in cost["device"]


def test_the_command_line_says_where_the_figure_is(trained: tuple[Any, FakeService]) -> None:
    assert str(trained[0].folder / "history.png") in command.meta_report(trained[0])
    assert {"tensorboard", "wandb"} <= {option.name for option in command.meta_train.params}
    assert {"tensorboard", "wandb"} <= set(inspect.signature(open_bench.meta_train).parameters)


def test_studies_are_listed(openbench: OpenBench) -> None:
    out = openbench("list", "studies").out
    assert all(name in out for name in shipped("meta"))
    assert "Open_ES" in out
    assert "imitation of lion:learning_rate=1e-3 (quick), then 64 × 30 generations, Open_ES (quick)" in out
