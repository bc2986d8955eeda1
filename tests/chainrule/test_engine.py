"""The engine that chains the rules."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from bpresearch import autodiff, chainrule
from bpresearch.functional import split
from bpresearch.models import Residual, flatten

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")

ENGINES = {"autodiff": autodiff, "chainrule": chainrule}
ACTIVATIONS = {
    "sigmoid": nnx.sigmoid,
    "tanh": nnx.tanh,
    "relu": nnx.relu,
    "leaky_relu": partial(nnx.leaky_relu, negative_slope=0.2),
    "elu": nnx.elu,
    "gelu": nnx.gelu,
    "gelu_exact": partial(nnx.gelu, approximate=False),
    "silu": nnx.silu,
    "softplus": nnx.softplus,
    "identity": nnx.identity,
}
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


@pytest.fixture
def network(random_model):
    """A small network with everything in it, and a batch."""

    def build():
        rngs = nnx.Rngs(0)
        pool = partial(nnx.max_pool, window_shape=(2,), strides=(2,))
        conv = nnx.Conv(2, 3, (3,), rngs=rngs)
        branch = Residual(nnx.Sequential(nnx.Linear(6, 6, rngs=rngs), nnx.tanh))
        return nnx.Sequential(conv, nnx.relu, pool, flatten, branch, nnx.Linear(6, 3, rngs=rngs))

    return random_model(build)


@pytest.fixture
def batch(normal):
    return normal(1, 5, 4, 2), jnp.array([0, 2, 1, 1, 0])


@st.composite
def networks(draw):
    """Widths, activations and places of residual branches of a network of dense layers."""
    widths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    names = [draw(st.sampled_from(sorted(ACTIVATIONS))) for _ in widths]
    branches = [draw(st.booleans()) for _ in widths]
    return widths, names, branches, draw(st.booleans())


@settings(max_examples=15)
@given(network=networks(), inputs=st.integers(1, 3), classes=st.integers(1, 3), seed=st.integers(0, 9))
def test_random_networks(network, inputs, classes, seed, random_model, normal, assert_engines_agree):
    widths, names, branches, use_bias = network

    def build():
        rngs, before, layers = nnx.Rngs(0), inputs, []
        for width, name, has_branch in zip(widths, names, branches, strict=True):
            layers += [nnx.Linear(before, width, use_bias=use_bias, rngs=rngs), ACTIVATIONS[name]]
            if has_branch:
                branch = nnx.Linear(width, width, rngs=rngs)
                layers.append(Residual(nnx.Sequential(ACTIVATIONS[name], branch)))
            before = width
        return nnx.Sequential(*layers, nnx.Linear(before, classes, rngs=rngs))

    model, x = random_model(build, seed), normal(seed, 4, inputs)
    y = jnp.arange(4) % classes
    assert_engines_agree(model, cross_entropy, x, y, tolerance=1e-12)


@settings(max_examples=8)
@given(network=networks(), seed=st.integers(0, 9))
def test_random_networks_by_differences(
    network, seed, random_model, normal, assert_matches_finite_differences
):
    widths, names, _, use_bias = network

    def build():
        rngs, before, layers = nnx.Rngs(0), 2, []
        for width, name in zip(widths, names, strict=True):
            layers += [nnx.Linear(before, width, use_bias=use_bias, rngs=rngs), ACTIVATIONS[name]]
            before = width
        return nnx.Sequential(*layers)

    x, y = normal(seed, 3, 2), normal(seed + 10, 3, widths[-1])
    assert_matches_finite_differences(random_model(build, seed), optax.squared_error, x, y)


def test_loss_and_gradient_of_a_model(network, batch):
    loss, grads = chainrule.value_and_grad(network, cross_entropy, *batch)
    expected_loss, expected = autodiff.value_and_grad(network, cross_entropy, *batch)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-14)
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-15), grads, expected)


def test_rounding(network, batch, assert_sound_in):
    for dtype in (jnp.float32, jnp.bfloat16):
        assert_sound_in(dtype, network, cross_entropy, *batch)


def test_extreme_inputs(network, batch):
    """Large inputs leave gradients finite in single precision, in both engines."""
    graphdef, params, state = split(network)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    x = (1e3 * jnp.sign(batch[0])).astype(jnp.float32)
    for engine in ENGINES.values():
        gradient = jax.jit(engine.gradient(graphdef, cross_entropy, inputs=True))
        found = gradient(params, state, (x, batch[1]))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("name", ENGINES)
def test_without_inputs_the_gradient_is_that_of_the_parameters(name, network, batch):
    graphdef, params, state = split(network)
    gradient = ENGINES[name].gradient
    (loss, _), grads = jax.jit(gradient(graphdef, cross_entropy))(params, state, batch)
    (same, _), (both, x_bar) = jax.jit(gradient(graphdef, cross_entropy, inputs=True))(params, state, batch)
    assert x_bar.shape == batch[0].shape
    np.testing.assert_allclose(loss, same, rtol=1e-14)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), grads, both)


def both_engines(program):
    return program(autodiff), program(chainrule)


def assert_close(found, expected, rtol=1e-11):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    close = partial(np.testing.assert_allclose, rtol=rtol, atol=1e-13)
    jax.tree.map(close, found, expected)


def test_under_vmap_over_models(network, batch):
    """A population: each model its own parameters, all the same batch."""
    graphdef, params, state = split(network)
    scales = jnp.array([0.5, 1.0, 2.0])
    many = jax.tree.map(lambda leaf: jnp.stack([s * leaf for s in scales]), params)

    def program(engine):
        gradient = engine.gradient(graphdef, cross_entropy)
        return jax.jit(jax.vmap(gradient, in_axes=(0, None, None)))(many, state, batch)

    by_autodiff, by_rules = both_engines(program)
    assert_close(by_rules, by_autodiff)
    alone = jax.tree.map(lambda leaf: leaf[2], many)
    (loss, _), _ = jax.jit(chainrule.gradient(graphdef, cross_entropy))(alone, state, batch)
    np.testing.assert_allclose(by_rules[0][0][2], loss, rtol=1e-13)


def test_under_vmap_over_examples(network, batch):
    """The gradient of the mean is the mean of the gradients of the examples."""
    graphdef, params, state = split(network)
    gradient = chainrule.gradient(graphdef, cross_entropy)
    one_by_one = jax.vmap(lambda x, y: gradient(params, state, (x[None], y[None])))
    (losses, _), each = jax.jit(one_by_one)(*batch)
    (loss, _), grads = jax.jit(gradient)(params, state, batch)
    np.testing.assert_allclose(jnp.mean(losses), loss, rtol=1e-13)
    assert_close(jax.tree.map(lambda leaf: jnp.mean(leaf, 0), each), grads)


def test_under_scan(network, batch):
    """Ten steps of gradient descent inside one program."""
    graphdef, params, state = split(network)

    def program(engine):
        gradient = engine.gradient(graphdef, cross_entropy)

        def step(carry, _):
            params, state = carry
            (loss, state), grads = gradient(params, state, batch)
            return (jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), state), loss

        return jax.jit(lambda: jax.lax.scan(step, (params, state), length=10))()

    by_autodiff, by_rules = both_engines(program)
    assert_close(by_rules, by_autodiff, rtol=1e-9)
    assert by_rules[1][-1] < by_rules[1][0]


class Counter(nnx.Module):
    """Counts its calls, and multiplies by a parameter."""

    def __init__(self):
        self.weight = nnx.Param(jnp.array(3.0))
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x):
        self.calls[...] += 1
        return self.weight[...] * x


@pytest.fixture
def counter_rule():
    @chainrule.rule(Counter)
    class CounterRule:
        def forward(layer, x):
            return layer(x), x

        def backward(layer, x, y_bar):
            return {"weight": jnp.sum(x * y_bar)}, layer.weight[...] * y_bar


def test_state_advances_in_the_result_and_not_in_the_model(counter_rule, normal, assert_engines_agree):
    counter = Counter()
    model, x, y = nnx.Sequential(counter, nnx.Sequential(counter)), normal(1, 4), normal(2, 4)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12
    graphdef, params, state = split(model)
    for name, engine in ENGINES.items():
        (_, state), _ = jax.jit(engine.gradient(graphdef, optax.squared_error))(params, state, (x, y))
        engine.value_and_grad(model, optax.squared_error, x, y)
        assert counter.calls[...] == 0, name
    assert state["layers"][0]["calls"] == 4


def test_a_model_that_cannot_be_hashed(normal):
    """A list among a layer's options makes its graph definition unhashable."""
    x, y = normal(1, 2, 6, 1), normal(2, 2, 6, 1)
    found = []
    for padding in ([(1, 1)], [(2, 0)], [(1, 1)]):
        kernel_init = nnx.initializers.ones
        model = nnx.Conv(
            1,
            1,
            (3,),
            padding=padding,
            kernel_init=kernel_init,
            param_dtype=jnp.float64,
            rngs=nnx.Rngs(0),
        )
        with pytest.raises(TypeError, match="unhashable"):
            hash(split(model)[0])
        for engine in ENGINES.values():
            found.append(engine.value_and_grad(model, optax.squared_error, x, y)[0])
    np.testing.assert_allclose(found[0::2], found[1::2], rtol=1e-14)
    assert found[0] == found[4] != found[2]


