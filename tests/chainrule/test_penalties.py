"""Weight decay as a term of the loss, in both engines."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import autodiff, chainrule
from bpresearch.functional import split
from bpresearch.models import l1_penalty, l2_penalty

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")

DECAYS = {
    "l2": (partial(l2_penalty, weight=0.3), lambda w: 0.15 * np.sum(w**2), lambda w: 0.3 * w),
    "l1": (partial(l1_penalty, weight=0.3), lambda w: 0.3 * np.sum(np.abs(w)), lambda w: 0.3 * np.sign(w)),
}


@pytest.fixture
def problem(random_model, normal):
    def build():
        rngs = nnx.Rngs(0)
        return nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.tanh, nnx.Linear(4, 2, rngs=rngs))

    return random_model(build), normal(1, 5, 3), normal(2, 5, 2)


@pytest.mark.parametrize("name", DECAYS)
def test_a_penalty_adds_to_loss_and_gradient(name, problem):
    model, x, y = problem
    penalty, value, derivative = DECAYS[name]
    plain_loss, plain = autodiff.value_and_grad(model, optax.l2_loss, x, y)
    _, params, _ = split(model)
    extra = sum(value(np.asarray(w)) for w in jax.tree.leaves(params))
    for engine in (autodiff, chainrule):
        loss, (grads, _) = engine.value_and_grad(model, optax.l2_loss, x, y, inputs=True, penalty=penalty)
        np.testing.assert_allclose(loss, plain_loss + extra, rtol=1e-13)
        expected = jax.tree.map(lambda g, w: g + derivative(np.asarray(w)), plain, params)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), grads, expected)


def test_only_what_decays(problem):
    model, x, y = problem
    _, plain = autodiff.value_and_grad(model, optax.l2_loss, x, y)
    for engine in (autodiff, chainrule):
        penalty = partial(l1_penalty, weight=2.0, only=("kernel",))
        _, grads = engine.value_and_grad(model, optax.l2_loss, x, y, penalty=penalty)
        for index in (0, 2):
            found, before = grads["layers"][index], plain["layers"][index]
            np.testing.assert_allclose(found["bias"], before["bias"], rtol=1e-12)
            np.testing.assert_allclose(np.abs(found["kernel"] - before["kernel"]), 2, rtol=1e-12)


def test_zero_is_the_kink_of_l1():
    layer = nnx.Linear(2, 1, kernel_init=nnx.initializers.zeros, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    x, y = jnp.zeros((1, 2)), jnp.zeros((1, 1))
    for engine in (autodiff, chainrule):
        _, grads = engine.value_and_grad(layer, optax.l2_loss, x, y, penalty=l1_penalty)
        assert not any(np.any(g) for g in jax.tree.leaves(grads))


def test_a_shared_layer_decays_once(normal):
    """It is one parameter, although the gradient sums over its uses."""
    layer = nnx.Linear(2, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    model = nnx.Sequential(layer, nnx.Sequential(layer))
    x, y = normal(1, 3, 2), normal(2, 3, 2)
    answers = [
        engine.value_and_grad(model, optax.l2_loss, x, y, penalty=l2_penalty)
        for engine in (autodiff, chainrule)
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11), *answers)


def test_a_traced_weight(problem):
    """A sweep's decay is an array; one program serves every value."""
    model, x, y = problem
    graphdef, params, state = split(model)

    def gradient(weight, engine):
        penalty = partial(l2_penalty, weight=weight)
        return engine.gradient(graphdef, optax.l2_loss, penalty=penalty)(params, state, (x, y))[1]

    weights = jnp.array([0.0, 0.1, 1.0])
    answers = [jax.jit(jax.vmap(partial(gradient, engine=e)))(weights) for e in (autodiff, chainrule)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-14), *answers)


def test_a_penalty_of_ones_own(problem):
    def mine(params):
        return sum(jnp.sum(jnp.abs(w) ** 3) for w in jax.tree.leaves(params))

    model, x, y = problem
    answers = [
        engine.value_and_grad(model, optax.l2_loss, x, y, penalty=mine) for engine in (autodiff, chainrule)
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11), *answers)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_keep_the_dtype_of_their_parameters(dtype, random_model, normal):
    model = random_model(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)), dtype=dtype)
    x, y = normal(1, 4, 3, dtype=dtype), normal(2, 4, 2, dtype=dtype)
    penalty = partial(l2_penalty, weight=0.1)
    for engine in (autodiff, chainrule):
        _, grads = engine.value_and_grad(model, optax.l2_loss, x, y, penalty=penalty)
        assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(dtype)}
