"""Cumulative sums, products, extremes and log-sums along an axis."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from bpresearch.chainrule.primitives import Value, linear, table
from bpresearch.chainrule.rules.lax.elementwise import share


@linear("cumsum")
def cumulative_sum(e, y_bar):
    """y_t = x_1 + ... + x_t:  x_bar_t = y_bar_t + ... + y_bar_n"""
    return lax.cumsum(y_bar, axis=e.params["axis"], reverse=not e.params["reverse"])


def cumulative(
    name: str, combine: Callable[..., Value], partials: Callable[..., tuple[Value, Value]]
) -> None:
    """Declares y_t = x_1 o x_2 o ... o x_t by the operation o and its partial derivatives.

    The derivative follows the tree of pairs of a parallel prefix sum (Blelloch, "Prefix sums and their
    applications", 1990). It does not divide, so that zeros in a product do no harm. Of two equal extremes,
    each has half of the derivative; the shares of three or more depend on the tree, which is the one of
    `jax.lax.associative_scan`, as in JAX.

    Args:
        name: the primitive.
        combine: `(a, b) -> y = a o b`.
        partials: `(a, b, y) -> dy/da, dy/db`.
    """

    class CumulativeRule:
        def forward(e):
            # On CPUs some of the primitives themselves take time in the square of the length.
            return (lax.associative_scan(combine, e.ins[0], **e.params),), ()

        def backward(e, y_bar):
            (x,), (y,), axis = e.ins, e.outs, e.params["axis"]
            if e.params["reverse"]:
                x, y, y_bar = (lax.rev(v, (axis,)) for v in (x, y, y_bar))
            x_bar = down_the_tree(x, y, y_bar, axis, combine, partials)
            return lax.rev(x_bar, (axis,)) if e.params["reverse"] else x_bar

        def pushforward(e, x_dot):
            def combine_both(left, right):
                (a, a_dot), (b, b_dot) = left, right
                y = combine(a, b)
                of_a, of_b = partials(a, b, y)
                return y, of_a * a_dot + of_b * b_dot

            y, y_dot = lax.associative_scan(combine_both, (e.ins[0], x_dot), **e.params)
            return (y,), (y_dot,)

        def tangent(e, x_dot):
            return CumulativeRule.pushforward(e, x_dot)[1]

    table.rules[name] = CumulativeRule


def down_the_tree(x, y, y_bar, axis, combine, partials):
    """The cotangent of x, for the prefixes y of x, counted from 0.

    Neighbours make pairs,  z_i = x_2i o x_(2i+1).  The prefixes of the pairs are every second prefix of x;
    the others follow from them,  y_2i = y_(2i-1) o x_2i.  Each operation sends its cotangent to its operands.
    """
    n = x.shape[axis]
    if n < 2:
        return y_bar
    pairs, others = n // 2, (n - 1) // 2

    def every_second(v, start, count):
        return lax.slice_in_dim(v, start, start + max(2 * count - 1, 0), 2, axis)

    # y_2i = y_(2i-1) o x_2i
    before, x_even, y_even = (
        every_second(y, 1, others),
        every_second(x, 2, others),
        every_second(y, 2, others),
    )
    of_before, of_x = partials(before, x_even, y_even)
    y_even_bar, y_odd_bar = every_second(y_bar, 2, others), every_second(y_bar, 1, pairs)
    y_odd_bar = y_odd_bar + padded(of_before * y_even_bar, axis, 0, pairs - others)
    x_even_bar = lax.concatenate([lax.slice_in_dim(y_bar, 0, 1, axis=axis), of_x * y_even_bar], axis)

    # z_i = x_2i o x_(2i+1)
    left, right = every_second(x, 0, pairs), every_second(x, 1, pairs)
    z = combine(left, right)
    z_bar = down_the_tree(z, every_second(y, 1, pairs), y_odd_bar, axis, combine, partials)
    of_left, of_right = partials(left, right, z)
    x_even_bar = x_even_bar + padded(of_left * z_bar, axis, 0, others + 1 - pairs)
    x_odd_bar = of_right * z_bar
    return padded(x_even_bar, axis, 0, n % 2 == 0, 1) + padded(x_odd_bar, axis, 1, n % 2, 1)


def padded(v: Value, axis: int, before: int, after: int, between: int = 0) -> Value:
    """v with zeros before, after and between its elements."""
    widths = [(0, 0, 0)] * v.ndim
    widths[axis] = (before, int(after), between)
    return lax.pad(v, jnp.zeros((), v.dtype), widths)


def softmax_of_two(a: Value, b: Value, y: Value) -> tuple[Value, ...]:
    """e^(a - y), e^(b - y) for y = log(e^a + e^b); 1 for the larger where both it and y are infinite."""
    return tuple(lax.exp(lax.select(v == y, jnp.zeros_like(y), v - y)) for v in (a, b))


cumulative("cumprod", lax.mul, lambda a, b, y: (b, a))
cumulative("cummax", lax.max, lambda a, b, y: (share(a, b, y), share(b, a, y)))
cumulative("cummin", lax.min, lambda a, b, y: (share(b, a, y), share(a, b, y)))
cumulative("cumlogsumexp", jnp.logaddexp, softmax_of_two)
