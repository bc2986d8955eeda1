"""Training losses as users write them, each with something of its own: values and gradients are JAX's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_factor, cho_solve

from bpresearch import chainrule
from bpresearch.verify.precision import UNOPTIMIZED

pytestmark = pytest.mark.usefixtures("float64")

WIDE = {"param_dtype": jnp.float64, "dtype": jnp.float64}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def fixed_point(f, params, x):
    """z = f(params, x, z), by iteration."""

    def moves(pair):
        return jnp.max(jnp.abs(pair[0] - pair[1])) > 1e-13

    z = jnp.zeros_like(x)
    return lax.while_loop(moves, lambda pair: (pair[1], f(params, x, pair[1])), (z + 1, z))[1]


def _forward(f, params, x):
    z = fixed_point(f, params, x)
    return z, (params, x, z)


def _backward(f, kept, z_bar):
    params, x, z = kept
    _, of_z = jax.vjp(lambda z: f(params, x, z), z)
    u = fixed_point(lambda _, z_bar, u: z_bar + of_z(u)[0], (), z_bar)
    return jax.vjp(lambda params, x: f(params, x, z), params, x)[1](u)


fixed_point.defvjp(_forward, _backward)


class Equilibrium(nnx.Module):
    """A deep equilibrium layer (Bai et al. 2019); the map closes over the batch's mask."""

    def __init__(self, normal):
        self.w, self.scale = nnx.Param(normal(1, 4, 4) / 8), nnx.Param(jnp.ones(4))

    def loss(self, batch):
        x, mask = batch
        weight = mask / jnp.sum(mask)

        def f(params, x, z):
            w, scale = params
            return mask[:, None] * jnp.tanh(z @ w + x * scale[None])

        z = fixed_point(f, (self.w[...], self.scale[...]), x)
        return jnp.sum(weight[:, None] * z**2)

    @staticmethod
    def batch(normal):
        return normal(2, 5, 4), jnp.array([1.0, 0.0, 1.0, 1.0, 1.0])


class RaggedExperts(nnx.Module):
    """Two experts of three for each token, their rows sorted together and multiplied by `ragged_dot`."""

    def __init__(self, normal):
        self.gate = nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0), **WIDE)
        self.w = nnx.Param(normal(3, 3, 4, 4))

    def loss(self, batch):
        x, y = batch
        p = jax.nn.softmax(self.gate(x))
        weights, experts = lax.top_k(p, 2)
        order = jnp.argsort(experts.reshape(-1))
        sizes = jnp.bincount(experts.reshape(-1), length=3).astype(jnp.int32)
        rows = lax.ragged_dot(jnp.repeat(x, 2, axis=0)[order], self.w[...], sizes)
        rows = jnp.zeros_like(rows).at[order].set(nnx.gelu(rows)).reshape(len(x), 2, -1)
        balance = jnp.sum(jnp.mean(p, axis=0) * lax.stop_gradient(sizes / len(x)))
        return jnp.mean((jnp.sum(rows * weights[..., None], axis=1) - y) ** 2) + 0.01 * balance

    @staticmethod
    def batch(normal):
        return normal(4, 6, 4), normal(5, 6, 4)


class Hypernetwork(nnx.Module):
    """It makes the weights of a network for each context, which is put together inside of `vmap`."""

    def __init__(self, normal):
        rngs = nnx.Rngs(0)
        target = nnx.Sequential(
            nnx.Linear(3, 4, rngs=rngs, **WIDE), nnx.tanh, nnx.Linear(4, 1, rngs=rngs, **WIDE)
        )
        graphdef, state = nnx.split(target)
        flat, unravel = ravel_pytree(state)
        self.target = nnx.static(lambda weights, x: nnx.merge(graphdef, unravel(weights))(x))
        self.weights = nnx.Linear(2, flat.size, rngs=rngs, **WIDE)

    def loss(self, batch):
        context, x, y = batch
        return jnp.mean((jax.vmap(self.target)(self.weights(context), x) - y) ** 2)

    @staticmethod
    def batch(normal):
        return normal(6, 3, 2), normal(7, 3, 5, 3), normal(8, 3, 5, 1)


class KalmanFilter(nnx.Module):
    """The likelihood of a linear state space model, by `cho_solve` in a scan."""

    def __init__(self, normal):
        self.a, self.c = nnx.Param(normal(9, 3, 3) / 3), nnx.Param(normal(10, 2, 3))
        self.q, self.r = nnx.Param(normal(11, 3)), nnx.Param(normal(12, 2))

    def loss(self, ys):
        a, c, q, r = self.a[...], self.c[...], jnp.diag(jnp.exp(self.q[...])), jnp.diag(jnp.exp(self.r[...]))

        def step(belief, y):
            mean, cov = belief
            mean, cov = a @ mean, a @ cov @ a.T + q
            factor, error = cho_factor(c @ cov @ c.T + r, lower=True), y - c @ mean
            gain = cho_solve(factor, c @ cov).T
            likelihood = -error @ cho_solve(factor, error) / 2 - jnp.sum(jnp.log(jnp.diag(factor[0])))
            return (mean + gain @ error, cov - gain @ c @ cov), likelihood

        return -jnp.mean(lax.scan(step, (jnp.zeros(3), jnp.eye(3)), ys)[1])

    @staticmethod
    def batch(normal):
        return normal(13, 5, 2)


@pytest.mark.parametrize("kind", [Equilibrium, RaggedExperts, Hypernetwork, KalmanFilter])
def test_value_and_gradient_are_those_of_jax(kind, normal):
    graphdef, params = nnx.split(kind(normal))
    batch = kind.batch(normal)

    def both(params, batch):
        def loss(params):
            return nnx.merge(graphdef, params).loss(batch)

        return chainrule.value_and_grad(loss)(params), jax.value_and_grad(loss)(params)

    ours, expected = jax.jit(both, compiler_options=UNOPTIMIZED)(params, batch)
    for found, right in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-11, atol=1e-13)
