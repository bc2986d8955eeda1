"""Models of dense layers."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import autodiff, chainrule
from bpresearch.functional import split
from bpresearch.models import linear, mlp, residual_mlp

SHAPES = [(40, 1), (8, 8, 1), (10,), (2,)]
on_every_shape = pytest.mark.parametrize("shape", SHAPES)


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def relu(x):
    return np.maximum(x, 0)


@on_every_shape
def test_sizes(shape):
    n = math.prod(shape)
    for build, expected in [
        (partial(linear, shape, 10), n * 10 + 10),
        (partial(mlp, shape, 3, widths=()), n * 3 + 3),
        (partial(mlp, shape, 3, widths=(5,)), (n + 1) * 5 + (5 + 1) * 3),
        (partial(mlp, shape, 1, widths=(7, 1, 4)), (n + 1) * 7 + 8 * 1 + 2 * 4 + 5 * 1),
        (partial(mlp, shape, 10), (n + 1) * 100 + 101 * 100 + 101 * 10),
        (partial(residual_mlp, shape, 10), (n + 1) * 100 + 101 * 100 + 101 * 10),
        (partial(residual_mlp, shape, 2, width=6, depth=3), (n + 1) * 6 + 3 * 7 * 6 + 7 * 2),
    ]:
        assert count(nnx.eval_shape(lambda build=build: build(rngs=nnx.Rngs(0)))) == expected


@on_every_shape
@pytest.mark.parametrize("build", [linear, mlp, residual_mlp])
def test_shape_of_outputs(shape, build):
    model = build(shape, 7, rngs=nnx.Rngs(0))
    for batch in (1, 5):
        assert jax.eval_shape(lambda x, m=model: m(x), jnp.ones((batch, *shape))).shape == (
            batch,
            7,
        )


def test_the_published_residual_mlp_has_so_many_parameters():
    """40 inputs, width 100, 10 classes: 4,100 + 10,100 + 1,010."""
    assert count(nnx.eval_shape(lambda: residual_mlp((40, 1), 10, rngs=nnx.Rngs(0)))) == 15_210


def test_paths_of_parameters():
    _, params, state = split(mlp((2,), 2, widths=(3, 3), rngs=nnx.Rngs(0)))
    assert list(params["layers"]) == [1, 3, 5] and state == {}
    assert all(set(layer) == {"kernel", "bias"} for layer in params["layers"].values())
    _, params, _ = split(residual_mlp((2,), 2, width=3, depth=2, rngs=nnx.Rngs(0)))
    assert list(params["layers"]) == [1, 3, 4, 5]
    assert list(params["layers"][3]) == ["branch"]
    assert list(params["layers"][3]["branch"]["layers"]) == [0]


def weights(layer):
    return np.asarray(layer.kernel[...], float), np.asarray(layer.bias[...], float)


def test_linear_by_hand():
    model = linear((2, 3), 4, initialization="torch", rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(5, 2, 3))
    w, b = weights(model.layers[1])
    np.testing.assert_allclose(
        model(jnp.asarray(x, "float32")), x.reshape(5, 6) @ w + b, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_mlp_by_hand(shape):
    model = mlp(shape, 2, widths=(5, 4), activation=nnx.tanh, initialization="torch", rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(7, *shape))
    (w1, b1), (w2, b2), (w3, b3) = (weights(model.layers[i]) for i in (1, 3, 5))
    h = np.tanh(np.tanh(x.reshape(7, -1) @ w1 + b1) @ w2 + b2)
    np.testing.assert_allclose(model(jnp.asarray(x, "float32")), h @ w3 + b3, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_residual_mlp_by_hand(depth):
    """h = relu(W x + b), then h <- h + relu(W h + b), `depth` times."""
    model = residual_mlp((4, 1), 3, width=5, depth=depth, initialization="torch", rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(7, 4, 1))
    w, b = weights(model.layers[1])
    h = relu(x.reshape(7, 4) @ w + b)
    for residual in model.layers[3 : 3 + depth]:
        w, b = weights(residual.branch.layers[0])
        h = h + relu(h @ w + b)
    w, b = weights(model.layers[3 + depth])
    np.testing.assert_allclose(model(jnp.asarray(x, "float32")), h @ w + b, rtol=1e-4, atol=1e-6)


def test_the_activation_is_used_throughout():
    model = residual_mlp((4,), 3, width=5, depth=2, activation=nnx.sigmoid, rngs=nnx.Rngs(0))
    functions = [model.layers[2], *(model.layers[i].branch.layers[1] for i in (3, 4))]
    assert functions == [nnx.sigmoid] * 3


@pytest.mark.parametrize(
    ("model", "name"), [(partial(mlp, widths=(3, 0)), "widths"), (partial(residual_mlp, width=0), "width")]
)
@pytest.mark.parametrize("initialization", ["lecun", "torch"])
def test_a_width_of_zero_is_refused_in_one_line(model, name, initialization):
    with pytest.raises(ValueError, match=rf"^.*{name}.*0.*$") as error:
        model((4,), 2, initialization=initialization, rngs=nnx.Rngs(0))
    assert "\n" not in str(error.value)


def test_layers_and_seeds_differ():
    first, again, other = (mlp((5,), 5, widths=(5,), rngs=nnx.Rngs(seed)) for seed in (0, 0, 1))
    kernels = [m.layers[i].kernel[...] for m in (first, again, other) for i in (1, 3)]
    np.testing.assert_array_equal(kernels[0], kernels[2])
    assert all(np.any(kernels[0] != kernels[i]) for i in (1, 4, 5))


@on_every_shape
@pytest.mark.parametrize(
    "build",
    [
        linear,
        partial(mlp, widths=(4, 1)),
        partial(mlp, widths=(3,), activation=partial(nnx.leaky_relu, negative_slope=0.3)),
        partial(residual_mlp, width=3, depth=2),
    ],
)
def test_engines_agree(shape, build, float64):
    model = build(shape, 3, initialization="torch", rngs=nnx.Rngs(0))
    graphdef, params, state = split(model)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    rng = np.random.default_rng(0)
    batch = jnp.asarray(rng.normal(size=(4, *shape))), jnp.array([0, 2, 1, 2])
    loss_fn = optax.softmax_cross_entropy_with_integer_labels
    by_autodiff, by_rules = (
        jax.jit(engine.gradient(graphdef, loss_fn, inputs=True))(params, state, batch)
        for engine in (autodiff, chainrule)
    )
    assert jax.tree.structure(by_rules) == jax.tree.structure(by_autodiff)
    for found, expected in zip(*map(jax.tree.leaves, (by_rules, by_autodiff)), strict=True):
        assert found.dtype == expected.dtype == jnp.float64
        error = np.abs(found - expected).max()
        assert error <= 1e-12 * np.abs(expected).max()
