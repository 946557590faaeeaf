"""A meta-training from request to stored weights: bitwise the same however it is cut, stored with how it was made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import pandas as pd
import pytest
from commands import OpenBench
from tiny_meta import (
    GENERATION,
    SETTINGS,
    STEPS_PER_UPDATE,
    TINY,
    UPDATES,
    StopWithin,
    Watch,
    flags,
    meta_train,
    theta_of,
    vector,
)

import open_bench
from open_bench.errors import UserError
from open_bench.events import Generation
from open_bench.meta_training.checkpoint import Checkpoints, Saved
from open_bench.optimizers.resolve import resolve
from open_bench.weights import library
from open_bench.weights.format import load_weights, save_weights


class Undisturbed(NamedTuple):
    trained: Any
    folder: Path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPEN_BENCH_WEIGHTS", str(folder / "library"))
        trained = meta_train(folder)
    # Otherwise all comparisons below would hold of a θ that never moved.
    assert (trained.history["fitness_std"] > 0).sum() > 5
    assert np.abs(vector(trained.theta)).max() > 0.05
    return Undisturbed(trained, folder)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_theta_is_bitwise_the_same_on_any_number_of_devices(
    devices: int, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    other = meta_train(tmp_path, devices=devices)
    np.testing.assert_array_equal(vector(other.theta), vector(undisturbed.trained.theta))
    same = [column for column in other.history if column != "seconds"]
    pd.testing.assert_frame_equal(other.history[same], undisturbed.trained.history[same], check_exact=True)


def lpo_start(folder: Path) -> str:
    """LPO at a drift of zero, away from θ = 0: there its network is even in θ, so antithetic pairs always tie."""
    kernel = np.random.default_rng(0).normal(size=(8, 128)).astype(np.float32)
    theta = {"optimizer": {}, "policy_loss": {"kernel_0": kernel, "kernel_1": np.zeros((128, 1), np.float32)}}
    save_weights(folder / "start.safetensors", theta)
    return f"lpo@{folder / 'start.safetensors'}"


GRIDWORLD = """
name = "tiny-gridworld"
description = "small levels of short episodes"
family = "gridworld"
source = "gridworld:rand_all"

[options]
max_size = 5
max_steps = 30
max_objects = 2

[budgets]
quick = 1280
"""


@pytest.mark.slow
def test_pairs_of_gridworlds_resume_bitwise_on_another_number_of_devices(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(GRIDWORLD)

    def evolve_pairs(folder: str, **changes: Any) -> Any:
        settings = {**SETTINGS, "steps": STEPS_PER_UPDATE * 8, "population": 4, "rollouts": 1, "generations": 3,
                    "task_sampling": "antithetic", "evaluate_every": 1, "evaluation_rollouts": 2}  # fmt: skip
        where = {"results": tmp_path / folder, "name": folder}
        return open_bench.meta_train("open", [str(tmp_path / "tiny.toml")], **where, **{**settings, **changes})

    whole = evolve_pairs("whole", devices=2)
    with pytest.raises(KeyboardInterrupt):
        evolve_pairs("parts", devices=1, progress=Watch(1))
    parts = evolve_pairs("parts", devices=2)
    assert (whole.history["tied_pairs"] < 2).any()
    assert np.abs(vector(whole.theta)).max() > 0.01
    np.testing.assert_array_equal(vector(parts.theta), vector(whole.theta))
    same = [column for column in whole.history if column != "seconds"]  # Adam and the mean on fixed levels among them
    pd.testing.assert_frame_equal(parts.history[same], whole.history[same], check_exact=True)
    assert whole.history["adam.tiny-gridworld"].nunique() == 1
    assert load_weights(whole.path).metadata["identity"]["task_sampling"] == "antithetic"
    whole.path.unlink()
    with pytest.raises(UserError, match=r'task_sampling \("antithetic" there, "common" here\)'):
        evolve_pairs("whole", task_sampling="common")


@pytest.mark.slow
def test_device_batches_that_do_not_divide_a_generation_change_nothing(tmp_path: Path) -> None:
    """A vmap size of 5 with 12 lifetimes: the last device batch is padded, on one device as on two."""
    start = lpo_start(tmp_path)
    one, two = (meta_train(tmp_path / str(n), start, vmap_size=5, generations=3, devices=n) for n in (1, 2))
    assert np.abs(one.theta["policy_loss"]["kernel_1"]).max() > 0.01
    np.testing.assert_array_equal(vector(one.theta), vector(two.theta))


@pytest.mark.slow
def test_interrupted_between_batches_theta_is_bitwise_the_same(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        meta_train(tmp_path, progress=StopWithin())
    assert newest(Checkpoints(tmp_path / "meta" / "mine", {})) == 2
    resumed = meta_train(tmp_path)
    np.testing.assert_array_equal(vector(resumed.theta), vector(undisturbed.trained.theta))


def interrupted(folder: Path, after: int = 5) -> Path:
    with pytest.raises(KeyboardInterrupt):
        meta_train(folder, progress=Watch(after))
    return folder / "meta" / "mine"


def newest(checkpoints: Checkpoints) -> int:
    return max((int(path.stem.partition("-")[2]) for path in checkpoints.paths()), default=0)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    """One bit of the last number: the file stays readable."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    damage: Callable[[Path], None], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    folder = interrupted(tmp_path)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        f"checkpoint-{generation:06d}.safetensors" for generation in (3, 4, 5)
    ]
    damage(folder / "checkpoint-000005.safetensors")
    with pytest.warns(UserWarning, match=r"checkpoint-000005\.safetensors is damaged; going on from checkpoint-000004"):
        resumed = meta_train(tmp_path)
    np.testing.assert_array_equal(vector(resumed.theta), vector(undisturbed.trained.theta))


