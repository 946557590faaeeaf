"""OPEN and its variants: golden results of the original, a plain per-tensor reimplementation, and edge cases."""

import functools
import itertools
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_bench.optimizers.learned import open as open_module
from open_bench.optimizers.learned import per_parameter
from open_bench.optimizers.learned.open import CONTEXT, SPECS, VARIANTS, Variant
from open_bench.optimizers.learned.per_parameter import Layout

GOLDEN = Path(__file__).parents[2] / "golden"
SPEC = {spec.name: spec for spec in SPECS}
FILES = {"open_discrete": "open", "open_feedforward": "open-feedforward", "no_features": "no-features"}
SIZES = {"open": 1211, "open-large": 3571, "open-feedforward": 707, "no-features": 514, "open-no-stochasticity": 1194}


def nested(arrays, prefix):
    """The arrays under a prefix as nested dicts."""
    tree = {}
    for path in arrays.files:
        if path.startswith(prefix):
            *parents, leaf = path.removeprefix(prefix).split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = arrays[path]
    return tree


def biggest(tree):
    return max(float(np.max(np.abs(leaf), initial=0.0)) for leaf in jax.tree.leaves(tree))


def difference(left, right):
    return jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64), left, right)


def random_theta(name, seed=0, scale=0.3):
    """A θ with every array filled, so that no part of the rule is idle."""
    shapes = VARIANTS[name][0].shapes()
    vector = scale * np.random.default_rng(seed).normal(size=per_parameter.size_of(shapes))
    return jax.tree.map(jnp.asarray, per_parameter.from_flat(name, shapes, vector))


def read_vector(spec, vector):
    """θ of a flat vector, by the way of a file."""
    (reader,) = spec.learned.readers
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", vector)
        theta, _ = reader.read(Path(folder) / "x.npy")
        np.save(Path(folder) / "y.npy", vector)
        assert reader.write(theta) == (Path(folder) / "y.npy").read_bytes()
    return theta


def make(name, theta=None, **hyperparameters):
    return SPEC[name].build({"optimizer": random_theta(name) if theta is None else theta}, **hyperparameters)


def agent(actor=(3, 4, 2), critic=(3, 4, 1), log_std=True, seed=0):
    """Parameters, gradients and activations of a small agent."""
    generator = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(generator.normal(size=shape), jnp.float32)

    def network(sizes):
        pairs = list(itertools.pairwise(sizes))
        params = {f"dense_{i:02d}": {"kernel": draw(a, b), "bias": draw(b)} for i, (a, b) in enumerate(pairs)}
        return params, {f"dense_{i:02d}": jnp.abs(draw(b)) for i, (_, b) in enumerate(pairs)}

    (actor_params, actor_active), (critic_params, critic_active) = network(actor), network(critic)
    if log_std:
        actor_params["log_std"] = draw(actor[-1])
    params = {"actor": actor_params, "critic": critic_params}
    gradients = jax.tree.map(lambda leaf: draw(*leaf.shape), params)
    return params, gradients, {"actor": actor_active, "critic": critic_active}


def extras(activations, seed=0):
    return {
        "training_fraction": jnp.float32(0.25),
        "epoch_fraction": jnp.float32(0.75),
        "activations": activations,
        "key": jax.random.key(seed),
    }


@functools.cache
def compiled(name, **hyperparameters):
    """One jitted step with θ as an argument, so that tests of the same variant share compilations."""

    def step(theta, gradients, state, params, given):
        return make(name, theta, **hyperparameters).update(gradients, state, params, **given)

    return jax.jit(step)


def run(name, data, theta=None, steps=2, **hyperparameters):
    """The last updates and the final state after some steps on fixed gradients."""
    params, gradients, activations = data
    theta = random_theta(name) if theta is None else theta
    state, step = make(name, theta).init(params), compiled(name, **hyperparameters)
    for seed in range(steps):
        updates, state = step(theta, gradients, state, params, extras(activations, seed))
    return updates, state