def trace_counter(counts, name):
    """A loss with the rule of the squared error, that counts how often it is traced."""

    def loss(outputs, targets):
        counts[name] = counts.get(name, 0) + 1
        return optax.squared_error(outputs, targets)

    chainrule.rule(loss)(chainrule.registered()[optax.squared_error])
    return loss


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("padding", [1, [(1, 1)]])
def test_compiled_once(name, padding, normal):
    counts, after = {}, []
    loss_fn = trace_counter(counts, name)
    for seed in range(3):  # other weights and data, and another object: the same program
        model = nnx.Conv(1, 1, (3,), padding=padding, param_dtype=jnp.float64, rngs=nnx.Rngs(seed))
        x, y = normal(seed, 2, 6, 1), normal(seed + 1, 2, 6, 1)
        ENGINES[name].value_and_grad(model, loss_fn, x, y)
        after.append(counts[name])
    assert after[0] == after[1] == after[2]
    ENGINES[name].value_and_grad(model, loss_fn, x, y, inputs=True)
    assert counts[name] == 2 * after[0]


def plus_one(equation, rule):
    """Replaces the rule of linear layers by one whose bias gradient is off by one."""
    if rule is not chainrule.registered()[nnx.Linear]:
        return rule

    class OffByOne:
        forward = rule.forward

        def backward(layer, residuals, y_bar):
            grads, x_bar = rule.backward(layer, residuals, y_bar)
            return grads | {"bias": grads["bias"] + 1}, x_bar

    return OffByOne