def test_where_all_checkpoints_are_damaged_it_begins_anew(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {"a": 1})
    assert checkpoints.load() is None
    checkpoints.save(Saved(1, {"x": np.zeros(3)}, [], {}))
    truncate(checkpoints.paths()[0])
    with pytest.warns(UserWarning, match="is damaged; beginning anew"):
        assert checkpoints.load() is None


def test_a_checkpoint_holds_what_was_saved(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {"settings": {"sigma": 0.1}})
    for generation in range(1, 6):
        saved = Saved(generation, {"x": np.full(2, np.pi * generation)}, [{"fitness": float("nan")}], {"b": 0.1})
        checkpoints.save(saved)
    found = checkpoints.load()
    assert found is not None
    assert (found.generation, found.facts) == (5, {"b": 0.1})
    np.testing.assert_array_equal(found.arrays["x"], saved.arrays["x"])
    assert np.isnan(found.history[0]["fitness"])
    assert [path.name for path in checkpoints.paths()] == [f"checkpoint-{i:06d}.safetensors" for i in (3, 4, 5)]
    with pytest.raises(
        UserError, match=r"settings\.sigma \(0\.1 there, 0\.2 here\); vmap_size \(absent there, 4 here\)"
    ):
        Checkpoints(tmp_path, {"settings": {"sigma": 0.2}, "vmap_size": 4}).load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 0.5}, r"sigma \(1\.0 there, 0\.5 here\)\. Use"),
        ({"vmap_size": 2, "root_seed": 3}, r"root_seed \(0 there, 3 here\); vmap_size \(1 there, 2 here\)\. Use"),
        ({"population": 4, "rollouts": 3}, r"population \(6 there, 4 here\); rollouts \(2 there, 3 here\)"),
        ({"steps": STEPS_PER_UPDATE * 10}, r"environments\.cartpole\.num_updates \(20 there, 10 here\)"),
        ({"settings": {**TINY, "gamma": 0.9}}, r"environments\.cartpole\.settings\.gamma \(0\.99 there, 0\.9 here\)"),
        ({"optimizer": "lpo"}, r'optimizer \("open" there, "lpo" here\); policy_loss \("ppo" there, "lpo" here\)'),
        ({"generations": 4}, r"has 10 generations already, and 4 were asked for"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    changes: dict[str, Any], message: str, undisturbed: Undisturbed
) -> None:
    with pytest.raises(UserError, match=message):
        meta_train(undisturbed.folder, **changes)