@functools.cache
def replay(name):
    """The golden run, a list of (step, our updates, original updates, our parameters, original parameters, state)."""
    arrays = np.load(GOLDEN / f"{name}.npz")
    spec = SPEC[FILES[name]]
    theta = read_vector(spec, arrays["theta_flat"])
    spec.learned.validate(theta)
    optimizer = spec.build({"optimizer": theta})
    params = before = nested(arrays, "params0/")
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    steps = []
    for step in range(16):
        activations = nested(arrays, f"step{step}/activations/")
        updates, state = update(
            nested(arrays, f"step{step}/grads/"),
            state,
            params,
            training_fraction=arrays[f"step{step}/training_proportion"],
            epoch_fraction=arrays[f"step{step}/batch_proportion"],
            activations={
                network: {f"Dense_{i}": layers[f"layer{i}"] for i in range(3)}
                for network, layers in activations.items()
            },
            key=jax.random.key(step),
        )
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        after = nested(arrays, f"step{step}/params/")
        steps.append((step, updates, difference(after, before), params, after, state))
        before = after
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_reproduces_the_original(name):
    for step, updates, expected_updates, params, expected, _ in replay(name):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), params, expected)
        assert biggest(difference(updates, expected_updates)) < 1e-3 * biggest(expected_updates), step


def test_carry_and_momenta_of_the_original():
    arrays = np.load(GOLDEN / "open_discrete.npz")
    states = {step: (params, state) for step, _, _, params, _, state in replay("open_discrete")}
    for step in (0, 15):
        params, state = states[step]
        layout = Layout.of(params)
        for rows, name in ((state.carry, "carry"), (state.momenta, "momentum")):
            expected = nested(arrays, f"step{step}/{name}/")
            for row in range(rows.shape[0]):
                ours = {network: layout.unflatten(rows[row])[network] for network in expected}
                jax.tree.map(
                    lambda a, b, row=row: np.testing.assert_allclose(a, b[..., row], rtol=1e-4, atol=1e-5),
                    ours,
                    expected,
                )


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def plain_open(variant, theta, params, gradients, momenta, carry, training, batch, activations):
    """û before noise and mean, tensor by tensor in float64, straight from the paper; updates ``momenta``, ``carry``."""
    theta = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), theta)
    steps = {}
    for network, layers in params.items():
        forward = [name for name in sorted(layers) if name != "log_std"] + ["log_std"] * ("log_std" in layers)
        for layer, tensors in layers.items():
            proportion = forward.index(layer) / max(len(forward) - 1, 1)
            bare = not isinstance(tensors, dict)
            for part, p in {"": tensors}.items() if bare else tensors.items():
                where = (network, layer, part)
                p = np.asarray(p, np.float64)
                g = np.asarray(gradients[network][layer] if bare else gradients[network][layer][part], np.float64)
                decays = np.asarray(open_module.DECAYS)
                momenta[where] = momenta.get(where, np.zeros((*p.shape, 6))) * decays + (1 - decays) * g[..., None]
                m = momenta[where]
                if variant.signed_log:
                    log = [np.log(np.abs(m) + 1e-13), np.log(np.abs(g) + 1e-13)[..., None]]
                    x = np.concatenate([p[..., None], np.sign(m), log[0], np.sign(g)[..., None], log[1]], -1)
                else:
                    x = np.concatenate([p[..., None], m, g[..., None]], -1)
                x = x / np.sqrt(1e-5 + (x**2).mean(tuple(range(p.ndim))))
                active = activations.get(network, {}).get(layer)
                active = None if active is None else np.asarray(active, np.float64) + 1e-11
                dormancy = 1.0 if active is None else active / active.sum() * active.size
                values = dict(zip(CONTEXT, (training, proportion, batch, dormancy), strict=True))
                context = [np.broadcast_to(values[name], p.shape)[..., None] for name in variant.context]
                x = np.concatenate([x, *context], -1)
                if "gru_params" in theta:
                    cell = theta["gru_params"]
                    h = carry.get(where, np.zeros((*p.shape, cell["hn"]["bias"].size)))
                    read = {name: x @ cell[name]["kernel"] + cell[name]["bias"] for name in ("ir", "iz", "in")}
                    r = sigmoid(read["ir"] + h @ cell["hr"]["kernel"])
                    z = sigmoid(read["iz"] + h @ cell["hz"]["kernel"])
                    n = np.tanh(read["in"] + r * (h @ cell["hn"]["kernel"] + cell["hn"]["bias"]))
                    x = carry[where] = (1 - z) * n + z * h
                mlp = theta["params"]
                for dense, norm in (("layers_0", "layers_1"), ("layers_3", "layers_4")):
                    x = x @ mlp[dense]["kernel"] + mlp[dense]["bias"]
                    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
                    x = np.maximum(x * mlp[norm]["scale"] + mlp[norm]["bias"], 0.0)
                out = x @ mlp["layers_6"]["kernel"] + mlp["layers_6"]["bias"]
                steps[where] = 1e-3 * out[..., 0] * np.exp(1e-3 * out[..., 1])
    return steps


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(
    name=st.sampled_from(["open", "open-large", "open-feedforward", "no-features", "open-no-layer-proportion"]),
    actor=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    critic=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    log_std=st.booleans(),
    seed=st.integers(0, 99),
)
def test_agrees_with_a_plain_implementation(name, actor, critic, log_std, seed):
    params, gradients, activations = agent(actor, critic, log_std, seed)
    params["actor"]["dense_00"]["kernel"] = params["actor"]["dense_00"]["kernel"][None, None]  # convolution-shaped
    gradients["actor"]["dense_00"]["kernel"] = gradients["actor"]["dense_00"]["kernel"][None, None]
    theta = random_theta(name, seed)
    settings_ = {"deterministic": True} if VARIANTS[name][0].stochastic else {}
    updates, _ = run(name, (params, gradients, activations), theta, **settings_)
    momenta, carry = {}, {}
    for _ in range(2):
        steps = plain_open(VARIANTS[name][0], theta, params, gradients, momenta, carry, 0.25, 0.75, activations)
    mean = np.concatenate([step.ravel() for step in steps.values()]).mean()
    for (network, layer, part), step in steps.items():
        ours = updates[network][layer][part] if part else updates[network][layer]
        np.testing.assert_allclose(ours, mean - step, atol=2e-3 * biggest(list(steps.values())))


