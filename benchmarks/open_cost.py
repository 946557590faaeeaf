"""Where an update of OPEN spends its time on one CPU device, and what a lifetime would cost if nothing were wasted.

    python benchmarks/open_cost.py                       Breakout and CartPole

`parts` are timed by themselves: the products and the elementwise functions of its networks, the features, the noise.
Their sum is a floor for this arithmetic in XLA's CPU backend: a product can't be faster than alone, and no intermediate
result of one part reaches the next for less. The last lines say what a lifetime costs in units of Adam's, measured and
by the floor. All timings alternate, the shortest of each counts, in processor time.
"""

import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table
from timed import experiment, timing

from open_bench.optimizers.learned import open as rule_of_open
from open_bench.optimizers.learned.open import Variant, open_optimizer, random_theta
from open_bench.optimizers.learned.per_parameter import Layout, gru_step, matmul
from open_bench.training.devices import start
from open_bench.training.mesh import compile_program

REPEATS, INSIDE = 15, 20  # timings of each part, and steps in a timing
Parts = dict[str, Callable[[], float]]


def seconds(run: Callable[[], Any]) -> float:
    """Processor time of a call."""
    begin = time.process_time()
    jax.block_until_ready(run())
    return time.process_time() - begin


def looped(step: Callable[[Any], Any], carry: Any) -> Callable[[], float]:
    """A function that takes the step ``INSIDE`` times: seconds of one."""
    compiled = jax.jit(lambda carry: jax.lax.fori_loop(0, INSIDE, lambda _, c: step(c), carry)).lower(carry).compile()
    compiled(carry)
    return lambda: seconds(lambda: compiled(carry)) / INSIDE


def shortest(parts: Parts) -> dict[str, float]:
    """The shortest of ``REPEATS`` timings of each, alternated."""
    found = [{name: run() for name, run in parts.items()} for _ in range(REPEATS)]
    return {name: min(each[name] for each in found) for name in parts}


def parts_of(params: Any) -> Parts:
    """An update, and what it consists of, on an agent's parameters."""
    variant, layout, key = Variant(), Layout.of(params), jax.random.key(0)
    theta = random_theta(variant, key)
    rule, count = rule_of_open._rule(theta), layout.columns
    cell = rule.cell
    assert cell is not None
    vector = jax.random.normal(key, (count,))
    features, carry, hidden = (jnp.tile(vector, (rows, 1)) for rows in (15, 8, 16))
    momenta, actor = 0.1 * features[:6], vector[slice(*layout.span("actor"))]
    products = [(cell.input.kernel[:, :15], features), (cell.hidden, carry), (rule.hidden[0].kernel, carry),
                (rule.hidden[1].kernel, hidden), (rule.head.kernel, hidden)]  # fmt: skip

    def product(kernel: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return lambda rows: rows.at[0, :1].set(matmul(kernel, rows)[0, :1])  # as little beside it as may be

    def network(carried: Any) -> Any:
        carry, features = carried
        carry = gru_step(cell, features, carry, [0.1, features[0], 0.2, features[0]])
        return carry, features.at[0, :1].add(1e-9 * rule_of_open._read_out(rule, carry, []).sum())

    def update(carried: Any) -> Any:
        params, state, key = carried
        gradients = jax.tree.map(lambda leaf: 0.01 * leaf, params)
        updates, state = optimizer.update(gradients, state, params, key=key, activations=active)
        return jax.tree.map(jnp.add, params, updates), state, jax.random.fold_in(key, 1)

    def make_features(carried: Any) -> Any:
        vector, momenta = carried
        momenta = rule_of_open._advance(momenta, 0.01 * vector)
        rows = rule_of_open._features(variant, layout, vector, momenta, 0.01 * vector)
        return vector + 1e-9 * rows.sum(0), momenta

    def draw(carried: Any) -> Any:
        vector, key = carried
        return vector + jax.random.normal(key, vector.shape), jax.random.fold_in(key, 1)

    active = {
        network: {layer: jnp.ones(leaves["bias"].shape) for layer, leaves in layers.items() if "bias" in leaves}
        for network, layers in params.items()
    }
    optimizer = open_optimizer(theta, None, variant=variant)  # type: ignore[arg-type]
    norm = [jnp.ones((16, 1))] * 3
    return {
        "update": looped(update, (params, optimizer.init(params), key)),
        "network": looped(network, (carry, features)),
        "features and momenta": looped(make_features, (vector, momenta)),
        "noise": looped(draw, (actor, key)),
        "products of the network": _sum([looped(product(kernel), rows) for kernel, rows in products]),
        "its tanh, LayerNorm, exp": _sum([
            looped(jnp.tanh, jnp.tile(vector, (24, 1))),
            *2 * [looped(lambda rows: rule_of_open._norm_relu(rows, *norm), hidden)],
            looped(jnp.exp, -jnp.abs(vector)),
        ]),
    }  # fmt: skip


def _sum(runs: list[Callable[[], float]]) -> Callable[[], float]:
    return lambda: sum(run() for run in runs)


FLOOR = ("features and momenta", "noise", "products of the network", "its tanh, LayerNorm, exp")


def lifetime(name: str, environment: str, device: Any, updates: int) -> Callable[[], float]:
    """A function that times updates of the agent: processor seconds."""
    chosen = experiment(name, environment)
    run = timing(chosen, compile_program(chosen.make_lifetime(), chosen.inputs, [device], 1, 1), 1, updates)
    return lambda: seconds(run)


@click.command()
@click.option("--env", "-e", "environments", multiple=True, default=("breakout", "cartpole"), show_default=True)
def main(environments: tuple[str, ...]) -> None:
    """Print the tables."""
    device = start(1)[0]
    table = Table("", *environments, box=None, title="milliseconds of one CPU device")
    columns = []
    for environment in environments:
        task = experiment("adam", environment).task
        params = jax.tree.map(lambda shape: 0.1 * jax.random.normal(jax.random.key(1), shape.shape), task.params())
        times = shortest(parts_of(params))
        updates = max(1, 20_000 // task.settings.env_steps_per_update)
        runs = {name: lifetime(name, environment, device, updates) for name in ("adam", "open@init")}
        whole = shortest(runs)
        steps = updates * task.settings.training_length(1).optimizer_steps
        floor = sum(times[name] for name in FLOOR)
        columns.append([
            *(f"{1e3 * value:.3f}" for value in times.values()),
            f"{1e3 * floor:.3f}",
            f"{whole['open@init'] / whole['adam']:.2f}",
            f"{1 + steps * floor / whole['adam']:.2f}",
        ])  # fmt: skip
    names = [*times, "floor: " + ", ".join(FLOOR), "lifetime × Adam, measured", "lifetime × Adam, by the floor"]
    for name, *values in zip(names, *columns, strict=True):
        table.add_row(name, *values)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