@pytest.mark.slow
def test_more_generations_continue_a_finished_evolution(undisturbed: Undisturbed, tmp_path: Path) -> None:
    short = meta_train(tmp_path, generations=6)
    longer = meta_train(tmp_path)
    assert short.hash != longer.hash
    np.testing.assert_array_equal(vector(longer.theta), vector(undisturbed.trained.theta))
    assert load_weights(longer.path).hash == longer.hash
    assert load_weights(longer.path).metadata["cost"]["generations"] == 10


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_weights_are_stored_with_how_they_were_made(undisturbed: Undisturbed) -> None:
    trained, folder = undisturbed
    stored = load_weights(folder / "library" / "mine.safetensors")
    assert stored.hash == trained.hash
    np.testing.assert_array_equal(vector(stored.theta), vector(trained.theta))
    facts = stored.metadata
    assert facts["optimizer"] == "open"
    assert facts["policy_loss"] == "ppo"
    assert facts["parameters"] == 1211
    assert facts["parent"] is None
    assert facts["root_seed"] == 0
    assert facts["environments"] == {"cartpole": {"env_steps": STEPS_PER_UPDATE * UPDATES}}
    assert facts["config"]["sigma"] == 1.0
    assert facts["config"]["strategy"] == "Open_ES"
    cost = facts["cost"]
    assert cost["generations"] == 10
    assert cost["lifetimes"] == 10 * GENERATION
    assert cost["env_steps"] == 10 * GENERATION * STEPS_PER_UPDATE * UPDATES
    assert 0 < cost["seconds"] < 600
    assert cost["devices"] == 2
    assert "cpu" in cost["device"]
    assert {"jax", "optax", "evosax"} <= set(facts["provenance"]["packages"])
    assert json.loads(json.dumps(facts)) == facts
    best = load_weights(trained.folder / "best.safetensors")
    assert best.metadata["fitness"] == pytest.approx(trained.history["fitness_mean"].max())
    assert load_weights(trained.folder / "latest.safetensors").hash == trained.hash
    history = pd.read_csv(trained.folder / "history.csv")
    pd.testing.assert_frame_equal(history, trained.history)


def test_meta_trained_weights_are_used_by_name(undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(undisturbed.folder / "library"))
    found = resolve(undisturbed.trained.optimizer)
    assert found.label == "open@mine"
    np.testing.assert_array_equal(vector(found.theta), vector(undisturbed.trained.theta))


@pytest.mark.slow
def test_evolution_starts_at_the_named_weights_and_says_so(undisturbed: Undisturbed, tmp_path: Path) -> None:
    start = undisturbed.trained.folder / "latest.safetensors"
    child = meta_train(tmp_path, f"open@{start}", generations=1, learning_rate=1e-6)
    assert 0 < np.abs(vector(child.theta) - vector(undisturbed.trained.theta)).max() < 1e-5
    metadata = load_weights(child.path).metadata
    assert metadata["parent"] == undisturbed.trained.hash
    (ancestor,) = metadata["ancestors"]
    parent = load_weights(start).metadata
    assert (ancestor["hash"], ancestor["environments"]) == (undisturbed.trained.hash, parent["environments"])
    assert ancestor["identity"]["environments"] == parent["identity"]["environments"]
    assert child.optimizer == "open@mine"
    grandchild = meta_train(tmp_path, f"open@{child.path}", name="next", generations=1)
    ancestors = load_weights(grandchild.path).metadata["ancestors"]
    assert [one["hash"] for one in ancestors] == [undisturbed.trained.hash, child.hash]


@pytest.mark.slow
def test_weights_under_the_optimizers_own_name_are_no_start(undisturbed: Undisturbed, tmp_path: Path) -> None:
    library.save_named("open", undisturbed.trained.theta, {})
    assert vector(resolve("open").theta).any()
    moved = meta_train(tmp_path, generations=1, learning_rate=1e-6)
    assert np.abs(vector(moved.theta)).max() < 1e-5


@pytest.mark.slow
def test_a_policy_loss_is_evolved_too(tmp_path: Path) -> None:
    trained = meta_train(tmp_path, lpo_start(tmp_path), generations=2)
    assert trained.theta["optimizer"] == {}
    moved = trained.theta["policy_loss"]
    assert {name: leaf.shape for name, leaf in moved.items()} == {"kernel_0": (8, 128), "kernel_1": (128, 1)}
    assert 0.01 < np.abs(moved["kernel_1"]).max() < 0.1  # two steps of Adam from 0
    assert trained.optimizer == "lpo@mine"
    assert resolve("lpo@mine").weights is not None


@pytest.mark.slow
def test_the_mean_is_evaluated_against_adam_and_on_what_is_held_out(tmp_path: Path) -> None:
    changes = {"held_out": ["catch"], "evaluate_every": 2, "evaluation_rollouts": 2, "generations": 2}
    trained = meta_train(tmp_path, lpo_start(tmp_path), **changes, population=2, rollouts=1, learning_rate=3.0)
    columns = ["return.cartpole", "adam.cartpole", "return.catch", "adam.catch"]
    assert trained.history[columns].iloc[0].isna().all()
    last = trained.history[columns].iloc[1]
    assert last["return.cartpole"] != last["adam.cartpole"]  # or one of them is not what it says
    assert last[["return.cartpole", "adam.cartpole"]].min() > 8
    assert last[["return.catch", "adam.catch"]].between(-1, 1).all()
    assert (
        trained.history["env_steps"].iloc[1] == 2 * 2 * STEPS_PER_UPDATE * UPDATES
    )  # what is only looked at is not counted


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "meta" / "mine"
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / ".lock"), pytest.raises(UserError, match="another process is meta-training"):
        meta_train(tmp_path)


