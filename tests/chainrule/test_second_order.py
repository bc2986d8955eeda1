"""Products with second derivatives by hand: against JAX's forward over reverse mode, and dense matrices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import autodiff, chainrule
from bpresearch.chainrule import second_order
from bpresearch.functional import merge, split
from bpresearch.models import Parallel, Residual, Unembed, add, add_channel, flatten, patch_convolution
from bpresearch.models.attention import CausalAttention, dot_product_attention
from bpresearch.verify.precision import UNOPTIMIZED

pytestmark = pytest.mark.usefixtures("float64")

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def assert_right(model, loss_fn, x, y, normal, tolerance=1e-11):
    graphdef, params, state = split(model)
    leaves, structure = jax.tree.flatten(params)
    vector = structure.unflatten([normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])
    gradient = autodiff.gradient(graphdef, loss_fn)

    def by_autodiff(params, vector):
        return jax.jvp(lambda p: gradient(p, state, (x, y))[1], (params,), (vector,))[1]

    expected = jax.jit(by_autodiff, compiler_options=UNOPTIMIZED)(params, vector)
    by_rules = second_order.hessian_vector_product(graphdef, loss_fn)
    found = jax.jit(by_rules, compiler_options=UNOPTIMIZED)(params, state, (x, y), vector)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
    for (path, right), ours in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        error, size = np.max(np.abs(ours - right)), np.max(np.abs(right))
        floor = 1e-14 * largest
        assert error <= tolerance * size + floor, f"{jax.tree_util.keystr(path)}: {error:.3g} of {size:.3g}"
    return expected


ACTIVATIONS = [
    nnx.sigmoid, nnx.tanh, nnx.gelu, partial(nnx.gelu, approximate=False), nnx.silu, nnx.softplus, nnx.selu,
    nnx.log_sigmoid, nnx.soft_sign, nnx.hard_silu, nnx.relu, nnx.relu6, nnx.hard_tanh, nnx.hard_sigmoid,
    partial(nnx.leaky_relu, negative_slope=0.3), partial(nnx.elu, alpha=0.7), partial(nnx.celu, alpha=0.7),
    nnx.identity,
]  # fmt: skip


def test_dense_network_with_every_activation(random_model, normal):
    """Wide enough inputs for each side of every kink."""

    def build():
        rngs, outputs = nnx.Rngs(0), 4 * len(ACTIVATIONS)
        layers = [nnx.Linear(3, 4, rngs=rngs), Parallel(*ACTIVATIONS), nnx.Linear(outputs, 2, rngs=rngs)]
        return nnx.Sequential(*layers)

    model, x = random_model(build), 4 * normal(1, 12, 3)
    hidden = model.layers[0](x)
    assert hidden.min() < -3 and hidden.max() > 6
    assert_right(model, optax.l2_loss, x, normal(2, 12, 2), normal)


@pytest.mark.parametrize("convolve", [jax.lax.conv_general_dilated, patch_convolution])
def test_convolutional_network(convolve, random_model, normal):
    def build():
        rngs = nnx.Rngs(0)
        options = {"conv_general_dilated": convolve, "rngs": rngs}
        return nnx.Sequential(
            add_channel,
            nnx.Conv(1, 4, (3, 3), padding="CIRCULAR", **options),
            nnx.tanh,
            partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2)),
            nnx.Conv(4, 4, (2, 2), strides=2, feature_group_count=2, **options),
            partial(nnx.avg_pool, window_shape=(2, 2), padding="SAME"),
            partial(nnx.min_pool, window_shape=(2, 1)),
            flatten,
            nnx.Linear(4, 3, rngs=rngs),
        )

    labels = jnp.array([0, 2])
    assert_right(random_model(build), cross_entropy, normal(1, 2, 6, 4), labels, normal)


def test_transformer(random_model, normal):
    """Tied embeddings: one parameter, two uses."""

    def build():
        rngs = nnx.Rngs(0)
        embed = nnx.Embed(5, 4, rngs=rngs)
        options = {"attention_fn": dot_product_attention, "decode": False, "rngs": rngs}
        attention = CausalAttention(2, 4, 4, 4, **options)
        crossed = nnx.MultiHeadAttention(2, 4, 4, 4, normalize_qk=True, **options)
        mlp = nnx.Sequential(nnx.LayerNorm(4, rngs=rngs), nnx.Linear(4, 6, rngs=rngs), nnx.gelu)
        return nnx.Sequential(
            embed,
            Residual(nnx.Sequential(nnx.LayerNorm(4, use_bias=False, rngs=rngs), attention)),
            Residual(nnx.Sequential(crossed, mlp, nnx.Linear(6, 4, rngs=rngs))),
            nnx.LayerNorm(4, use_scale=False, epsilon=1e-3, rngs=rngs),
            Unembed(embed),
        )

    tokens, targets = jnp.array([[0, 3, 1], [2, 2, 4]]), jnp.array([[3, 1, 4], [2, 4, 0]])
    assert_right(random_model(build), cross_entropy, tokens, targets, normal)


def test_other_linear_maps(random_model, normal):
    def build():
        rngs = nnx.Rngs(0)
        return nnx.Sequential(
            nnx.LinearGeneral((2, 3), (3, 2), axis=(-2, -1), rngs=rngs),
            nnx.tanh,
            Parallel(nnx.tanh, nnx.identity),
            nnx.Einsum("bij,jk->bik", (4, 4), (4,), rngs=rngs),
            Parallel(nnx.sigmoid, nnx.Linear(4, 4, rngs=rngs), merge=add),
            nnx.ConvTranspose(4, 2, (3,), strides=2, rngs=rngs),
            nnx.Dropout(0.5, deterministic=True),
            nnx.LayerNorm(2, reduction_axes=(-2, -1), feature_axes=-1, rngs=rngs),
        )

    x, y = normal(1, 4, 2, 3), normal(2, 4, 6, 2)
    assert_right(random_model(build), optax.squared_error, x, y, normal)


def test_the_hessian_is_symmetric(random_model, normal):
    model = random_model(
        lambda: nnx.Sequential(
            nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(2, 2, rngs=nnx.Rngs(1))
        )
    )
    x, labels = normal(1, 3, 2), jnp.array([0, 1, 1])
    _, params, _ = split(model)
    flat, unflatten = jax.flatten_util.ravel_pytree(params)
    rows = [chainrule.hvp(model, cross_entropy, x, labels, unflatten(e)) for e in jnp.eye(3, flat.size)]
    block = np.stack([jax.flatten_util.ravel_pytree(row)[0][:3] for row in rows])
    np.testing.assert_allclose(block, block.T, atol=1e-14)
    assert np.any(np.abs(block) > 1e-3)


def test_dropout_keeps_its_mask(normal):
    """The same elements are dropped from x_dot as from x: H v of a linear model is 2 (m x)^T (m x) v."""
    model = nnx.Sequential(
        nnx.Dropout(0.5, rngs=nnx.Rngs(0)), nnx.Linear(6, 1, use_bias=False, rngs=nnx.Rngs(1))
    )
    graphdef, params, state = split(model)
    x, y = normal(1, 1, 6), jnp.zeros((1, 1))
    dropped = merge(graphdef, params, state).layers[0](x)
    v = normal(2, 6, 1)
    product = chainrule.hvp(model, optax.squared_error, x, y, {"layers": {1: {"kernel": v}}})
    np.testing.assert_allclose(product["layers"][1]["kernel"], 2 * dropped.T @ (dropped @ v), rtol=1e-6)


def test_a_layer_of_ones_own(normal):
    """A rule of the first order is enough: of its backward pass, the rules take the derivative."""

    def cube(x):
        return x**3

    @chainrule.rule(cube)
    class CubeRule:
        def forward(layer, x):
            return layer(x), x

        def backward(layer, x, y_bar):
            return {}, 3 * x**2 * y_bar

    model = nnx.Sequential(nnx.Linear(3, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0)), cube)
    assert_right(model, optax.l2_loss, normal(1, 4, 3), normal(2, 4, 2), normal)


class Recurrent(nnx.Module):
    """What no layer does: a loop of its own, a raw parameter, a batch's statistics, a dict as input."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, use_running_average=False, rngs=rngs)
        self.cell = nnx.GRUCell(3, 4, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(()))
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, batch):
        x = self.norm(batch["x"])
        carry = self.cell.initialize_carry(x[:, 0].shape, nnx.Rngs(0)).astype(x.dtype)
        carry, ys = jax.lax.scan(lambda h, x: self.cell(h, x), carry, jnp.moveaxis(x, 1, 0))
        return jnp.exp(self.scale[...]) * self.out(ys[-1])