# --- Noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_noise_has_the_learned_spread_on_the_actor_and_none_on_the_critic():
    params, gradients, activations = agent()
    theta = random_theta("open")
    layout, variant = Layout.of(params), VARIANTS["open"][0]
    noisy = make("open", theta)
    keys = jax.random.split(jax.random.key(7), 4000)
    still, _ = run("open", (params, gradients, activations), theta, steps=1, deterministic=True)

    def flat_update(key):
        given = extras(activations) | {"key": key}
        return layout.flatten(noisy.update(gradients, noisy.init(params), params, **given)[0])

    change = np.asarray(jax.jit(lambda keys: jax.lax.map(flat_update, keys))(keys) - layout.flatten(still))
    change, mask = change[:, layout.mask], layout.mask
    start, stop = layout.span("actor")
    actor = int(mask[start:stop].sum())
    assert (start, actor) == (0, sum(leaf.size for leaf in jax.tree.leaves(params["actor"])))
    np.testing.assert_allclose(change.sum(1), 0.0, atol=1e-6)  # the mean over all parameters is taken out
    shift = change[:, -1:]
    np.testing.assert_allclose(change[:, actor:], np.broadcast_to(shift, change[:, actor:].shape), atol=1e-8)
    noise = -(change[:, :actor] - shift)
    np.testing.assert_allclose(shift[:, 0], noise.sum(1) / change.shape[1], atol=1e-6)

    features = open_module._features(
        variant, layout, layout.flatten(params), (1 - np.asarray(open_module.DECAYS, np.float32))[:, None]
        * layout.flatten(gradients), layout.flatten(gradients),
    )  # fmt: skip
    context = open_module._context(variant, layout, 0.25, 0.75, activations)
    outputs, _ = open_module._apply(open_module._rule(theta), features, context, jnp.zeros((8, layout.columns)))
    spread = 1e-3 * np.abs(np.asarray(outputs[2])[mask][:actor])
    standardized = noise / spread
    np.testing.assert_allclose(standardized.mean(0), 0.0, atol=5 / np.sqrt(4000))
    np.testing.assert_allclose(standardized.std(0), 1.0, atol=0.06)
    correlation = np.corrcoef(standardized.T) - np.eye(actor)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_noise_is_fresh_for_each_key_and_only_then():
    params, gradients, activations = agent()
    state, theta = make("open").init(params), random_theta("open")
    first, again, other = (
        compiled("open")(theta, gradients, state, params, extras(activations, seed))[0] for seed in (1, 1, 2)
    )
    assert biggest(difference(first, again)) == 0.0
    assert biggest(difference(first, other)["actor"]) > 1e-6


