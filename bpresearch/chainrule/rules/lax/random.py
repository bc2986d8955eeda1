"""Random numbers: draws do not depend on a parameter, except those of the gamma distribution."""

import jax.numpy as jnp
from jax import lax

from bpresearch.chainrule.primitives import constant, primitive, refused


@primitive("random_gamma")
class RandomGamma:
    """y ~ Gamma(a, 1):  a_bar = y_bar dy/da, by implicit reparametrization.

    A draw stays at its quantile: P(a, y) = u with a fixed u, so that dy/da = -(dP/da) / (dP/dy).
    In `log_space` the draw is log(y), and its derivative (dy/da) / y.

    Figurnov, Mohamed and Mnih, "Implicit reparameterization gradients", 2018 (https://arxiv.org/abs/1805.08498).
    """

    def backward(e, y_bar):
        return None, y_bar * slope_of_draw(e)

    def tangent(e, key_dot, a_dot):
        return a_dot * slope_of_draw(e)


def slope_of_draw(e):
    """dy/da of a draw, or of its logarithm."""
    (_, a), (y,) = e.ins, e.outs
    if not e.params["log_space"]:
        return lax.random_gamma_grad(a, y)
    # A draw below the smallest normal number counts as that number: zero has no logarithm.
    draw = lax.exp(y)
    draw = lax.select(draw == 0, lax.full_like(draw, jnp.finfo(draw.dtype).tiny), draw)
    return lax.random_gamma_grad(a, draw) / draw


constant("random_bits", "random_seed", "random_split", "random_fold_in", why="keys and bits are integers")
constant("random_wrap", "random_unwrap", "random_clone", why="keys and bits are integers")
constant("threefry2x32", "rng_bit_generator", why="keys and bits are integers")
refused("rng_uniform", why="JAX has no derivative of it with respect to the bounds")
