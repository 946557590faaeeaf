"""Settings of meta-training: those that ship, and those that are refused."""

import pytest

from open_bench.config import build, shipped
from open_bench.environments.registry import load_environment
from open_bench.errors import UserError
from open_bench.meta_training.spec import MetaConfig, load_meta


def test_studies_ship_and_the_published_ones_are_the_papers() -> None:
    studies = {name: load_meta(name) for name in shipped("meta")}
    assert {"open", "lpo", "open-cartpole", "open-gridworld", "open-gridworld-small"} <= set(studies)
    assert all(study.name == name and study.description for name, study in studies.items())
    published = {"population": 64, "sigma": 0.03, "learning_rate": 0.03, "b1": 0.99, "rollouts": 1,
                 "fitness": "final_return", "strategy": "Open_ES", "budget": "full", "env_steps": None}  # fmt: skip
    for name in ("open-gridworld", "open-gridworld-small"):
        assert (studies[name].task_sampling, studies[name].environments) == ("antithetic", ("gridworld/rand_all",))
    assert load_environment("gridworld/rand_all").budget_steps("full") == 30_000_000
    for name, decay, generations in (("open", 0.999, 500), ("open-gridworld", 0.999, 500), ("lpo", 0.99, 800)):
        found = studies[name].model_dump()
        assert published.items() <= found.items()
        assert (found["sigma_decay"], found["learning_rate_decay"], found["generations"]) == (decay, decay, generations)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"popluation": 4}, r"mine\.toml: unknown key 'popluation'\. Did you mean population"),
        ({"population": 5}, "population = 5 is odd, and Open_ES samples antithetic pairs: take 4 or 6"),
        ({"sigma": 0.0}, "sigma = 0.0: Input should be greater than 0"),
        ({"environments": ["cartpole"], "held_out": ["cartpole"]}, "'cartpole' is both trained on and held out"),
        ({"held_out": ["catch"]}, "held_out is evaluated every evaluate_every generations, and that is 0: never"),
        ({"root_seed": 1_000_000}, "root_seed: 1000000 is a root seed kept for baseline returns and tuning"),
    ],
)
def test_bad_settings_are_refused_with_the_file_and_the_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(MetaConfig, values, "mine.toml")


def test_an_odd_population_suits_a_strategy_without_pairs() -> None:
    assert MetaConfig(population=5, strategy="SNES").population == 5
