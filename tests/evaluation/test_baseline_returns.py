"""Stored returns of Adam and of the random policy, as files."""

import pytest
from synthetic import NAN, measured

from open_bench import files
from open_bench.errors import UserError
from open_bench.evaluation import baseline_returns
from open_bench.evaluation.baseline_returns import (
    BaselineReturn,
    EnvironmentReturns,
    ReturnInterval,
    load_baseline_returns,
    read_returns,
    returns_of,
    write_returns,
)
from open_bench.optimizers.resolve import resolve
from open_bench.training.task import make_task


def published(**fields) -> BaselineReturn:
    values = {
        "final_return": ReturnInterval(mean=50.0822),
        "origin": "published",
        "optimizer": "adam",
        "hyperparameters": {"learning_rate": 0.01, "nesterov": False, "note": 'a "b"\n', "steps": 3},
        "source": "Goldie et al. 2024",
    }
    return BaselineReturn(**values | fields)


def test_returns_survive_being_written_and_the_bytes_are_stable(tmp_path):
    budgets = {"steps-500000": measured(21.25, "adam"), "full": published(), "odd name": measured(1e-7, "adam")}
    returns = EnvironmentReturns(environment="breakout", random=measured(0.5), pqn={"full": published()}, ppo=budgets)
    path = write_returns(tmp_path, returns)
    first = path.read_bytes()
    assert path == tmp_path / "breakout.toml"
    read = read_returns(tmp_path, "breakout")
    assert read == returns
    assert read.adam("ppo", "full").hyperparameters == published().hyperparameters
    assert [type(value) for value in read.adam("ppo", "full").hyperparameters.values()] == [float, bool, str, int]
    other = EnvironmentReturns(
        environment="breakout", random=measured(0.5), ppo=dict(reversed(budgets.items())), pqn={"full": published()}
    )
    write_returns(tmp_path, other)
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["breakout.toml"]


def test_adding_an_entry_leaves_the_others():
    first = EnvironmentReturns(environment="a", random=measured(1.0), ppo={"quick": measured(2.0, "adam")})
    both = first.with_adam("ppo", "full", published()).with_adam("pqn", "quick", measured(3.0, "adam"))
    assert both.adam("ppo", "quick") == first.adam("ppo", "quick")
    assert both.adam("pqn", "quick").final_return.mean == 3.0
    assert (first.adam("ppo", "full"), both.adam("pqn", "full")) == (None, None)
    assert both.random == first.random


def test_variants_have_the_random_policys_returns_and_none_of_adam():
    known = {"a": EnvironmentReturns(environment="a", random=measured(1.0), ppo={"quick": measured(2.0, "adam")})}
    assert returns_of(known, "a") == known["a"]
    assert returns_of(known, "a[num_steps=16]").random == measured(1.0)
    assert returns_of(known, "a[num_steps=16]").adam("ppo", "quick") is None
    assert returns_of(known, "b").random is None


def test_the_documented_format_is_the_one_that_is_read(tmp_path):
    """The example in the module's docstring is a valid file."""
    example = [line[4:] for line in baseline_returns.__doc__.splitlines() if line.startswith("    ") or not line]
    (tmp_path / "breakout.toml").write_text("\n".join(example))
    returns = load_baseline_returns(tmp_path)["breakout"]
    assert returns.random.final_return == ReturnInterval(mean=0.52, low=0.49, high=0.55)
    assert returns.adam("ppo", "full").final_return == ReturnInterval(mean=50.0822)
    assert returns.adam("ppo", "quick").hyperparameters == {"learning_rate": 0.01, "b1": 0.9, "b2": 0.99}


def test_what_ships_can_be_read_and_is_as_it_would_be_written(tmp_path):
    shipped = load_baseline_returns()
    assert {"cartpole", "breakout", "gridworld/labyrinth"} <= set(shipped)
    for name, returns in shipped.items():
        assert returns.random is not None or returns.algorithms
        written = write_returns(tmp_path, returns)
        assert written.read_bytes() == (files.baselines_dir() / "returns" / f"{name}.toml").read_bytes()