def test_a_model_with_a_loop_of_its_own(random_model, normal):
    model = random_model(lambda: Recurrent(nnx.Rngs(0)))
    assert_right(model, optax.l2_loss, {"x": normal(1, 5, 4, 3)}, normal(2, 5, 2), normal, 1e-10)


def test_a_vector_of_another_shape_is_refused(normal):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    for product in (chainrule.hvp, chainrule.gauss_newton):
        with pytest.raises(ValueError, match="paths and shapes of the model's parameters"):
            product(model, optax.l2_loss, normal(1, 4, 3), normal(2, 4, 2), {"kernel": jnp.ones((3, 2))})
    with pytest.raises(TypeError, match=r"\(model, loss_fn, x, y, vector\) or \(f, primals, vector\)"):
        chainrule.hvp(model, optax.l2_loss)


def test_of_a_function(normal):
    """Of pytrees, with respect to some arguments; a cubic form's Hessian is known."""

    def cubic(point, scale):
        return scale * jnp.sum(point["a"] ** 3) + jnp.sum(point["a"]) * point["b"] ** 2

    point, scale = {"a": normal(1, 3), "b": normal(2)}, normal(3)
    v = {"a": normal(4, 3), "b": normal(5)}
    product = chainrule.hvp(cubic, (point, scale), v)
    np.testing.assert_allclose(product["a"], 6 * scale * point["a"] * v["a"] + 2 * point["b"] * v["b"])
    np.testing.assert_allclose(
        product["b"], 2 * point["b"] * jnp.sum(v["a"]) + 2 * jnp.sum(point["a"]) * v["b"]
    )
    of_both = chainrule.hvp(cubic, (point, scale), (v, jnp.ones(())), argnums=(0, 1))
    np.testing.assert_allclose(of_both[0]["a"], product["a"] + 3 * point["a"] ** 2)
    np.testing.assert_allclose(of_both[1], jnp.sum(3 * point["a"] ** 2 * v["a"]))
    with pytest.raises(ValueError, match="or of the argument"):
        chainrule.hvp(cubic, (point, scale), {"a": v["a"]})


