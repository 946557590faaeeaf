"""Stages: one command, each beginning at the θ of the one before, bitwise the same however it is cut."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from commands import OpenBench
from tiny_meta import STEPS_PER_UPDATE, TINY, Watch, flags, vector

import open_bench
from open_bench.config import build
from open_bench.errors import UserError
from open_bench.meta_training.spec import MetaConfig, adjusted, load_meta
from open_bench.weights.format import load_weights

SMALL_FIRST = str(Path(__file__).parent / "staged.toml")
UPDATES, GENERATIONS = 8, 2
MINE = f"""
name = "tiny"
environments = ["cartpole"]
population = 4
generations = {GENERATIONS}
sigma = 1.0
fitness = "mean_return"
vmap_size = 1
save_every = 1

[imitation]
teachers = ["lion"]
rounds = 1
batches = 5
batch_size = 2
windows = 2
window_steps = 8
burn_in = 2
parameters = 16

[[stages]]
name = "small"

[[stages]]
name = "last"
sigma = 0.5
"""
NAMES = ("mine-imitation", "mine-small", "mine")


class Staged(NamedTuple):
    said: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory, openbench_of_a_module: OpenBench) -> Staged:
    folder = tmp_path_factory.mktemp("staged")
    (folder / "tiny.toml").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPEN_BENCH_WEIGHTS", str(folder / "library"))
        answer = openbench_of_a_module(
            "meta-train", "open-feedforward", "--study", folder / "tiny.toml", *flags(TINY), "--devices", 2,
            "--steps", STEPS_PER_UPDATE * UPDATES, "--results", folder, "--name", "mine", "--json", "--plain",
        )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "tiny-small: 2 generations" in answer.err
    return Staged(json.loads(answer.out), folder)


def again(staged: Staged, folder: Path, **changes: Any) -> Any:
    """The same request from Python."""
    settings = {"steps": STEPS_PER_UPDATE * UPDATES, "settings": TINY, "devices": 2, "name": "mine", **changes}
    return open_bench.meta_train("open-feedforward", study=str(staged.folder / "tiny.toml"), results=folder, **settings)


@pytest.mark.slow
def test_each_stage_begins_where_the_one_before_ends(staged: Staged) -> None:
    kept = [load_weights(staged.folder / "library" / f"{name}.safetensors") for name in NAMES]
    facts = [each.metadata for each in kept]
    assert [each["parent"] for each in facts] == [None, kept[0].hash, kept[1].hash]
    assert [ancestor["name"] for ancestor in facts[2]["ancestors"]] == ["mine-imitation", "mine-small"]
    assert facts[2]["ancestors"][1]["cost"] == facts[1]["cost"]
    assert [each["cost"]["generations"] for each in facts] == [0, GENERATIONS, GENERATIONS]
    assert [each["root_seed"] for each in facts] == [0, 1, 2]
    assert "imitation" in facts[0]
    assert "imitation" not in facts[1]
    first, second = (vector(each.theta) for each in kept[:2])
    # Adam's steps are as large as the learning rate at first.
    assert 0 < np.abs(second - first).max() < 1.01 * GENERATIONS * MetaConfig().learning_rate
    assert [each["optimizer"] for each in staged.said["stages"]] == [f"open-feedforward@{name}" for name in NAMES[:2]]
    assert staged.said["hash"] == kept[2].hash


@pytest.mark.slow
def test_every_stage_keeps_what_was_asked_for(staged: Staged) -> None:
    for name in NAMES[1:]:
        every = [load_weights(path) for path in sorted((staged.folder / "meta" / name).glob("generation-*"))]
        assert [each.metadata["cost"]["generations"] for each in every] == [1, 2]
        last = load_weights(staged.folder / "meta" / name / "latest.safetensors")
        np.testing.assert_array_equal(vector(every[-1].theta), vector(last.theta))
        assert not np.array_equal(vector(every[0].theta), vector(last.theta))


@pytest.mark.slow
def test_interrupted_in_a_later_stage_theta_is_bitwise_the_same(staged: Staged, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        again(staged, tmp_path, progress=Watch(1), devices=1)
    watch = Watch()
    done = again(staged, tmp_path, progress=watch)
    assert watch.generations == [2, 1, 2]
    assert done.hash == staged.said["hash"]
    assert [each.name for each in done.stages] == list(NAMES[:2])
    with pytest.raises(UserError, match=r"mine\.safetensors holds other weights"):
        again(staged, tmp_path, generations=3)  # of the stage before, too: it would begin elsewhere


def test_a_plan_shows_all_stages(openbench: OpenBench, tmp_path: Path) -> None:
    answer = openbench("meta-train", "open", "--study", SMALL_FIRST, "--dry-run", "--results", tmp_path / "results")
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    heads = [line.partition(":")[0] for line in lines if not line.startswith(" ")]
    assert heads == ["staged-imitation", "staged-small", "staged-published"]
    assert "  freeway · ppo: 16 lifetimes a generation of 60 updates (491,520 env steps)" in lines
    assert not (tmp_path / "results").exists()


def test_stages_are_whole_and_what_is_changed_holds_in_all() -> None:
    imitation, small, published = load_meta(SMALL_FIRST).in_stages
    assert (imitation.generations, imitation.env_steps, small.imitation) == (0, None, None)
    assert (small.env_steps, published.env_steps, published.settings) == (131_072, None, {})
    assert small.population == published.population == 16
    changed = adjusted(SMALL_FIRST, {"env_steps": 640, "generations": 3, "imitation": {"rounds": 1}}).in_stages
    assert [(each.env_steps, each.generations) for each in changed] == [(640, 0), (640, 3), (640, 3)]
    assert [each.imitation.rounds if each.imitation else 0 for each in changed] == [1, 0, 0]
    assert MetaConfig().in_stages == (MetaConfig(),)


def test_a_stages_budget_replaces_the_studys_env_steps() -> None:
    """A budget of a stage's own counts, as an option's would; beside env_steps of its own those count."""
    stages = [{"name": "small"}, {"name": "published", "budget": "full"}, {"budget": "full", "env_steps": 64}]
    config = build(MetaConfig, {"env_steps": 98_304, "stages": stages}, "mine.toml")
    assert [(each.budget, each.env_steps) for each in config.in_stages] == [
        ("quick", 98_304), ("full", None), ("full", 64),
    ]  # fmt: skip


def test_an_options_env_steps_come_before_a_stages_budget() -> None:
    stages = ({"name": "small", "budget": "short"}, {"name": "last"})
    base = MetaConfig(environments=("cartpole",), stages=stages)
    assert [each.env_steps for each in adjusted(base, {"env_steps": 640}).in_stages] == [640, 640]
    assert [each.budget for each in adjusted(base, {"budget": "full"}).in_stages] == ["full", "full"]
    assert [each.budget for each in adjusted(base, {}).in_stages] == ["short", "quick"]


def test_of_no_generations_imitation_is_left() -> None:
    (alone,) = adjusted(SMALL_FIRST, {"generations": 0}).in_stages
    assert (alone.name, alone.generations, alone.imitation) == ("staged", 0, load_meta(SMALL_FIRST).imitation)


def test_the_names_of_all_stages_are_checked_before_the_first_begins(openbench: OpenBench, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'environments = ["cartpole"]\n[[stages]]\nname = "a"\n[[stages]]\nname = "16x16/short"\n[[stages]]\n'
    )
    answer = openbench("meta-train", "open", "--study", tmp_path / "mine.toml", "--results", tmp_path / "results")
    assert answer.code == 2
    assert "16x16/short' is no name of weights" in answer.err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stages": [{"popluation": 4}]}, "meta-training custom, stage 1: unknown key 'popluation'. Did you mean popu"),
        ({"stages": [{"name": "a"}, {"name": "b", "sigma": 0.0}]}, "stage b: sigma = 0.0: Input should be greater"),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, "stages have the same name: custom-a, custom-a"),
        ({"stages": [{"imitation": {"teachers": ["lion"]}}]}, "a stage has neither stages nor imitation"),
    ],
)
def test_a_bad_stage_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(MetaConfig, values, "mine.toml")


def test_compare_does_not_wait_for_stages(openbench: OpenBench, tmp_path: Path) -> None:
    answer = openbench("compare", "-o", "open", "-e", "cartpole", "--meta-train", SMALL_FIRST, "--results", tmp_path)
    assert answer.code == 2
    assert "meta-training staged has stages, which take hours: run `openbench meta-train" in answer.err


def test_every_setting_is_an_option() -> None:
    from open_bench.cli.meta_train import meta_train
    from open_bench.meta_training.spec import ImitationConfig

    named = {parameter.name for parameter in meta_train.params}
    elsewhere = {"name", "description", "stages", "imitation", "env_steps"}  # --steps
    assert set(MetaConfig.model_fields) - elsewhere <= named
    assert {f"imitation_{field}" for field in ImitationConfig.model_fields} <= named
