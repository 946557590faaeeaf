"""Stored seeds run again: bit for bit on this machine, and elsewhere as draws of one distribution."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from commands import OpenBench
from exchanged import changed, chosen, contents, edit_json, made, redigest, renamed
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import PQN_SETTINGS, STEPS, Log, experiments, random_policy, shards

import open_bench
from open_bench.errors import UserError
from open_bench.exchange.verify import in_distribution, verify
from open_bench.experiments.estimate import check_memory
from open_bench.experiments.execute import description
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.plan import make_experiments
from open_bench.experiments.provenance import provenance, same_kind
from open_bench.experiments.rebuild import rebuild
from open_bench.experiments.store import Shard, Store, Stored
from open_bench.machine import available_cores, xla_threads
from open_bench.optimizers import hyperparameters
from open_bench.optimizers.resolve import resolve
from open_bench.training.task import make_task

ELSEWHERE = {"packages": {"jaxlib": "0.0"}}
MINE = """
import optax
def mine(learning_rate=1e-3, decay=0.9):
    return optax.sgd(learning_rate, momentum=decay)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adam with diagnosis and the random policy, four seeds each, in shards of two."""
    folder = tmp_path_factory.mktemp("whole")
    return made(made(folder, experiments(), 4, 2, diagnose=True), [random_policy()], 4, 2)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def adams(folder: Path, seed: int) -> Path:
    """The shard with this seed of Adam's."""
    return [shard for shard in shards(folder) if "--adam--" in str(shard)][seed // 2]


# --- experiments made again -------------------------------------------------------------------------------------------


def again(experiment: Experiment, **options: Any) -> Experiment:
    return rebuild({"identity": experiment.identity, **description(experiment)}, **options)


@pytest.mark.slow
def test_experiments_are_made_again_from_what_is_stored() -> None:
    tasks = [
        make_task("cartpole", steps=STEPS, settings={"hidden": (8,)}),
        make_task("gridworld/labyrinth", steps=20_480, settings={"num_envs": 4}, options={"max_steps": 50}),
        make_task("CartPole-v1"),
        make_task("cartpole", algorithm="pqn", steps=STEPS, settings=PQN_SETTINGS),
    ]
    optimizers = ["adam", "lion:learning_rate=0.002", "optax.adabelief", "open@zero", "rmsprop"]
    some = make_experiments(optimizers, tasks, jax.devices(), 3, vmap_size=2, share_keys=True)
    some = (
        *some,
        *make_experiments(["adam:track=default", "adam+dpo", "lpo", "muon"], tasks[:1], jax.devices(), 0),
        chosen()[-1],
    )
    assert [again(each).name for each in some] == [each.name for each in some]
    assert [again(each).identity for each in some] == [each.identity for each in some]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": 1}, "it follows protocol 1, and this is protocol 2"),
        ({"environment_version": 7}, "it is another experiment here: environment_version is stored as 7 and is 1"),
        ({"track": "best"}, "track is stored as 'best' and is None"),
        ({"optimizer": "adam:learning_rate=0.5"}, "hyperparameters is stored as"),
        ({"theta": "0123"}, "theta is stored as '0123' and is ''"),
        ({"hyperparameters": {"learning_rat": 1.0}}, "adam has no setting 'learning_rat'"),
        ({"settings": {"hidden": "wide"}}, "settings of cartpole.*hidden"),
        ({"algorithm": "sac"}, r"runs code from outside open-bench \(sac\)"),
        ({"source": "os:system"}, r"runs code from outside open-bench \(os:system\): --own-code allows that"),
        ({"source": "gymnax:Nowhere"}, "Nowhere"),
        ({"optimizer": "os:system:x=1"}, r"runs code from outside open-bench \(os:system:x=1\)"),
        ({"optimizer": "a_plug_in"}, r"\(a_plug_in\)"),
        ({"optimizer": "optax._src.base.jnp.save"}, "comes from elsewhere"),
        ({"optimizer": "=1+1"}, "cannot read"),
        ({"optimizer": "open@nobodys", "hyperparameters": {}}, "nobodys"),
        ({"optimizer": None}, "None"),
        ({"settings": None}, "makes no experiment"),
        ({"num_updates": "many"}, "makes no experiment|many"),
        ({"vmap_size": 10**6}, "need about .* GiB, and this machine has"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_again_says_why(change: dict[str, Any], message: str) -> None:
    experiment = chosen()[0]
    identity = {**experiment.identity, **change}
    with pytest.raises(UserError, match=message):
        check_memory(rebuild({**description(experiment), "identity": identity}), jax.devices())


def test_settings_of_the_users_own_files_need_no_file(tmp_path: Path) -> None:
    """What ``--hyperparameters`` gave is stored, and so is the track that a name asked for."""
    task = make_task("cartpole", steps=STEPS, settings={"hidden": (8,)})
    values = {"learning_rate": 0.0123}
    place = ("environments", "cartpole", task.algorithm, task.budget)
    hyperparameters.write(
        tmp_path / "adam.toml", "adam", [(place, {"origin": "tuned", "source": "me", "values": values})]
    )
    find = functools.partial(resolve, folder=tmp_path)
    for name in ("adam", "adam:track=tuned"):
        experiment = Experiment(task, find(name, task), 0, 1)
        assert experiment.optimizer is not None
        assert experiment.optimizer.hyperparameters["learning_rate"] == 0.0123
        assert again(experiment).identity == experiment.identity
        assert again(experiment).optimizer.track == experiment.optimizer.track


def test_code_of_the_users_runs_when_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rule.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    (experiment,) = experiments("my_rule:mine")
    with pytest.raises(UserError, match=r"\(my_rule:mine\): --own-code allows that"):
        again(experiment)
    assert again(experiment, own_code=True).name == experiment.name
    (unnamed,) = experiments(optax.sgd(1e-3))
    with pytest.raises(UserError):
        again(unnamed, own_code=True)


# --- what they show ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_stored_comes_out_again(whole: Path) -> None:
    before, log = contents(whole), Log()
    found = open_bench.verify(8, root_seed=1, results=whole, devices=2, progress=log)
    assert found.passed
    assert found.rows["agreement"].tolist() == ["bitwise"] * 8
    assert sum(len(seeds) for _, seeds in log.started) == 8
    assert contents(whole) == before
    assert (found.skipped, found.damaged) == ({}, ())


@pytest.mark.slow
def test_samples_follow_from_their_root_seed(whole: Path) -> None:
    from open_bench.exchange import verify as module

    sound = {name: Store(whole).read(name) for name in Store(whole).names()}

    def sample(num_seeds: int, root_seed: int) -> dict[str, list[int]]:
        return module._sample(sound, num_seeds, root_seed, False, jax.devices())[0]

    samples = [sample(3, seed) for seed in range(40)]
    assert samples == [sample(3, seed) for seed in range(40)]
    assert {(name, seed) for sample in samples for name, seeds in sample.items() for seed in seeds} == {
        (name, seed) for name in sound for seed in range(4)
    }
    assert sum(map(len, sample(100, 0).values())) == 8


def test_only_what_is_drawn_is_made_again() -> None:
    from open_bench.exchange import verify as module

    experiment, read = chosen()[0], []

    class Content(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            read.append(self["name"]) if key == "identity" else None
            return super().__getitem__(key)

    def stored(name: str, **changes: Any) -> Stored:
        content = {"name": name, **description(experiment), "identity": {**experiment.identity, **changes}}
        scores = {"seed": np.arange(4)}
        return Stored(Path(name), Content(content), {}, [Shard(Path(name), scores, {}, None, {})], [])

    sound = {name: stored(name) for name in map(str, range(500))}
    sample, experiments, skipped = module._sample(sound, 3, 0, False, jax.devices())
    assert set(read) == set(sample) == set(experiments)
    assert sum(map(len, sample.values())) == 3
    assert skipped == {}
    sound |= {name: stored(name, protocol=1) for name in sound if name != "7"}  # others are drawn in their place
    sample, experiments, skipped = module._sample(sound, 3, 0, False, jax.devices())
    assert list(sample) == list(experiments) == ["7"]
    assert len(sample["7"]) == 3
    assert 100 < len(skipped) < 500


@pytest.mark.slow
def test_a_changed_number_with_its_digest_is_found_by_running_again_alone(copy: Path, openbench: OpenBench) -> None:
    """The score of one seed of Adam, the last bit of it; a point of another's curve, of a third's diagnosis."""
    score = Store(copy).load().scores.set_index(["optimizer", "seed"])["final_return"]["adam", 2]
    changed(adams(copy, 2), 0, final_return=np.nextafter(score, np.inf))
    for seed, table in ((1, "curves.csv"), (3, "diagnosis.csv")):
        path = adams(copy, seed) / table
        *lines, last = path.read_text().splitlines()
        path.write_text("\n".join([*lines, ",".join([*last.split(",")[:-1], "0.125"])]) + "\n")
        redigest(path.parent)
    open_bench.load_runs(copy)  # nothing else can know
    answer = openbench("verify", 8, "--results", copy, "--devices", 2, "--quiet")
    assert answer.code == 1
    wrong = [line.split()[:3] for line in answer.out.splitlines() if "disagrees" in line]
    task = "cartpole[hidden=8,num_minibatches=2,num_steps=8,update_epochs=1]"
    assert wrong == [[task, "adam", str(seed)] for seed in (1, 2, 3)]
    assert answer.out.count("bitwise") == 5
    assert "NOT verified" in answer.out


@pytest.mark.slow
def test_what_is_damaged_or_cannot_run_is_named(copy: Path, openbench: OpenBench) -> None:
    (adams(copy, 0) / "scores.csv").write_text("seed\n0\n")
    adam, random = (copy / "experiments" / name for name in Store(copy).names())
    other = renamed(adam, lambda content: content["identity"].update(optimizer="nobodys:rule#01", code="01"))
    answer = openbench("verify", 7, "--results", copy, "--root-seed", 3, "--devices", 2, "--json", "--quiet")
    assert answer.code == 1
    found = json.loads(answer.out)
    assert not found["passed"]
    assert [row["agreement"] for row in found["rows"]] == ["bitwise"] * 4
    assert list(found["skipped"]) == [other.name]
    assert "nobodys:rule" in found["skipped"][other.name]
    assert "its digest differs" in found["damaged"][0]
    shutil.rmtree(random)
    answer = openbench("verify", "--results", copy)
    assert (answer.code, answer.out) == (2, "")
    assert "nothing can be run again" in answer.err


@pytest.mark.slow
def test_where_nothing_can_be_said_nothing_is_verified(copy: Path, openbench: OpenBench) -> None:
    """A single seed from elsewhere, with another number: nobody knows how far seeds lie apart."""
    shutil.rmtree(copy / "experiments" / Store(copy).names()[1])
    for shard in shards(copy)[1:]:
        shutil.rmtree(shard)
    (shard,) = shards(copy)
    edit_json(shard / "provenance.json", lambda facts: facts.update(ELSEWHERE))
    for row in range(len((shard / "scores.csv").read_text().splitlines()) - 1):
        changed(shard, row, final_return=100.0 + row, mean_return=90.0 + row)
    answer = openbench("verify", 1, "--results", copy, "--devices", 2, "--quiet")
    assert answer.code == 0, answer.err
    assert "unknown" in answer.out
    assert "Nothing could be said" in answer.out
    assert "Verified" not in answer.out


@pytest.mark.slow
def test_elsewhere_returns_are_compared_as_draws(copy: Path) -> None:
    """The same folder as if another version had made it: its numbers still agree, and an invented one does not."""
    for shard in shards(copy):
        edit_json(shard / "provenance.json", lambda facts: facts.update(ELSEWHERE))
    score = Store(copy).load().scores.set_index(["optimizer", "seed"])["final_return"]["adam"]
    changed(adams(copy, 0), 0, final_return=score[0] * (1 + 1e-5))
    changed(adams(copy, 1), 1, final_return=score[1] + score.std() / 2)
    changed(adams(copy, 2), 0, final_return=1e6)
    found = verify(Store(copy), 8, jax.devices()[:2], root_seed=0).rows
    adam = found[found["optimizer"] == "adam"].set_index("seed")["agreement"]
    assert adam.to_dict() == {0: "tolerance", 1: "distribution", 2: "disagrees", 3: "bitwise"}
    assert set(found[found["optimizer"] != "adam"]["agreement"]) == {"bitwise"}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 12))
def test_draws_of_one_distribution_seldom_disagree(root_seed: int, count: int) -> None:
    rng = np.random.default_rng(root_seed)
    draws = rng.normal(100, 10, (200, count + 2))
    said = [in_distribution(a, b, others, 0.01) for a, b, *others in draws for others in [np.array(others)]]
    assert said.count("disagrees") <= 12  # expected are 2 of 200
    assert in_distribution(100.0, 1e5, draws[0, 2:], 0.01) == "disagrees"


def test_returns_that_are_missing() -> None:
    nan = float("nan")
    for stored, now, others, expected in (
        (nan, nan, [1, 2, 3], "distribution"),
        (nan, 2, [1, 2, 3], "disagrees"),
        (2, nan, [1, nan, 3], "distribution"),
        (2, nan, [nan, nan, nan], "disagrees"),
        (2, 3, [1, nan, 3], "unknown"),
        (2, 3, [1, 2], "unknown"),
        (500, 499, [500, 500, 500], "distribution"),
        (500, 9, [500, 500, 500], "disagrees"),
    ):
        assert in_distribution(stored, now, np.array(others, float), 0.01) == expected, (stored, now, others)


def test_threads_are_those_of_xlas_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NPROC", raising=False)
    assert xla_threads(1) == available_cores()
    assert xla_threads(4096) == 4096
    monkeypatch.setenv("NPROC", "3")
    assert (xla_threads(1), xla_threads(4)) == (3, 4)


def test_what_makes_two_machines_one_kind() -> None:
    here = provenance()
    assert here["threads"] == xla_threads(len(jax.devices()))
    assert same_kind(here, here)
    assert same_kind(here, here | {"hardware": here["hardware"].replace("4 ×", "64 ×"), "revision": "other"})
    assert same_kind({key: value for key, value in here.items() if key != "processor"}, here)
    for change in (
        {"processor": "x86_64-0"}, {"hardware": "4 × cpu (abacus)"}, {"platform": "gpu"}, {"threads": 64}, ELSEWHERE
    ):  # fmt: skip
        assert not same_kind(here | change, here)
    earlier = {key: value for key, value in here.items() if key != "threads"}  # those had a thread a device
    assert same_kind(earlier, here)
    assert not same_kind(earlier | {"hardware": here["hardware"].replace("4 ×", "64 ×")}, here)
    card = earlier | {"platform": "gpu", "hardware": "1 × H100 (abacus)"}
    assert same_kind(card, card | {"hardware": "8 × H100 (quipu)", "processor": "other"})
    assert not same_kind(card, card | {"hardware": "1 × H200 (abacus)"})