def test_what_was_measured_of_adam_has_the_settings_that_ship():
    """Else a score of 1 would be an Adam that nobody gets: tune --ship and tooling/measure_returns.py go together."""
    stale = [
        f"{name} {algorithm} {budget}: {adam.hyperparameters}, and {ships} ship"
        for name, known in load_baseline_returns().items()
        for algorithm, budgets in known.algorithms.items()
        for budget, adam in budgets.items()
        if adam.origin == "measured"
        and adam.hyperparameters
        != (ships := dict(resolve("adam", make_task(name, algorithm=algorithm, budget=budget)).hyperparameters))
    ]
    assert stale == []


def test_load_baseline_returns_finds_nested_names_and_leaves_out_the_unknown(tmp_path):
    write_returns(tmp_path, EnvironmentReturns(environment="brax/ant", random=measured(1.0)))
    assert list(load_baseline_returns(tmp_path)) == ["brax/ant"]
    with pytest.raises(UserError, match="no such folder"):
        load_baseline_returns(tmp_path / "absent")
    with pytest.raises(ValueError, match="does not name an environment"):
        write_returns(tmp_path, EnvironmentReturns(environment="../ant", random=measured(1.0)))


RANDOM = (
    "final_return = {mean = 1, low = 0, high = 2}\nmean_return = {mean = 1, low = 0, high = 2}\n"
    'num_seeds = 4\nenv_steps = 10\norigin = "measured"\nrevision = "abc"\n'
)
OF_RANDOM = 'environment = "a"\n[random]\n' + RANDOM


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('environment = "b"', "environment = 'b' in the file of 'a'"),
        ("[random]\n" + RANDOM, "key 'environment' is missing"),
        ('environment = "a"\nnote = 1', "note = 1: "),
        ('environment = "a"\nrandom = 3', "random = 3: "),
        (
            OF_RANDOM.replace("env_steps = 10", "steps = 10"),
            "unknown key 'random.steps'",
        ),
        (OF_RANDOM.replace("low = 0", "low = 1.5"), "random.final_return: low ≤ mean"),
        (
            OF_RANDOM.replace("mean = 1,", "mean = nan,"),
            "random.final_return.mean = nan: .* finite",
        ),
        (
            OF_RANDOM.replace("mean = 1,", 'mean = "1",'),
            "random.final_return.mean = '1': .* number",
        ),
        (
            OF_RANDOM.replace(", high = 2", ""),
            "random.final_return: an interval needs both low and high",
        ),
        (
            OF_RANDOM.replace("num_seeds = 4\n", ""),
            "random: a measured return needs num_seeds, env_steps",
        ),
        (OF_RANDOM.replace("= 4", "= 0"), "random.num_seeds = 0: "),
        ('environment = "a"\n[random]\noptimizer = "sgd"\n' + RANDOM, "random: the random policy has no optimizer"),
        ('environment = "a"\n[ppo.quick]\n' + RANDOM, "ppo.quick: the optimizer is not named"),
        (
            'environment = "a"\n[ppo.full]\noptimizer = "adam"\nfinal_return = {mean = 1}\norigin = "published"',
            "ppo.full: a published return needs a source",
        ),
        (
            'environment = "a"\n[ppo.full]\noptimizer = "adam"\nfinal_return = {mean = 1}\norigin = "measured"',
            "ppo.full: a measured final_return needs mean, low and high",
        ),
        ('environment = "a"\n[ppo]\n' + RANDOM, "ppo.num_seeds = 4: "),  # no table of a budget
        (
            OF_RANDOM + "hyperparameters = {b1 = nan}",
            "random.hyperparameters.b1: nan is",
        ),
        (OF_RANDOM.replace("measured", "guessed"), "random.origin = 'guessed'"),
        ("environment = ", "Invalid value"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_file_and_key(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_returns(tmp_path, "a")
    assert "a.toml" in str(error.value)


@pytest.mark.parametrize("value", [NAN, float("inf"), None, [1], {"a": 1}])
def test_a_hyperparameter_that_toml_can_not_hold_is_refused(value):
    with pytest.raises(ValueError, match="is no bool, integer, finite float or string"):
        published(hyperparameters={"b1": value})
