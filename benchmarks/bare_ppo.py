"""A bare PPO loop, the yardstick for the harness: one file, one agent, Adam, nothing kept but the last return.

It shares no code with open_bench. Settings are those of MinAtar in configs/environments; observations are stored as
booleans, and values are computed after the rollout, as a careful author would.
"""

from collections.abc import Callable
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import optax

GAMMA, LAMBDA, CLIP, ENTROPY, VALUE, MAX_NORM = 0.99, 0.95, 0.2, 0.01, 0.5, 0.5


def init_network(key: jax.Array, sizes: tuple[int, ...], head_gain: float) -> list[Any]:
    gains = [2.0**0.5] * (len(sizes) - 2) + [head_gain]
    keys = jax.random.split(key, len(gains))
    return [
        (jax.nn.initializers.orthogonal(gain)(k, (a, b)), jnp.zeros(b))
        for k, gain, a, b in zip(keys, gains, sizes[:-1], sizes[1:], strict=True)
    ]


def apply_network(layers: list[Any], x: jax.Array, activation: Callable[[jax.Array], jax.Array]) -> jax.Array:
    x = x.astype(jnp.float32)
    for kernel, bias in layers[:-1]:
        x = activation(x @ kernel + bias)
    kernel, bias = layers[-1]
    return x @ kernel + bias


def make_bare_ppo(
    environment_id: str, num_envs: int, num_steps: int, epochs: int, minibatches: int, hidden: tuple[int, ...],
    relu: bool, binary: bool, updates: int, learning_rate: float,
) -> tuple[Callable[..., Any], Callable[..., Any]]:  # fmt: skip
    """``(init(key) → state, train(state, n) → (state, last mean return))``, both to be jitted."""
    environment, env_params = gymnax.make(environment_id)
    size = environment.observation_space(env_params).shape
    inputs, actions = int(jnp.prod(jnp.asarray(size))), environment.num_actions
    activation = jax.nn.relu if relu else jnp.tanh
    store = jnp.bool_ if binary else jnp.float32
    schedule = lambda count: learning_rate * (1.0 - (count // (epochs * minibatches)) / updates)
    optimizer = optax.adam(schedule, eps=1e-5)

    def flat(observation: jax.Array) -> jax.Array:
        return observation.reshape(num_envs, -1).astype(store)

    def init(key: jax.Array) -> Any:
        actor_key, critic_key, reset_key, key = jax.random.split(key, 4)
        params = {
            "actor": init_network(actor_key, (inputs, *hidden, actions), 0.01),
            "critic": init_network(critic_key, (inputs, *hidden, 1), 1.0),
        }
        observation, state = jax.vmap(environment.reset, (0, None))(jax.random.split(reset_key, num_envs), env_params)
        running = jnp.zeros(num_envs)
        state = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state)
        return params, optimizer.init(params), flat(observation), state, running, running, key

    def act(params: Any, carry: Any, key: jax.Array) -> tuple[Any, Any]:
        observation, state, running, last = carry
        action_key, step_key = jax.random.split(key)
        logits = apply_network(params["actor"], observation, activation)
        action = jax.random.categorical(action_key, logits)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]
        keys = jax.random.split(step_key, num_envs)
        after, state, reward, terminated, truncated, _ = jax.vmap(environment.step, (0, 0, 0, None))(
            keys, state, action, env_params
        )
        done = terminated | truncated
        running = running + reward
        last = jnp.where(done, running, last)
        row = (observation, action, log_prob, reward, done.astype(jnp.float32))
        return (flat(after), state, jnp.where(done, 0.0, running), last), row

    def loss(params: Any, batch: Any) -> jax.Array:
        observation, action, old, advantage, target, old_value = batch
        logits = jax.nn.log_softmax(apply_network(params["actor"], observation, activation))
        value = apply_network(params["critic"], observation, activation)[:, 0]
        log_prob = jnp.take_along_axis(logits, action[:, None], 1)[:, 0]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        ratio = jnp.exp(log_prob - old)
        policy = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage).mean()
        clipped = old_value + jnp.clip(value - old_value, -CLIP, CLIP)
        critic = 0.5 * jnp.maximum((value - target) ** 2, (clipped - target) ** 2).mean()
        return policy + VALUE * critic + ENTROPY * (jnp.exp(logits) * logits).sum(-1).mean()

    def learn(carry: Any, rows: Any) -> tuple[Any, None]:
        params, optimizer_state = carry
        gradients = jax.grad(loss)(params, rows)
        norms = {name: optax.tree.norm(tree) for name, tree in gradients.items()}
        gradients = {
            name: jax.tree.map(lambda g, n=norms[name]: g * jnp.minimum(1.0, MAX_NORM / (n + 1e-16)), tree)
            for name, tree in gradients.items()
        }
        changes, optimizer_state = optimizer.update(gradients, optimizer_state)
        return (optax.apply_updates(params, changes), optimizer_state), None

    def update(state: Any) -> Any:
        params, optimizer_state, *carry, key = state
        rollout_key, learn_key, key = jax.random.split(key, 3)
        keys = jax.random.split(rollout_key, num_steps)
        carry, (observation, action, log_prob, reward, done) = jax.lax.scan(
            lambda c, k: act(params, c, k), tuple(carry), keys
        )
        value = apply_network(params["critic"], observation, activation)[..., 0]
        last_value = apply_network(params["critic"], carry[0], activation)[..., 0]

        def backward(later: Any, row: Any) -> tuple[Any, jax.Array]:
            advantage, next_value = later
            r, v, d = row
            advantage = r + GAMMA * next_value * (1 - d) - v + GAMMA * LAMBDA * (1 - d) * advantage
            return (advantage, v), advantage

        start = (jnp.zeros(num_envs), last_value)
        _, advantage = jax.lax.scan(backward, start, (reward, value, done), reverse=True)
        batch = (observation, action, log_prob, advantage, advantage + value, value)
        batch = jax.tree.map(lambda x: x.reshape(num_envs * num_steps, *x.shape[2:]), batch)

        def epoch(learner: Any, key: jax.Array) -> tuple[Any, None]:
            order = jax.random.permutation(key, num_envs * num_steps).reshape(minibatches, -1)
            pick = lambda c, i: learn(c, jax.tree.map(lambda x: x[i], batch))
            return jax.lax.scan(pick, learner, order)[0], None

        (params, optimizer_state), _ = jax.lax.scan(
            epoch, (params, optimizer_state), jax.random.split(learn_key, epochs)
        )
        return params, optimizer_state, *carry, key

    def train(state: Any, n: jax.Array) -> tuple[Any, jax.Array]:
        state = jax.lax.fori_loop(0, n, lambda _, s: update(s), state)
        return state, state[5].mean()

    return init, train