def test_of_a_training_loss(random_model, normal):
    """`loss(model, batch)`: the product is like the gradient, and the model stays as it was."""
    model = random_model(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    x, y, (_, params, _) = normal(1, 4, 3), normal(2, 4, 2), split(model)
    v = jax.tree.map(lambda w: normal(3, *w.shape), params)

    def loss(model, batch):
        return jnp.mean(optax.squared_error(nnx.tanh(model(batch["x"])), batch["y"]))

    product = chainrule.hvp(loss, (model, {"x": x, "y": y}), v)
    expected = chainrule.hvp(nnx.Sequential(model, nnx.tanh), optax.squared_error, x, y, {"layers": {0: v}})
    assert isinstance(product, nnx.State)
    for name, leaf in expected["layers"][0].items():
        np.testing.assert_allclose(product[name][...], leaf, rtol=1e-12)
    again = chainrule.hvp(loss, (model, {"x": x, "y": y}), chainrule.grad(loss)(model, {"x": x, "y": y}))
    assert jax.tree.structure(again) == jax.tree.structure(product)


class TwoHeads(nnx.Module):
    def __init__(self, rngs):
        self.body, self.head = nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        h = nnx.tanh(self.body(x))
        return self.head(h), jnp.sum(h, -1), jnp.argmax(h, -1)


def two_losses(logits, total, best, labels):
    return cross_entropy(logits, labels) + jnp.log1p(total**2) * (best + 1)


@pytest.fixture
def two_heads(random_model, normal):
    return random_model(lambda: TwoHeads(nnx.Rngs(0))), normal(1, 4, 2), jnp.array([0, 2, 1, 1])


def test_gauss_newton_is_the_dense_product(two_heads, normal):
    """J^T H_l J v with each factor written out by JAX; an output of integers has no derivative."""
    model, x, labels = two_heads
    graphdef, params, state = split(model)
    flat, unflatten = jax.flatten_util.ravel_pytree(params)

    def outputs(flat):
        logits, total, _ = merge(graphdef, unflatten(flat), state)(x)
        return jnp.concatenate([logits.ravel(), total])

    best = model(x)[2]

    def loss(z):
        return jnp.mean(two_losses(z[:12].reshape(4, 3), z[12:], best, labels))

    def dense(flat, v):
        jacobian = jax.jacfwd(outputs)(flat)
        return jacobian.T @ (jax.hessian(loss)(outputs(flat)) @ (jacobian @ v))

    v = normal(3, flat.size)
    expected = jax.jit(dense, compiler_options=UNOPTIMIZED)(flat, v)
    product = chainrule.gauss_newton(model, two_losses, x, labels, unflatten(v))
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(product)[0], expected, rtol=1e-12, atol=1e-14)
    full = chainrule.hvp(model, two_losses, x, labels, unflatten(v))
    assert not np.allclose(jax.flatten_util.ravel_pytree(full)[0], expected, rtol=1e-2)


def test_gauss_newton_of_a_linear_model_is_the_hessian(random_model, normal):
    model = random_model(lambda: nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0))))
    x, y, v = normal(1, 4, 3), normal(2, 4, 2), jax.tree.map(lambda w: normal(3, *w.shape), split(model)[1])
    product = chainrule.gauss_newton(model, optax.squared_error, x, y, v)
    expected = chainrule.hvp(model, optax.squared_error, x, y, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), product, expected)


def test_a_planted_fault_reaches_the_products(two_heads):
    """What is replaced is not what was compiled before: the products follow the rules in force."""
    model, x, labels = two_heads
    v = split(model)[1]

    class Doubled:
        def __init__(self, rule):
            self.rule = rule

        def backward(self, e, *bars):
            return [None if bar is None else 2 * bar for bar in self.rule.backward(e, *bars)]

        def __getattr__(self, name):
            return getattr(self.rule, name)

    right = chainrule.gauss_newton(model, two_losses, x, labels, v)
    with chainrule.replacing(lambda e, rule: Doubled(rule) if e.name == "log1p" else rule):
        wrong = chainrule.gauss_newton(model, two_losses, x, labels, v)
    assert not np.allclose(wrong["body"]["kernel"], right["body"]["kernel"], rtol=1e-3)
