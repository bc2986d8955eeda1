"""Models made of layers: their own `__call__` is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule, verify
from bpresearch.models import (
    LayerStack,
    LearnedPositions,
    Parallel,
    Residual,
    add,
    add_channel,
    average,
    flatten,
    last,
    positions,
    steps,
    swap,
)

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")


def linear(inputs, outputs, **options):
    return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0), **options)


def test_a_deep_linear_chain_is_a_product_of_matrices(random_model, normal, gradient_by_rules):
    """y = x A B C: B_bar = (x A)^T y_bar C^T."""
    sizes = [(3, 2), (2, 4), (4, 1)]
    model = random_model(lambda: nnx.Sequential(*(linear(*s, use_bias=False) for s in sizes)))
    x, y = normal(1, 5, 3), normal(2, 5, 1)
    _, grads, x_bar = gradient_by_rules(model, optax.squared_error, x, y)
    a, b, c = (np.asarray(layer.kernel[...]) for layer in model.layers)
    x, y = np.asarray(x), np.asarray(y)
    y_bar = 2 / 5 * (x @ a @ b @ c - y)
    np.testing.assert_allclose(grads["layers"][0]["kernel"], x.T @ y_bar @ (b @ c).T, rtol=1e-12)
    np.testing.assert_allclose(grads["layers"][1]["kernel"], (x @ a).T @ y_bar @ c.T, rtol=1e-12)
    np.testing.assert_allclose(grads["layers"][2]["kernel"], (x @ a @ b).T @ y_bar, rtol=1e-12)
    np.testing.assert_allclose(x_bar, y_bar @ (a @ b @ c).T, rtol=1e-12)


def test_sequences_in_sequences(random_model, normal, assert_engines_agree):
    def build():
        inner = nnx.Sequential(nnx.tanh, nnx.Sequential(linear(4, 3), nnx.sigmoid))
        return nnx.Sequential(nnx.Sequential(), linear(2, 4), inner, linear(3, 2))

    x, y = normal(1, 5, 2), normal(2, 5, 2)
    assert assert_engines_agree(random_model(build), optax.squared_error, x, y) <= 1e-12


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_an_empty_sequence_is_the_identity(shape, normal, assert_engines_agree):
    x, y = normal(1, *shape), normal(2, *shape)
    assert assert_engines_agree(nnx.Sequential(), optax.squared_error, x, y) <= 1e-14


class Difference(nnx.Module):
    """Two inputs, one of which has a weight."""

    def __init__(self):
        self.weight = nnx.Param(jnp.array(2.0))

    def __call__(self, a, b):
        return self.weight[...] * a - b


class SumAndProduct(nnx.Module):
    """Two inputs, two outputs, no parameters."""

    def __call__(self, a, b):
        return a + b, a * b


def test_several_inputs_and_outputs(normal, assert_engines_agree, assert_matches_finite_differences):
    model = nnx.Sequential(SumAndProduct(), SumAndProduct(), Difference())
    x, y = (normal(1, 4, 3), normal(2, 4, 3)), normal(3, 4, 3)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12
    assert_matches_finite_differences(model, optax.squared_error, x, y)


def test_a_tuple_of_one_input(random_model, normal, assert_engines_agree):
    """x_bar has the structure of x in both engines, (x_bar,) for (x,)."""
    model = random_model(lambda: nnx.Sequential(linear(2, 1)))
    x, y = (normal(1, 4, 2),), normal(2, 4, 1)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12
    _, (_, x_bar) = chainrule.value_and_grad(model, optax.squared_error, x, y, inputs=True)
    assert isinstance(x_bar, tuple) and len(x_bar) == 1


def test_a_residual_branch_adds_both_paths(random_model, normal, gradient_by_rules):
    """y = x + x W: x_bar = y_bar (I + W^T)."""
    model = random_model(lambda: Residual(linear(3, 3, use_bias=False)))
    x, y = np.asarray(normal(1, 5, 3)), np.asarray(normal(2, 5, 3))
    _, grads, x_bar = gradient_by_rules(model, optax.squared_error, x, y)
    kernel = np.asarray(model.branch.kernel[...])
    y_bar = 2 / y.size * (x + x @ kernel - y)
    np.testing.assert_allclose(grads["branch"]["kernel"], x.T @ y_bar, rtol=1e-12)
    np.testing.assert_allclose(x_bar, y_bar + y_bar @ kernel.T, rtol=1e-12)


def test_branches_of_functions_and_branches_in_branches(random_model, normal, assert_engines_agree):
    def build():
        inner = Residual(nnx.Sequential(linear(3, 3), Residual(nnx.tanh)))
        return nnx.Sequential(Residual(inner), linear(3, 1))

    x, y = normal(1, 5, 3), normal(2, 5, 1)
    assert assert_engines_agree(random_model(build), optax.squared_error, x, y) <= 1e-12


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 1), (1, 2, 3, 4)])
def test_flatten(shape, normal, assert_engines_agree):
    x = normal(1, *shape)
    y = normal(2, shape[0], x.size // shape[0])
    assert assert_engines_agree(nnx.Sequential(flatten), optax.squared_error, x, y) <= 1e-14


@pytest.mark.parametrize("shape", [(2,), (2, 3), (1, 2, 3)])
def test_add_channel(shape, normal, assert_engines_agree):
    x, y = normal(1, *shape), normal(2, *shape, 1)
    assert assert_engines_agree(nnx.Sequential(add_channel), optax.squared_error, x, y) <= 1e-14


class TwoHeads(nnx.Module):
    """A dictionary of outputs, which `nnx.Sequential` hands on as keywords."""

    def __call__(self, x):
        return {"b": 2 * x, "a": x**2}


def test_outputs_by_name(normal, assert_engines_agree):
    model, x, y = nnx.Sequential(TwoHeads(), Difference()), normal(1, 4), normal(2, 4)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding(dtype, random_model, normal, assert_sound_in):
    def build():
        branch = nnx.Sequential(linear(8, 8), nnx.relu)
        return nnx.Sequential(flatten, linear(8, 8), Residual(branch), linear(8, 3))

    x, y = normal(1, 16, 4, 2), jnp.arange(16) % 3
    loss_fn = optax.softmax_cross_entropy_with_integer_labels
    assert_sound_in(dtype, random_model(build), loss_fn, x, y)


@pytest.mark.parametrize("function", [steps, positions, swap, last, average])
def test_moving_selecting_and_averaging(function, normal, assert_engines_agree):
    for shape in [(2, 3, 4), (1, 2, 3, 4)]:
        x = normal(1, *shape)
        y = normal(2, *function(x).shape)
        assert assert_engines_agree(nnx.Sequential(function), optax.squared_error, x, y) <= 1e-14


def test_parallel_branches(random_model, normal, assert_engines_agree, assert_matches_finite_differences):
    """Side by side and summed, of modules and functions, and one branch alone."""

    def build():
        inner = Parallel(linear(3, 2), nnx.tanh, linear(3, 4))
        return nnx.Sequential(inner, Parallel(linear(9, 2), linear(9, 2), merge=add), Parallel(nnx.sigmoid))

    model, x, y = random_model(build), normal(1, 5, 3), normal(2, 5, 2)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12
    assert_matches_finite_differences(model, optax.squared_error, x, y)


def test_a_layer_in_two_branches_sums_its_gradients(random_model, normal, gradient_by_rules):
    """y = x W + x W: the gradient is twice that of one branch, at the same cotangent."""

    def build():
        shared = linear(3, 2, use_bias=False)
        return Parallel(shared, shared, merge=add)

    model, x, y = random_model(build), np.asarray(normal(1, 5, 3)), np.asarray(normal(2, 5, 2))
    _, grads, x_bar = gradient_by_rules(model, optax.squared_error, x, y)
    kernel = np.asarray(model.branches[0].kernel[...])
    y_bar = 2 / y.size * (2 * x @ kernel - y)
    np.testing.assert_allclose(grads["branches"][0]["kernel"], 2 * x.T @ y_bar, rtol=1e-12)
    np.testing.assert_allclose(x_bar, 2 * y_bar @ kernel.T, rtol=1e-12)


def test_a_stack_of_layers(random_model, normal, assert_engines_agree, assert_matches_finite_differences):
    def build():
        one = lambda rngs: Residual(nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), nnx.tanh))  # noqa: E731
        return nnx.Sequential(LayerStack(one, 3, rngs=nnx.Rngs(0)), linear(3, 2))

    model, x, y = random_model(build), normal(1, 5, 3), normal(2, 5, 2)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12
    assert_matches_finite_differences(model, optax.squared_error, x, y)


def test_a_stack_of_layers_with_state(random_model, normal, assert_engines_agree):
    def build():
        def one(rngs):
            return nnx.Sequential(
                nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            )

        return LayerStack(one, 2, rngs=nnx.Rngs(0))

    x, y = normal(1, 5, 3), normal(2, 5, 3)
    with jax.numpy_dtype_promotion("standard"):  # Flax's BatchNorm promotes
        assert assert_engines_agree(random_model(build), optax.squared_error, x, y) <= 1e-12


def test_learned_positions(random_model, normal, assert_engines_agree):
    model = random_model(lambda: LearnedPositions(5, 3, rngs=nnx.Rngs(0)))
    for length in (5, 2):
        x, y = normal(1, 4, length, 3), normal(2, 4, length, 3)
        assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12


@pytest.mark.full
def test_a_fault_inside_a_stack_is_found(random_model, normal):
    """The verifier asks the stacked layer's rule with one slice of the stacked variables."""
    model = random_model(lambda: LayerStack(lambda rngs: nnx.Linear(2, 2, rngs=rngs), 2, rngs=nnx.Rngs(0)))
    with jax.numpy_dtype_promotion("standard"):
        report = verify.model(
            model, optax.squared_error, normal(1, 3, 2), normal(2, 3, 2), plant="sign_wrong@layer"
        )
    assert report.culprits == ("layer",)