@pytest.mark.parametrize("name", ["no-features", "open-no-stochasticity"])
def test_rules_without_noise_need_no_key(name):
    params, gradients, _ = agent()
    optimizer = make(name)
    update = jax.jit(lambda: optimizer.update(gradients, optimizer.init(params), params)[0])
    assert np.isfinite(biggest(update()))


def test_a_missing_key_or_missing_parameters_are_named():
    params, gradients, _ = agent()
    optimizer = make("open")
    with pytest.raises(ValueError, match="key"):
        optimizer.update(gradients, optimizer.init(params), params)
    with pytest.raises(ValueError, match="parameters"):
        optimizer.update(gradients, optimizer.init(params), key=jax.random.key(0))
    with pytest.raises(ValueError, match="meta-parameters"):
        SPEC["open"].build()


# --- Features ------------------------------------------------------------------------------------------------------


def test_layer_proportion_counts_log_std_as_the_last_layer():
    params, _, _ = agent(actor=(3, 4, 4, 2), critic=(3, 1))
    layout = Layout.of(params)
    proportion = layout.unflatten(jnp.asarray(open_module._layer_proportion(layout)))
    found = [np.unique(leaf).tolist() for leaf in jax.tree.leaves(proportion["actor"])]
    np.testing.assert_allclose(np.ravel(found), [0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1], rtol=1e-6)
    assert biggest(proportion["critic"]) == 0.0  # a network of one layer: 0/0 → 0


def test_dormancy_follows_the_output_unit_and_is_one_where_unknown():
    params, _, activations = agent(actor=(3, 4, 2))
    activations["actor"]["dense_00"] = jnp.asarray([0.0, 1.0, 3.0, 0.0])
    activations["actor"]["dense_01"] = jnp.zeros(2)  # fully dormant
    del activations["critic"]["dense_00"]
    layout = Layout.of(params)
    dormancy = layout.unflatten(open_module._dormancy(layout, activations))
    expected = np.asarray([0.0, 1.0, 3.0, 0.0])
    np.testing.assert_allclose(dormancy["actor"]["dense_00"]["bias"], expected, atol=1e-6)
    np.testing.assert_allclose(dormancy["actor"]["dense_00"]["kernel"], np.tile(expected, (3, 1)), atol=1e-6)
    for layer in (dormancy["actor"]["dense_01"], dormancy["actor"]["log_std"], dormancy["critic"]["dense_00"]):
        assert all(np.allclose(leaf, 1.0) for leaf in jax.tree.leaves(layer))


# --- A network with norms --------------------------------------------------------------------------------------------


def q_agent():
    """Parameters, gradients and activations of one network "q" whose hidden layers are followed by norms."""
    params, gradients, activations = agent(actor=(3, 4, 5, 2), log_std=False)
    generator = np.random.default_rng(1)

    def with_norms(tree, new):
        layers = {name.replace("dense_", "layer_") + "_dense": layer for name, layer in tree["actor"].items()}
        norms = {f"layer_{i:02d}_norm": {"scale": new(width), "bias": new(width)} for i, width in enumerate((4, 5))}
        return {"q": dict(sorted({**layers, **norms}.items()))}

    draw = lambda size: jnp.asarray(generator.normal(size=size), jnp.float32)
    active = {name.replace("dense_", "layer_") + "_dense": value for name, value in activations["actor"].items()}
    return with_norms(params, draw), with_norms(gradients, draw), {"q": active}


