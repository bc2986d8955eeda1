"""Sorting and the largest elements: the cotangents go back to where the elements came from."""

import jax.numpy as jnp
from jax import lax

from bpresearch.chainrule.primitives import Equation, Value, constant, primitive


@primitive("sort")
class Sort:
    """y = x[p] along an axis, for every operand, p the permutation that sorts the keys:  x_bar[p] = y_bar

    Where keys are equal, p is the order in which the sort has left them. `forward` sorts the places along, so
    that backward need not sort again.
    """

    def flow(params, flags):
        return flags

    def forward(e):
        places = lax.broadcasted_iota(jnp.int32, e.ins[0].shape, e.params["dimension"])
        *outs, p = e.bind(*e.ins, places)
        return tuple(outs), p

    def pushforward(e, *x_dots):
        outs, p = Sort.forward(e)
        return outs, tuple(None if dot is None else taken(dot, p, e.params["dimension"]) for dot in x_dots)

    def backward(e, *y_bars):
        p = e.kept if hasattr(e.kept, "shape") else Sort.forward(e)[1]
        return tuple(
            sent_back(bar, p, x, e.params["dimension"]) if wanted and bar is not None else None
            for bar, x, wanted in zip(y_bars, e.ins, e.wanted, strict=True)
        )

    def tangent(e, *x_dots):
        return Sort.pushforward(e, *x_dots)[1]


@primitive("top_k", "approx_top_k")
class TopK:
    """y = x[p], the k largest elements along an axis, and their places p:  x_bar[p] = y_bar, elsewhere 0"""

    def backward(e, y_bar, _):
        (x,), (_, p) = e.ins, e.outs
        return sent_back(y_bar, p, x, top_axis(e))

    def tangent(e, x_dot):
        return taken(x_dot, e.outs[1], top_axis(e)), None


def top_axis(e: Equation) -> int:
    """The axis along which the largest are looked for."""
    axis = e.params["reduction_dimension"] if e.primitive.name == "approx_top_k" else e.params.get("axis", -1)
    return axis % e.ins[0].ndim


def taken(x: Value, p: Value, axis: int) -> Value:
    """x[p] along an axis, for each position along the others."""
    others = tuple(i for i in range(x.ndim) if i != axis)
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(),
        collapsed_slice_dims=(axis,),
        start_index_map=(axis,),
        operand_batching_dims=others,
        start_indices_batching_dims=others,
    )
    sizes = (1,) * x.ndim
    return lax.gather(x, lax.expand_dims(p, (p.ndim,)), numbers, sizes, mode="promise_in_bounds")


def sent_back(y_bar: Value, p: Value, x: Value, axis: int) -> Value:
    """x_bar with x_bar[p] = y_bar along an axis, and zero where p does not point."""
    others = tuple(i for i in range(x.ndim) if i != axis)
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(),
        inserted_window_dims=(axis,),
        scatter_dims_to_operand_dims=(axis,),
        operand_batching_dims=others,
        scatter_indices_batching_dims=others,
    )
    zeros = jnp.zeros_like(x)
    indices = lax.expand_dims(p, (p.ndim,))
    return lax.scatter_add(zeros, indices, y_bar, numbers, unique_indices=True, mode="promise_in_bounds")


constant("argmax", "argmin", why="its results are places")
