"""Where optimizers were trained or tuned, and whether a point is inside of that."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from studies import placed, task, trained_weights

from open_bench.optimizers.resolve import resolve
from open_bench.training.task import Task
from open_bench.weights.format import load_weights


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Any]:
    """An optimizer whose weights say that they were trained on some tasks."""
    return lambda *tasks, **metadata: trained_weights(tmp_path, *tasks, **metadata)


def test_weights_say_what_theta_was_trained_on(trained: Callable[..., Any]) -> None:
    mine = f"open-feedforward@{trained(task(), task('breakout', 98_304))}"
    assert placed(mine, task()) == ("in", ())
    assert placed(mine, task("breakout", 98_304)) == ("in", ())
    assert placed(mine, task("breakout", 300_000)) == ("out", ("lifetime",))
    assert placed(mine, task(hidden=[32])) == ("out", ("hidden",))
    assert placed(mine, task(hidden=[32], activation="relu")) == ("out", ("activation", "hidden"))
    assert placed(mine, task("acrobot", 20_480)) == ("out", ("environment",))
    assert placed(mine, task(options={"max_steps_in_episode": 200})) == ("out", ("max_steps_in_episode",))


def test_weights_of_version_1_say_it_too(tmp_path: Path) -> None:
    said = task("breakout", 98_304)
    identity = dict(said.identity)
    facts = {
        **{key: identity[key] for key in ("source", "options", "num_updates")},
        "ppo": identity["settings"],
        "version": identity["environment_version"],
    }
    mine = f"open-feedforward@{trained_weights(tmp_path, said, identity={'environments': {'breakout': facts}})}"
    assert placed(mine, said) == ("in", ())
    assert placed(mine, task("breakout", 98_304, algorithm="pqn")) == ("out", ("algorithm",))


def test_a_part_of_a_level_distribution_is_inside_of_it(trained: Callable[..., Any]) -> None:
    mine = f"open-feedforward@{trained(task('gridworld/rand_all', 40_960))}"

    def of_options(**options: float) -> tuple[str, tuple[str, ...]]:
        return placed(mine, task("gridworld/rand_all", 40_960, options))

    assert of_options(min_respawn=0.01, max_respawn=0.1) == ("in", ())
    assert of_options(min_steps=100, max_steps=100) == ("in", ())
    assert of_options(min_respawn=0.5, max_respawn=0.5) == ("out", ("respawn",))
    assert of_options(max_steps=1000) == ("out", ("horizon",))
    assert of_options(walls=3) == ("out", ("walls",))
    assert of_options(min_size=12, max_size=12) == (
        "out",
        ("size", "walls", "observation"),
    )  # fewer walls an experiment
    assert of_options(min_size=12, max_size=12, walls=22) == ("out", ("size", "observation"))
    assert of_options(max_objects=6) == ("out", ("density",))
    _, shifts = placed(mine, task("gridworld/labyrinth", 40_960))
    assert set(shifts) == {"size", "walls", "places", "observation"}


def test_a_level_for_each_copy_is_another_distribution() -> None:
    own = task("gridworld/rand_all", 204_800, {"level_per_copy": True})
    assert placed("adam:b1=0.5", own, "gridworld/rand_all") == ("out", ("level_per_copy",))


def test_theta_of_unknown_origin_or_none(trained: Callable[..., Any], tmp_path: Path) -> None:
    assert placed("open-feedforward@zero", task()) == ("out", ("never trained",))
    for metadata in ({"identity": None, "environments": None}, {"identity": {"environments": {"cartpole": {}}}}):
        assert placed(f"open-feedforward@{trained(task(), **metadata)}", task()) == ("unknown", ())
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(resolve("open-feedforward@zero").theta["optimizer"])])
    np.save(tmp_path / "theirs.npy", flat.astype(np.float32))
    theirs = f"open-feedforward@{tmp_path / 'theirs.npy'}"
    assert placed(theirs, task()) == ("unknown", ())
    assert placed(theirs, task(), "cartpole") == ("in", ())
    assert placed(theirs, task(steps=512), "cartpole", "breakout") == ("in", ())
    assert placed(theirs, task(hidden=[8]), "cartpole") == ("out", ("hidden",))
    by_name = trained(task(), identity=None, environments={"cartpole": {"env_steps": 20_480}})
    assert placed(f"open-feedforward@{by_name}", task()) == ("in", ())
    assert placed(f"open-feedforward@{by_name}", task(steps=1024)) == ("out", ("lifetime",))


def test_what_the_first_weights_were_trained_on_counts(trained: Callable[..., Any]) -> None:
    def facts(*tasks: Task) -> dict[str, Any]:
        return dict(load_weights(Path(trained(*tasks))).metadata)

    first = facts(task())
    descendant = f"open-feedforward@{trained(task('breakout', 98_304), ancestors=[first])}"
    assert placed(descendant, task()) == ("in", ())
    assert placed(descendant, task("breakout", 98_304)) == ("in", ())
    assert placed(descendant, task("acrobot", 20_480)) == ("out", ("environment",))
    silent = f"open-feedforward@{trained(task('breakout', 98_304), ancestors=[{'environments': {}}])}"
    assert placed(silent, task("breakout", 98_304)) == ("unknown", ())


def test_classic_optimizers_were_tuned_where_their_hyperparameters_come_from() -> None:
    assert placed("adam", task(steps=100_000)) == ("in", ())  # tuned at the quick budget
    assert placed("adam", task(steps=500_000)) == ("in", ())  # published, tuned at the full one
    assert placed("adam", task(steps=20_480)) == ("out", ("lifetime",))
    assert placed("adam", task(steps=100_000, hidden=[8])) == ("out", ("hidden",))
    assert placed("optax.adabelief", task(steps=100_000)) == ("out", ("never trained",))
    assert placed("adam:learning_rate=0.1", task()) == ("unknown", ())
    assert placed("adam:learning_rate=0.1", task(), "cartpole") == ("in", ())
    assert placed("adam", task(steps=20_480), "cartpole") == ("out", ("lifetime",))  # what is known counts
