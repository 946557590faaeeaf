"""What an optimal policy would get at a point."""

import numpy as np

from open_bench.environments.gridworld.environment import GridworldEnvironment
from open_bench.environments.gridworld.optimal import optimal_return, solvable
from open_bench.experiments.experiment import Experiment
from open_bench.training.keys import stream


def optimal_returns(experiment: Experiment, num_seeds: int) -> np.ndarray | None:
    """Expected returns (num_seeds,) of an optimal policy on each seed's level, by dynamic programming.

    None where they can not be computed: outside gridworlds, where places are drawn anew in every episode or there are
    too many states, and where every environment copy has a level of its own.
    """
    environment = experiment.task.make_environment()
    if not isinstance(environment, GridworldEnvironment):
        return None
    if not solvable(environment.distribution) or environment.level_per_copy:
        return None
    keys = experiment.keys(list(range(num_seeds)))
    return np.array([optimal_return(environment.level(stream(key, "environment"))) for key in keys])