def test_replaced_rules_are_used_inside_and_only_inside(network, batch):
    _, before = chainrule.value_and_grad(network, cross_entropy, *batch)
    with chainrule.replacing(plus_one):
        _, inside = chainrule.value_and_grad(network, cross_entropy, *batch)
    _, after = chainrule.value_and_grad(network, cross_entropy, *batch)
    assert_close(after, before, rtol=0)
    expected = jax.tree.map(lambda leaf: leaf, before)
    expected["layers"][5]["bias"] += 1
    expected["layers"][4]["branch"]["layers"][0]["bias"] += 1
    assert_close(inside, expected, rtol=1e-12)


def test_replacements_are_undone_after_an_error(network, batch):
    _, before = chainrule.value_and_grad(network, cross_entropy, *batch)
    with pytest.raises(RuntimeError), chainrule.replacing(plus_one):
        raise RuntimeError
    assert_close(chainrule.value_and_grad(network, cross_entropy, *batch)[1], before, rtol=0)


def test_a_replacement_sees_every_equation_and_every_layer_by_its_path(network, batch):
    seen = []

    def watch(equation, rule):
        call = equation.params.get("call")
        seen.append((call.path, call.name) if hasattr(call, "path") else equation.primitive.name)
        return rule

    with chainrule.replacing(watch):
        loss, _ = chainrule.value_and_grad(network, cross_entropy, *batch)
    places = {
        "layers.0": "Conv",
        "layers.1": "relu",
        "layers.2": "max_pool",
        "layers.4.branch.layers.0": "Linear",
        "layers.4.branch.layers.1": "tanh",
        "layers.5": "Linear",
        "loss": "softmax_cross_entropy_with_integer_labels",
    }
    layers = [entry for entry in seen if isinstance(entry, tuple)]
    assert {path: name for path, name in layers} == places
    first = list(dict.fromkeys(path for path, _ in layers))
    assert first == list(places)
    assert [path for path, _ in reversed(layers)][:1] == ["layers.0"]
    assert {"reshape", "add"} <= set(seen)  # flatten, and the sum of the residual branch
    np.testing.assert_allclose(loss, autodiff.value_and_grad(network, cross_entropy, *batch)[0])