def test_a_name_that_is_taken_is_refused_at_once(tmp_path: Path) -> None:
    library.save_named("mine", theta_of(1.0), {})
    with pytest.raises(UserError, match="holds other weights; choose another --name"):
        meta_train(tmp_path)
    assert not (tmp_path / "meta").exists()


# --- the command ------------------------------------------------------------------------------------------------------


class Taking:
    """Takes the name of the weights after the first generation, as another process may."""

    def __init__(self, theta: Any):
        self._theta = theta

    def __call__(self, event: Any) -> None:
        if isinstance(event, Generation):
            library.save_named("mine", self._theta, {"by": "another"})


@pytest.mark.slow
def test_weights_that_took_the_name_meanwhile_are_left_alone(undisturbed: Undisturbed, tmp_path: Path) -> None:
    others = undisturbed.trained.theta
    with pytest.raises(UserError, match=r"holds other weights.* It was free when this began.*latest\.safetensors"):
        meta_train(tmp_path, generations=1, progress=Taking(others))
    kept = load_weights(library.library_dir() / "mine.safetensors")
    assert (kept.metadata, vector(kept.theta).tolist()) == ({"by": "another"}, vector(others).tolist())
    made = load_weights(tmp_path / "meta" / "mine" / "latest.safetensors")
    assert made.metadata["cost"]["generations"] == 1


@pytest.mark.slow
def test_asked_for_again_weights_say_who_made_them(tmp_path: Path) -> None:
    first = meta_train(tmp_path, generations=1, devices=1)
    again = meta_train(tmp_path, generations=1, devices=2)
    assert again.metadata == first.metadata
    assert load_weights(again.path).metadata["cost"]["devices"] == 1
    more = meta_train(tmp_path, generations=2, devices=2)
    assert more.metadata["cost"]["devices"] == 2


@pytest.mark.parametrize("inside", ["meta", "meta/mine"])
def test_a_file_where_the_folder_would_be_is_named(inside: str, tmp_path: Path) -> None:
    (tmp_path / inside).parent.mkdir(exist_ok=True)
    (tmp_path / inside).write_text("mine")
    with pytest.raises(UserError, match=r"meta/mine cannot be made: .*\. Choose another --name or --results"):
        meta_train(tmp_path)
    assert (tmp_path / inside).read_text() == "mine"


@pytest.mark.parametrize(
    ("optimizer", "sigma", "message"),
    [("open", 0.5, "sigma (1.0 there, 0.5 here). Use"), ("lpo", 1.0, 'optimizer ("open" there, "lpo" here)')],
)
def test_a_checkpoint_of_others_is_one_line_and_exit_code_2(
    optimizer: str, sigma: float, message: str, openbench: OpenBench, undisturbed: Undisturbed
) -> None:
    answer = openbench(
        "meta-train", optimizer, "-e", "cartpole", "--results", undisturbed.folder, "--name", "mine", "--steps", 1280,
        "--population", 6, "--rollouts", 2, "--sigma", sigma, "--fitness", "mean_return", "--vmap-size", 1, "--quiet",
        *flags(TINY),
    )  # fmt: skip
    assert answer.code == 2
    assert message in answer.err
    assert "was made with other settings" in answer.err
    assert len(answer.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_command_line_meta_trains_and_says_where_the_weights_are(
    openbench: OpenBench, undisturbed: Undisturbed, tmp_path: Path, library: Path
) -> None:
    values = {"population": 6, "rollouts": 2, "sigma": 1.0, "fitness": "mean_return", "vmap-size": 1, "devices": 2,
              "steps": SETTINGS["steps"], "results": tmp_path, "name": "mine"}  # fmt: skip
    options = [*flags(TINY), *(f"--{key}={value}" for key, value in values.items())]
    answer = openbench("meta-train", "open", "-e", "cartpole", *options, "--generations=3", "--plain")
    assert answer.code == 0, answer.err
    assert "custom: 3 generations, θ has 1,211 numbers" in answer.err
    assert "generation 3/3: fitness " in answer.err
    assert "open@mine" in answer.out
    assert (library / "mine.safetensors").is_file()
    expected = undisturbed.trained.history["fitness_mean"][:3]
    pd.testing.assert_series_equal(pd.read_csv(tmp_path / "meta/mine/history.csv")["fitness_mean"], expected)
    answer = openbench("meta-train", "open", "-e", "cartpole", *options, "--generations=4", "--plain")
    assert "going on after generation 3" in answer.err
