"""Contractions: sums of products over shared axes, over ragged groups, and under a moving window.

All are bilinear, y = x . w, so that y_dot = x_dot . w + x . w_dot. Backward, x_bar = y_bar . w and
w_bar = x . y_bar, with the axes of each product chosen anew.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bpresearch.chainrule.primitives import NoPrimitiveRuleError, fit, primitive, refused, total


class Bilinear:
    """y = x . w.      y_dot = x_dot . w + x . w_dot"""

    def tangent(e, x_dot, w_dot, *indices):
        x, w, *rest = e.ins
        terms = [e.bind(x_dot, w, *rest)[0]] if x_dot is not None else []
        terms += [e.bind(x, w_dot, *rest)[0]] if w_dot is not None else []
        return total(terms, e.outs[0])


@primitive("dot_general")
class DotGeneralRule(Bilinear):
    """y[b, i, j] = sum_k x[b, i, k] w[b, j, k], with any number of axes of each kind, in any order.

    x_bar[b, i, k] = sum_j y_bar[b, i, j] w[b, j, k],      w_bar[b, j, k] = sum_i x[b, i, k] y_bar[b, i, j]
    """

    def backward(e, y_bar):
        x, w = e.ins
        (x_k, w_k), (x_b, w_b) = e.params["dimension_numbers"]
        x_i, w_j = others(x, x_k, x_b), others(w, w_k, w_b)
        y_b, y_i, y_j = consecutive(x_b, x_i, w_j)

        def product(a, c, contracted, batch, like, axes):
            bar = lax.dot_general(
                a, c, (contracted, batch),
                precision=e.params["precision"],
                preferred_element_type=e.params["preferred_element_type"],
                out_sharding=sharding_of(like, axes),
            )  # fmt: skip
            return fit(to_axes(bar, axes), like)

        x_bar = w_bar = None
        if e.wanted[0]:
            x_bar = product(y_bar, w, (y_j, w_j), (y_b, w_b), x, (*x_b, *x_i, *partners(x_k, w_k)))
        if e.wanted[1]:
            w_bar = product(x, y_bar, (x_i, y_i), (x_b, y_b), w, (*w_b, *partners(w_k, x_k), *w_j))
        return x_bar, w_bar


@primitive("ragged_dot_general")
class RaggedDotGeneralRule(Bilinear):
    """Rows i of x fall into groups g(i), one after another, each with a matrix of its own.

        y[i, j] = sum_k x[i, k] w[g(i), k, j]
        x_bar[i, k] = sum_j y_bar[i, j] w[g(i), k, j]
        w_bar[g, k, j] = sum over i in g of x[i, k] y_bar[i, j]

    Groups along a contracted or a batch axis have a tangent, but no cotangent, as in JAX.
    """

    def backward(e, y_bar):
        x, w, sizes = e.ins
        numbers = e.params["ragged_dot_dimension_numbers"]
        (x_k, w_k), (x_b, w_b) = numbers.dot_dimension_numbers
        (ragged,), groups = numbers.lhs_ragged_dimensions, tuple(numbers.rhs_group_dimensions)
        x_i, w_j = others(x, x_k, x_b), others(w, w_k, w_b, groups)
        if ragged not in x_i:
            raise NoPrimitiveRuleError(
                f"ragged_dot_general at {e.place} has no backward where the groups are along a contracted or "
                "a batch axis"
            )
        y_b, y_i, y_j = consecutive(x_b, x_i, w_j)

        def product(a, c, contracted, batch, ragged, groups):
            return lax.ragged_dot_general(
                a, c, sizes,
                lax.RaggedDotDimensionNumbers((contracted, batch), (ragged,), groups),
                precision=e.params["precision"],
                preferred_element_type=e.params["preferred_element_type"],
                group_offset=e.params["group_offset"],
            )  # fmt: skip

        x_bar = w_bar = None
        if e.wanted[0]:
            x_bar = product(y_bar, w, (y_j, w_j), (y_b, w_b), y_i[x_i.index(ragged)], groups)
            x_bar = fit(to_axes(x_bar, (*x_b, *x_i, *partners(x_k, w_k))), x)
        if e.wanted[1]:
            w_bar = product(x, y_bar, (x_i, y_i), (x_b, y_b), ragged, ())
            w_bar = fit(to_axes(w_bar, (*groups, *w_b, *partners(w_k, x_k), *w_j)), w)
        return x_bar, w_bar, None


@primitive("conv_general_dilated")
class ConvolutionRule(Bilinear):
    """y[n, t, o] = sum over k, c of x[n, (s t + r k - low) / d, c] w[k, c, o]

    for the elements k of the window and channels c. The stride is s, the window is dilated by r, and x is
    dilated by d, zero in the gaps and outside. Both derivatives are convolutions (Dumoulin and Visin 2016):

        x_bar   of y_bar, dilated by s, with the window reversed; the stride is d
        w_bar   of x, dilated by d, with y_bar, dilated by s, as window; the stride is r, and examples take
                the place of channels

    With feature groups, one group of the channels of x meets one of those of y; with batch groups, one of the
    examples of x does. In x_bar the groups move from w's outputs to its inputs; in w_bar the two kinds change
    places.
    """

    def backward(e, y_bar):
        return (
            convolution_x_bar(e, y_bar) if e.wanted[0] else None,
            convolution_w_bar(e, y_bar) if e.wanted[1] else None,
        )


def convolution_x_bar(e, y_bar):
    """x_bar[n, i, c] = sum over k, o of y_bar[n, (d i - r k + low) / s, o] w[k, c, o]"""
    (x, w), p = e.ins, e.params
    (of_x, of_w, of_y), by_example = p["dimension_numbers"], p["batch_group_count"] > 1
    groups = max(p["feature_group_count"], p["batch_group_count"])
    outputs, inputs, *window = of_w
    if groups > 1:  # w's outputs (group, o) and inputs c become outputs o and inputs (group, c)
        w = merge(split(w, outputs, groups), outputs, inputs)
    x_bar = lax.conv_general_dilated(
        y_bar,
        lax.rev(w, window).astype(y_bar.dtype),
        window_strides=p["lhs_dilation"],
        padding=transposed_padding(
            sizes(x, of_x), sizes(e.ins[1], of_w), sizes(y_bar, of_y),
            p["window_strides"], p["padding"], p["lhs_dilation"], p["rhs_dilation"],
        ),
        lhs_dilation=p["window_strides"],
        rhs_dilation=p["rhs_dilation"],
        dimension_numbers=lax.ConvDimensionNumbers(of_y, (inputs, outputs, *window), of_x),
        feature_group_count=groups,
        precision=p["precision"],
        preferred_element_type=p["preferred_element_type"],
        out_sharding=sharding_of(x, range(x.ndim)),
    )  # fmt: skip
    if by_example:  # channels (group, c) and examples n become channels c and examples (group, n)
        x_bar = merge(split(x_bar, of_x[1], groups), of_x[1], of_x[0])
    return fit(x_bar, x)


def convolution_w_bar(e, y_bar):
    """w_bar[k, c, o] = sum over n, t of x[n, (s t + r k - low) / d, c] y_bar[n, t, o]"""
    (x, w), p = e.ins, e.params
    if y_bar.size == 0:
        return None
    of_x, of_w, of_y = ((second, first, *rest) for first, second, *rest in p["dimension_numbers"])
    high = [
        spread(k, r) - 1 + spread(t, s) - spread(n, d) - low
        for k, r, t, s, n, d, (low, _) in zip(
            sizes(w, of_w), p["rhs_dilation"], sizes(y_bar, of_y), p["window_strides"],
            sizes(x, of_x), p["lhs_dilation"], p["padding"], strict=True,
        )
    ]  # fmt: skip
    w_bar = lax.conv_general_dilated(
        x.astype(y_bar.dtype),
        y_bar,
        window_strides=p["rhs_dilation"],
        padding=[(low, up) for (low, _), up in zip(p["padding"], high, strict=True)],
        lhs_dilation=p["lhs_dilation"],
        rhs_dilation=p["window_strides"],
        dimension_numbers=lax.ConvDimensionNumbers(of_x, of_y, of_w),
        feature_group_count=p["batch_group_count"],
        batch_group_count=p["feature_group_count"],
        precision=p["precision"],
        preferred_element_type=p["preferred_element_type"],
        out_sharding=sharding_of(w, range(w.ndim)),
    )
    return fit(w_bar, w)


def transposed_padding(size, window, moved, strides, padding, dilation, window_dilation):
    """Padding of y_bar, dilated by the strides, with which the reversed window gives a cotangent of x's size.

    The last element of the window is (K - 1) r further than its first: low' = (K - 1) r - low. The other side
    follows from the size that must result.
    """
    pairs = []
    for n, w, m, s, (low, _), d, r in zip(
        size, window, moved, strides, padding, dilation, window_dilation, strict=True
    ):
        reach, lower = (w - 1) * r, (w - 1) * r - low
        pairs.append((lower, spread(n, d) + reach - spread(m, s) - lower))
    return pairs


def spread(n: int, apart: int) -> int:
    """Length of n elements with gaps between them."""
    return (n - 1) * apart + 1 if n else 0


def sizes(x, spec: Sequence[int]) -> list[int]:
    """Lengths of the spatial axes."""
    return [x.shape[axis] for axis in spec[2:]]


def split(x, axis: int, groups: int):
    """The axis as two: groups and what is in each."""
    return x.reshape(*x.shape[:axis], groups, -1, *x.shape[axis + 1 :])


def merge(x, groups: int, into: int):
    """The axis `groups` goes in front of the axis that is `into` without it, and the two are one."""
    shape = [*x.shape[:groups], *x.shape[groups + 1 :]]
    shape[into] *= x.shape[groups]
    return jnp.moveaxis(x, groups, into).reshape(shape)


def others(x, *groups: Sequence[int]) -> list[int]:
    """The axes of x that are in none of the groups, in order."""
    taken = {axis for group in groups for axis in group}
    return [axis for axis in range(x.ndim) if axis not in taken]


def consecutive(*groups: Sequence[int]) -> list[list[int]]:
    """The axes of a product, whose groups of axes follow each other."""
    ends = np.cumsum([len(group) for group in groups])
    return [list(range(end - len(group), end)) for end, group in zip(ends, groups, strict=True)]


def partners(axes: Sequence[int], theirs: Sequence[int]) -> list[int]:
    """Contracted axes in the order in which those they were contracted with come."""
    return [axis for _, axis in sorted(zip(theirs, axes, strict=True))]


def sharding_of(x, axes: Sequence[int]) -> NamedSharding | None:
    """How x is spread over devices, for its axes in another order; None where the compiler decides."""
    spread_as = jax.typeof(x).sharding
    if AxisType.Explicit not in spread_as.mesh.axis_types:
        return None
    return NamedSharding(spread_as.mesh, PartitionSpec(*(spread_as.spec[axis] for axis in axes)))


def to_axes(x, axes: Sequence[int]):
    """x with its axis number i moved to axes[i]."""
    permutation = sorted(range(x.ndim), key=lambda i: axes[i])
    return x if permutation == list(range(x.ndim)) else lax.transpose(x, permutation)


refused("scaled_dot", why="JAX has no derivative of it either")
