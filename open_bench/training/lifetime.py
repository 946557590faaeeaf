"""A lifetime: one agent trained from scratch, as pure functions that may be jitted, vmapped and chained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from open_bench.algorithms.base import AgentState, Algorithm, Learning, Params
from open_bench.environments.wrappers import episode_return
from open_bench.training.keys import stream
from open_bench.training.record import Record, Shown, add, empty_record, is_measured, metrics_of


class LifetimeState(NamedTuple):
    """Everything between two updates."""

    key: Key[Array, ""]
    update: Int[Array, ""]  # updates done
    agent: AgentState
    record: Record


class Progress(NamedTuple):
    """What the host sees between segments."""

    update: Int[Array, ""]
    episode_return: Float[Array, ""]  # NaN before the first episode's end
    loss: Float[Array, ""]  # mean over the last epoch
    finite: Bool[Array, ""]


class Lifetime(NamedTuple):
    """The compiled unit.

    Attributes:
        init: (key, inputs) → state.
        run: (state, inputs, n_updates) → (state, progress). ``n_updates`` is traced, so segments of any length share
            one program.
        acting_params: (state, inputs) → the parameters that the trained agent acts with.
        num_updates: updates in the whole lifetime.
        env_steps_per_update: env steps of each.
        metrics: names of what the record measures.
        diagnostics: names of what is measured beside it; () where diagnosis is off.

    ``inputs`` is whatever pytree the optimizer reads: θ and traced hyperparameters.
    """

    init: Callable[[Array, Any], LifetimeState]
    run: Callable[[LifetimeState, Any, Array], tuple[LifetimeState, Progress]]
    acting_params: Callable[[LifetimeState, Any], Params]
    num_updates: int
    env_steps_per_update: int
    metrics: tuple[str, ...]
    diagnostics: tuple[str, ...]


def make_lifetime(
    algorithm: Algorithm, num_updates: int, learning: Callable[[Any], Learning], diagnose: bool = False
) -> Lifetime:
    """Build a lifetime.

    Args:
        algorithm: how the agent acts and learns, and where.
        num_updates: updates in the whole lifetime.
        learning: inputs → what the algorithm receives of the optimizer; called inside the traced functions.
        diagnose: also record the algorithm's diagnostics, if it has any. Training is the same, bit for bit.
    """
    metrics, diagnostics = metrics_of(algorithm.reports), algorithm.diagnostics if diagnose else ()

    def init(key: Array, inputs: Any) -> LifetimeState:
        agent = algorithm.init(stream(key, "networks"), stream(key, "environment"), learning(inputs))
        return LifetimeState(key, jnp.int32(0), agent, empty_record(metrics, diagnostics, num_updates))

    def one_update(inputs: Any, state: LifetimeState) -> tuple[LifetimeState, Array]:
        key = jax.random.fold_in(state.key, state.update)
        fraction = state.update / jnp.float32(max(1, num_updates - 1))
        wanted = {"measured": is_measured(state.update, num_updates)} if diagnostics else {}
        agent, info = algorithm.update(
            stream(key, "rollout"), stream(key, "learning"), state.agent, fraction, learning(inputs), **wanted
        )
        values = {**info, "episode_return": episode_return(agent.environment.statistics)}
        record = add(state.record, Shown(state.update, num_updates, values))
        return LifetimeState(state.key, state.update + 1, agent, record), info["loss"]

    def run(state: LifetimeState, inputs: Any, n_updates: Array) -> tuple[LifetimeState, Progress]:
        def body(_: Array, carry: tuple[LifetimeState, Array]) -> tuple[LifetimeState, Array]:
            return one_update(inputs, carry[0])

        state, loss = jax.lax.fori_loop(0, n_updates, body, (state, jnp.float32(jnp.nan)))
        returns = episode_return(state.agent.environment.statistics)
        return state, Progress(state.update, returns, loss, state.agent.finite)

    def acting_params(state: LifetimeState, inputs: Any) -> Params:
        return learning(inputs).eval_params(state.agent.optimizer_state, state.agent.params)

    steps = algorithm.config.env_steps_per_update
    return Lifetime(init, run, acting_params, num_updates, steps, metrics, diagnostics)