def test_a_norm_is_of_the_block_of_its_dense_layer():
    """Layer proportions count blocks, and a norm's dormancy is that of the units it normalizes."""
    params, _, activations = q_agent()
    layout = Layout.of(params)
    proportion = layout.unflatten(jnp.asarray(open_module._layer_proportion(layout)))["q"]
    found = {name: np.unique(np.concatenate(jax.tree.leaves(jax.tree.map(jnp.ravel, layer)))).tolist()
             for name, layer in proportion.items()}  # fmt: skip
    assert found == {
        "layer_00_dense": [0.0], "layer_00_norm": [0.0], "layer_01_dense": [0.5], "layer_01_norm": [0.5],
        "layer_02_dense": [1.0],
    }  # fmt: skip
    named = {"q": activations["q"] | {f"layer_0{i}_norm": activations["q"][f"layer_0{i}_dense"] for i in range(2)}}
    for told in (activations, named):  # the algorithm may name the norm too
        dormancy = layout.unflatten(open_module._dormancy(layout, told))["q"]
        for i in range(2):
            active = np.asarray(activations["q"][f"layer_0{i}_dense"]) + 1e-11
            for leaf in (dormancy[f"layer_0{i}_norm"]["scale"], dormancy[f"layer_0{i}_dense"]["bias"]):
                np.testing.assert_allclose(leaf, active / active.sum() * active.size, rtol=1e-6)


def test_other_names_of_layers_are_blocks_by_themselves():
    params, _, _ = agent()
    layout = Layout.of(params)
    assert layout.layer_blocks == layout.layers
    golden_names = {"actor": {"Dense_0": {"kernel": jnp.ones((2, 2))}, "Dense_1": {"kernel": jnp.ones((2, 2))}}}
    assert Layout.of(golden_names).layer_blocks == Layout.of(golden_names).layers


@pytest.mark.slow
def test_noise_goes_to_the_network_that_acts():
    params, gradients, activations = q_agent()
    theta, state = random_theta("open"), make("open").init(params)

    @functools.partial(jax.jit, static_argnums=0)
    def update(network, gradients, state, params, given):
        return make("open", theta).update(gradients, state, params, **given, acting_network=network)[0]

    def step(network, seed):
        return update(network, gradients, state, params, extras(activations, seed))

    assert biggest(difference(step("q", 0), step("q", 1))) > 1e-6
    assert biggest(difference(step("actor", 0), step("actor", 1))) == 0.0  # there is none
    params, gradients, activations = agent()
    state = make("open").init(params)
    critic = difference(step("critic", 0), step("critic", 1))
    shift = np.ravel(critic["actor"]["log_std"])[0]  # only the mean that is taken out moves the other network
    np.testing.assert_allclose(
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(critic["actor"])]), shift, atol=1e-8
    )
    assert biggest(critic["critic"]) > 1e-6


def test_an_activation_of_another_width_is_an_error_that_names_the_layer():
    params, gradients, activations = agent()
    activations["actor"]["dense_00"] = jnp.ones(7)
    with pytest.raises(ValueError, match=r"actor/dense_00.*\(7,\).*\(4,\)"):
        run("open", (params, gradients, activations))


@pytest.mark.parametrize("feature", CONTEXT)
def test_an_ablation_is_open_without_that_input(feature):
    """OPEN with the feature's weights at 0 and the ablation with those weights removed are the same rule."""
    name = "open-no-" + feature.replace("_", "-")
    full, row = random_theta("open"), 15 + CONTEXT.index(feature)

    def edit(change):
        cell = dict(full["gru_params"])
        for gate in ("ir", "iz", "in"):
            cell[gate] = cell[gate] | {"kernel": change(cell[gate]["kernel"])}
        return full | {"gru_params": cell}

    removed, zeroed = edit(lambda k: jnp.delete(k, row, axis=0)), edit(lambda k: k.at[row].set(0.0))
    SPEC[name].learned.validate(removed)
    assert per_parameter.size_of(VARIANTS[name][0].shapes()) == 1211 - 24
    data = agent()
    ablated, _ = run(name, data, removed)
    assert biggest(difference(ablated, run("open", data, zeroed)[0])) < 1e-7
    assert biggest(difference(ablated, run("open", data, full)[0])) > 1e-6


