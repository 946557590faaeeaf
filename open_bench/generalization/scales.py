"""What an optimal policy would get at a point."""

import numpy as np

from open_bench.experiments.experiment import Experiment
from open_bench.training.keys import stream


def optimal_returns(experiment: Experiment, num_seeds: int) -> np.ndarray | None:
    """Expected returns (num_seeds,) of an optimal policy on each seed's level; None where they are not known."""
    environment, returns = experiment.task.make_environment(), []
    for key in experiment.keys(list(range(num_seeds))):
        value = environment.optimal_return(environment.level(stream(key, "environment")))
        if value is None:
            return None
        returns.append(value)
    return np.array(returns)
