"""muP: the table of its paper, and what it is for: updates of the outputs that do not grow with the width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpresearch import models, optim
from bpresearch.functional import merge, split
from bpresearch.optim.mup import Role, rates_of, role, scaled, shapes_of, widened

INPUTS, OUTPUTS = 8, 3


def build(width):
    return lambda rngs: models.mlp((INPUTS,), OUTPUTS, widths=(width, width), rngs=rngs)


def shapes(width):
    return split(nnx.eval_shape(lambda: build(width)(nnx.Rngs(0))))[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "adam",
            {"0.kernel": 1, "0.bias": 1, "1.kernel": 1 / 4, "1.bias": 1, "2.kernel": 1 / 4, "2.bias": 1},
        ),
        ("sgd", {"0.kernel": 4, "0.bias": 4, "1.kernel": 1, "1.bias": 4, "2.kernel": 1 / 4, "2.bias": 1}),
    ],
)
def test_rates_are_those_of_table_3(name, expected):
    found = rates_of(name, shapes(64), shapes_of(shapes(16)))
    layers = {path: number for number, path in enumerate(sorted({p.rsplit(".", 1)[0] for p in found}))}
    named = {f"{layers[path.rsplit('.', 1)[0]]}.{path.rsplit('.', 1)[1]}": r for path, r in found.items()}
    assert named == expected
    assert set(rates_of(name, shapes(16), shapes_of(shapes(16))).values()) == {1}


@pytest.mark.parametrize(
    ("path", "shape", "base", "expected"),
    [
        ("embedding.embedding", (50, 64), (50, 32), (Role.INPUT, 1, 2)),
        ("conv.kernel", (3, 3, 64, 128), (3, 3, 32, 32), (Role.HIDDEN, 2, 4)),
        ("attention.query.kernel", (64, 4, 16), (32, 4, 8), (Role.HIDDEN, 2, 2)),
        ("attention.query.bias", (8, 8), (4, 8), (Role.INPUT, 1, 2)),
        ("attention.out.kernel", (4, 16, 64), (4, 8, 32), (Role.HIDDEN, 2, 2)),
        ("norm.scale", (64,), (32,), (Role.INPUT, 1, 2)),
        ("head.bias", (10,), (10,), (Role.FIXED, 1, 1)),
    ],
)
def test_roles_follow_from_what_grows(path, shape, base, expected):
    assert role(path, shape, base) == expected


def moved(name, width, mup):
    """How far two large steps move the outputs of a network, root mean square."""
    base, function = shapes(16), optim.BY_NAME[name]
    model = (widened(build(width), base) if mup else build(width))(nnx.Rngs(0))
    optimizer = (scaled(function, base) if mup else function)(0.3 if name == "sgd" else 0.03)
    graphdef, params, state = split(model)
    x = jax.random.normal(jax.random.key(1), (32, INPUTS))
    y = jnp.sin(x[:, :OUTPUTS])

    def outputs(params):
        return merge(graphdef, params, state)(x)

    @jax.jit
    def step(params, optimizer_state):
        gradients = jax.grad(lambda params: jnp.mean((outputs(params) - y) ** 2))(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return jax.tree.map(jnp.add, params, updates), optimizer_state

    before, optimizer_state = outputs(params), optimizer.init(params)
    for _ in range(2):
        params, optimizer_state = step(params, optimizer_state)
    return float(jnp.sqrt(jnp.mean((outputs(params) - before) ** 2)))


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_outputs_move_as_far_in_a_wide_network_as_in_a_wider_one(name):
    assert 0.6 < moved(name, 512, True) / moved(name, 128, True) < 1.6
    assert moved(name, 512, False) / moved(name, 128, False) > 3


def test_initial_outputs_shrink_as_the_width_grows_and_nothing_else():
    base = shapes(16)
    plain, found = (b(nnx.Rngs(0)) for b in (build(64), widened(build(64), base)))
    ratios = jax.tree.map(
        lambda a, b: np.asarray(a / b)[np.asarray(b) != 0].round(6).tolist(), split(found)[1], split(plain)[1]
    )
    kernels = [set(layer["kernel"]) for layer in ratios["layers"].values()]
    assert kernels == [{1.0}, {1.0}, {0.5}]


def test_weight_decay_does_not_shrink_with_the_rate():
    base, weights = {"kernel": jnp.ones((2, 2))}, {"kernel": jnp.ones((4, 4))}
    optimizer = scaled(optim.adamw, base)(0.1, weight_decay=0.5)
    zero = jax.tree.map(jnp.zeros_like, weights)
    updates, _ = optimizer.update(zero, optimizer.init(weights), weights)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5, rtol=1e-6)


def test_a_decoupled_decay_is_the_part_that_it_says_at_every_rate():
    base, weights = {"kernel": jnp.ones((2, 2))}, {"kernel": jnp.full((4, 4), 3.0)}
    zero = jax.tree.map(jnp.zeros_like, weights)
    for function in (optim.adamw, optim.sgd):
        optimizer = scaled(optim.decoupled(function), base)(0.1, weight_decay=0.5, decoupled_decay=True)
        updates, _ = optimizer.update(zero, optimizer.init(weights), weights)
        np.testing.assert_allclose(updates["kernel"], -0.5 * 3, rtol=1e-6)


def test_clipping_and_freezing_go_around_the_scaled_optimizer():
    base = {"in": jnp.ones((3, 2)), "head": jnp.ones((2, 3))}
    weights = {"in": jnp.full((3, 4), 2.0), "head": jnp.full((4, 3), 3.0)}
    rates = {"in": 0.2, "head": 0.05}
    norm = (12 * 4 + 12 * 9) ** 0.5  # of all weights, which are the gradient too
    optimizer = optim.clipped(scaled(optim.sgd, base))(0.1, clip_norm=1.0)
    updates, _ = optimizer.update(weights, optimizer.init(weights), weights)
    for name, rate in rates.items():
        np.testing.assert_allclose(updates[name], -rate * weights[name] / norm, rtol=1e-6)
    optimizer = optim.frozen(scaled(optim.sgd, base))(0.1, frozen="in")
    updates, _ = optimizer.update(weights, optimizer.init(weights), weights)
    np.testing.assert_allclose(updates["in"], 0)
    np.testing.assert_allclose(updates["head"], -0.05 * weights["head"], rtol=1e-6)
    with pytest.raises(ValueError, match="clip_norm inside of scaled would clip each rate's weights alone"):
        scaled(optim.clipped(optim.sgd), base)


def test_what_cannot_be_scaled_is_one_line():
    with pytest.raises(ValueError, match=r"^no scaling by width is known for lamb, but for"):
        scaled(optim.lamb, shapes(16))(0.1).init(shapes(64))
    with pytest.raises(ValueError, match="must differ in width"):
        role("a", (2, 3), (2,))
    with pytest.raises(ValueError, match="the model of base width lacks b"):
        rates_of("sgd", {"b": jnp.ones(2)}, {"a": (2,)})