def test_without_stochasticity_is_open_without_the_noise_output():
    full = random_theta("open")
    head = {part: array[..., :2] for part, array in full["params"]["layers_6"].items()}
    fewer = full | {"params": full["params"] | {"layers_6": head}}
    SPEC["open-no-stochasticity"].learned.validate(fewer)
    data = agent()
    updates, _ = run("open-no-stochasticity", data, fewer)
    assert biggest(difference(updates, run("open", data, full, deterministic=True)[0])) < 1e-8


def test_layer_names_do_not_matter():
    params, gradients, activations = agent()
    names = {"dense_00": "torso", "dense_01": "zz_head", "log_std": "log_std"}  # log_std no longer sorts last
    rename = lambda tree: {net: {names[layer]: leaf for layer, leaf in layers.items()} for net, layers in tree.items()}
    original, _ = run("open", (params, gradients, activations), deterministic=True)
    renamed, _ = run("open", tuple(map(rename, (params, gradients, activations))), deterministic=True)
    assert biggest(difference(rename(original), renamed)) < 1e-8


# --- θ -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPEC)
def test_theta_begins_at_zero_has_the_published_size_and_moves_nothing(name):
    spec = SPEC[name]
    theta = spec.learned.init(jax.random.key(0))
    spec.learned.validate(theta)
    assert sum(leaf.size for leaf in jax.tree.leaves(theta)) == SIZES.get(name, 1187)
    assert all(leaf.dtype == jnp.float32 and not leaf.any() for leaf in jax.tree.leaves(theta))
    assert biggest(run(name, agent(), theta)[0]) == 0.0


@pytest.mark.parametrize("name", SPEC)
def test_flat_vectors_round_trip_and_wrong_sizes_are_named(name):
    size = SIZES.get(name, 1187)
    vector = np.arange(size, dtype=np.float32)
    theta = read_vector(SPEC[name], vector)
    np.testing.assert_array_equal(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(theta)]), vector)
    with pytest.raises(ValueError, match=rf"{name}.*\({size},\).*\({size + 1},\)"):
        read_vector(SPEC[name], np.zeros(size + 1, np.float32))
    with pytest.raises(ValueError, match="expected a vector"):
        read_vector(SPEC[name], vector[None])


def test_a_vector_of_another_variant_says_which():
    with pytest.raises(ValueError, match="open-large"):
        read_vector(SPEC["open"], np.zeros(3571))


def test_golden_theta_is_read_in_the_published_order():
    arrays = np.load(GOLDEN / "open_discrete.npz")
    theta = read_vector(SPEC["open"], arrays["theta_flat"])
    assert biggest(difference(theta["gru_params"], nested(arrays, "theta/gru_params/"))) == 0.0
    named = {name: layer for name, layer in nested(arrays, "theta/").items() if name.startswith("layers")}
    assert biggest(difference(theta["params"], named)) == 0.0


def test_validate_names_the_array_that_does_not_fit():
    validate, theta = SPEC["open"].learned.validate, random_theta("open")
    validate(random_theta("open-large"))  # sizes are free as long as they agree
    without = {name: layer for name, layer in theta["params"].items() if name != "layers_4"}
    with pytest.raises(ValueError, match="layers_4"):
        validate(theta | {"params": without})
    with pytest.raises(ValueError, match=r"params/layers_6/bias.*\(2,\).*\(3,\)"):
        validate(
            theta | {"params": theta["params"] | {"layers_6": theta["params"]["layers_6"] | {"bias": np.zeros(2)}}}
        )
    with pytest.raises(ValueError, match="unknown array extra"):
        validate(theta | {"extra": np.zeros(1)})
    with pytest.raises(ValueError, match="gru_params"):
        validate(random_theta("open-feedforward"))
    with pytest.raises(ValueError):
        validate({})


@pytest.mark.skipif("OPEN_BENCH_REFERENCE_WEIGHTS" not in os.environ, reason="OPEN_BENCH_REFERENCE_WEIGHTS is not set")
def test_published_weights_load_and_step():
    files = sorted(Path(os.environ["OPEN_BENCH_REFERENCE_WEIGHTS"]).glob("*.npy"))
    assert files
    for file in files:
        vector = np.load(file, allow_pickle=False)
        name = next(name for name in ("open", "open-large") if SIZES[name] == vector.size)
        updates, _ = run(name, agent(), read_vector(SPEC[name], vector))
        assert 0.0 < biggest(updates) < 1.0