def test_a_rule_is_a_custom_vjp(random_model, normal):
    """`jax.grad` through a rule pair plugged into `jax.custom_vjp`."""
    layer = random_model(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    x = normal(1, 4, 3)
    graphdef, params, state = split(layer)
    rule = chainrule.registered()[nnx.Linear]

    @jax.custom_vjp
    def apply(params, x):
        return nnx.merge(graphdef, nnx.State(params), nnx.State(state))(x)

    def forward(params, x):
        y, residuals = rule.forward(nnx.merge(graphdef, nnx.State(params), nnx.State(state)), x)
        return y, (params, residuals)

    def backward(kept, y_bar):
        params, residuals = kept
        layer = nnx.merge(graphdef, nnx.State(params), nnx.State(state))
        return rule.backward(layer, residuals, y_bar)

    apply.defvjp(forward, backward)
    found = jax.grad(lambda p, x: jnp.sum(jnp.sin(apply(p, x))), (0, 1))(params, x)
    y_bar = np.cos(np.asarray(layer(x)))
    np.testing.assert_allclose(found[0]["kernel"], np.asarray(x).T @ y_bar, rtol=1e-12)
    np.testing.assert_allclose(found[1], y_bar @ np.asarray(layer.kernel[...]).T, rtol=1e-12)


def test_a_loss_that_gives_one_number(normal, assert_engines_agree):
    """The mean of a scalar is itself."""

    def total(outputs, targets):
        return jnp.sum(outputs * targets)

    @chainrule.rule(total)
    class TotalRule:
        def forward(loss, outputs, targets):
            return loss(outputs, targets), (outputs, targets)

        def backward(loss, residuals, value_bar):
            outputs, targets = residuals
            return {}, (value_bar * targets, value_bar * outputs)

    x, y = normal(1, 4, 3), normal(2, 4, 3)
    assert assert_engines_agree(nnx.Sequential(nnx.tanh), total, x, y) <= 1e-12


def test_a_loss_with_options(normal, assert_engines_agree):
    """A loss with keywords bound: refused by name, or right; never another loss's gradient."""
    loss_fn = partial(cross_entropy, axis=0)
    logits, labels = normal(1, 3, 4), jnp.array([0, 2, 1, 1])
    assert assert_engines_agree(nnx.Sequential(nnx.identity), loss_fn, logits, labels) <= 1e-12