# --- Contracts and edges -------------------------------------------------------------------------------------------

ODD_TREES = {
    "scalar leaf": {"actor": {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "scale": jnp.float32(0.5)}},
    "zero-size leaf": {"actor": {"a": {"kernel": jnp.ones((0, 3)), "bias": jnp.ones(3)}}, "critic": {}},
    "one parameter": {"actor": {"log_std": jnp.ones(1)}},
    "critic only": {"critic": {"a": {"kernel": jnp.ones((2, 1))}}},
    "half precision": {"actor": {"a": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}}},
    "shallow": {"w": jnp.ones(3)},
    "bare array": jnp.ones(3),
    "empty": {"actor": {}},
    "exact blocks": {"actor": {"a": {"kernel": jnp.ones((64, 2)), "bias": jnp.ones(64)}}},
}


@pytest.mark.parametrize("name", ["open", "open-feedforward", "no-features"])
@pytest.mark.parametrize("tree", ODD_TREES)
def test_odd_trees(name, tree):
    params = ODD_TREES[tree]
    updates, state = run(name, (params, params, None))
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    described = lambda tree: [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)]
    assert described(updates) == described(params)
    assert np.isfinite(biggest(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (updates, state))))


@pytest.mark.parametrize("name", SPEC)
def test_zero_gradients_and_dormant_units_are_finite(name):
    params, gradients, activations = agent()
    nothing = jax.tree.map(jnp.zeros_like, gradients)
    updates, state = run(name, (params, nothing, jax.tree.map(jnp.zeros_like, activations)))
    assert np.isfinite(biggest((updates, state)))


def test_nan_gradients_reach_the_updates():
    params, gradients, activations = agent()
    gradients["actor"]["dense_00"]["bias"] = gradients["actor"]["dense_00"]["bias"].at[0].set(jnp.nan)
    updates, _ = run("open", (params, gradients, activations))
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(updates))  # through the mean over all parameters


def test_one_compilation_and_stable_state():
    params, gradients, activations = agent()
    optimizer, traces = make("open"), []

    @jax.jit
    def update(state, params, given):
        traces.append(1)
        return optimizer.update(gradients, state, params, **given, loss=jnp.float32(0.0), anything=None)

    state = optimizer.init(params)
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    for step in range(3):
        updates, state = update(state, params, extras(activations, step))
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == described
        params = jax.tree.map(jnp.add, params, updates)
    assert len(traces) == 1


@pytest.mark.slow
def test_strict_promotion_and_scan():
    params, gradients, activations = agent()

    def lifetime(theta, keys):
        optimizer = make("open", theta)

        def step(carry, key):
            params, state = carry
            updates, state = optimizer.update(gradients, state, params, **extras(activations) | {"key": key})
            return (jax.tree.map(jnp.add, params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    with jax.numpy_dtype_promotion("strict"):
        trained = jax.jit(lifetime)(random_theta("open"), jax.random.split(jax.random.key(0), 3))
    assert np.isfinite(biggest(trained))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["open", "no-features"])
def test_a_batch_of_thetas_equals_a_loop(name):
    data = agent()
    thetas = [random_theta(name, seed) for seed in range(3)]

    def one(theta):
        optimizer = make(name, theta)
        params, gradients, activations = data
        return optimizer.update(gradients, optimizer.init(params), params, **extras(activations))[0]

    together = jax.jit(jax.vmap(one))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *thetas))
    for i, theta in enumerate(thetas):
        alone = jax.jit(one)(theta)
        assert biggest(difference(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone)) < 1e-6 * 1e3 * biggest(
            alone
        )


def test_layout_round_trips_and_pads_with_zeros():
    params, _, _ = agent()
    layout = Layout.of(params)
    flat = layout.flatten(params)
    assert flat.shape == (layout.columns,) and layout.columns % per_parameter.LANES == 0
    assert layout.mask.sum() == layout.count == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert not np.asarray(flat)[~layout.mask].any()
    assert biggest(difference(layout.unflatten(flat), params)) == 0.0


def test_variant_defaults_are_open():
    assert VARIANTS["open"][0] == Variant() and Variant().inputs == 19
