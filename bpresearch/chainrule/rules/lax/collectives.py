"""Collectives: sums, gathers and exchanges over the devices of a mesh axis, or over the copies of a `vmap`.

A collective is linear in the values of all devices together, and its transpose is a collective again. Inside
`shard_map` a value's type tells how it lies on a mesh axis, and so does its cotangent's:

    varying (another on each device)                        has a varying cotangent
    invariant (the same on each)                            an invariant one
    reduced (the same on each, cotangents not yet summed)   an unreduced one, the sum still to be taken

Hence the pairs of transposes: summing takes varying to invariant, casting takes it back. With
`check_vma=False` types tell nothing, and `psum` is read as a sum whose result each device then uses for
itself: it is its own transpose. All this is JAX's own meaning, see `jax.shard_map`.
"""

import jax.numpy as jnp
from jax import lax

from bpresearch.chainrule.primitives import Value, constant, linear, primitive, refused

constant("axis_index", why="integers")
refused(
    "pmax",
    "pmin",
    "unreduced_pmax",
    "unreduced_pmin",
    "psend",
    "precv",
    why="JAX has no derivative of it either; gather the values and take their maximum or minimum",
)
refused(
    "all_gather_start",
    "all_gather_done",
    "all_gather_reduced_start",
    "all_to_all_start",
    "all_to_all_done",
    "pbroadcast_start",
    "pbroadcast_done",
    "ppermute_start",
    "ppermute_done",
    "psum_done",
    "psum_invariant_start",
    "psum_start",
    "reduce_scatter_start",
    "reduce_scatter_done",
    "unreduced_psum_start",
    why="half of an asynchronous collective, of which JAX has no derivative either",
)


@linear("psum")
def sum_used_by_each(e, y_bar):
    """y = sum_k x_k on each device.      (x_k)_bar = sum_k (y_k)_bar: device k uses its y for itself

    Axes given by number are those of a `vmap`, summed away: x_bar = y_bar for each copy.
    """
    named = tuple(axis for axis in e.params["axes"] if isinstance(axis, str) or not isinstance(axis, int))
    numbered = tuple(axis for axis in e.params["axes"] if axis not in named)
    if numbered:
        x = e.ins[0]
        other_axes = tuple(axis for axis in range(x.ndim) if axis not in numbered)
        y_bar = lax.broadcast_in_dim(y_bar, x.shape, other_axes)
    return lax.psum(y_bar, named, axis_index_groups=e.params["axis_index_groups"]) if named else y_bar


@linear("psum_invariant")
def sum_to_invariant(e, y_bar):
    """y = sum_k x_k, invariant.      (x_k)_bar = y_bar, varying"""
    return lax.pcast(y_bar, e.params["axes"], to="varying")


@linear("pvary")
def invariant_to_varying(e, y_bar):
    """y_k = x.      x_bar = sum_k (y_k)_bar"""
    return lax.psum(y_bar, e.params["axes"])


@linear("ppermute")
def permuted(e, y_bar):
    """y_j = x_i for (i, j) in perm, else zero.      (x_i)_bar = (y_j)_bar, else zero"""
    back = [(target, source) for source, target in e.params["perm"]]
    return lax.ppermute(y_bar, e.params["axis_name"], back)


def _to_source(e, y_bar, source):
    total = lax.psum(y_bar, e.params["axis_name"])
    return jnp.where(lax.axis_index(e.params["axis_name"]) == source, total, 0).astype(total.dtype)


@linear("pbroadcast")
def broadcast_from_one(e, y_bar):
    """y_k = x_source.      (x_source)_bar = sum_k (y_k)_bar, zero for the others"""
    return _to_source(e, y_bar, e.params["source"])


@linear("pbroadcast_dynamic")
def broadcast_from_a_computed_one(e, y_bar):
    """As `pbroadcast`; the source is an operand."""
    return _to_source(e, y_bar, e.ins[1])


@linear("all_gather")
def gathered(e, y_bar):
    """y = [x_1, x_2, ...] on each device.      (x_k)_bar = sum over devices of the k-th part of y_bar"""
    p = e.params
    return lax.psum_scatter(
        y_bar,
        p["axis_name"],
        scatter_dimension=p["all_gather_dimension"],
        axis_index_groups=p["axis_index_groups"],
        tiled=p["tiled"],
    )


@linear("reduce_scatter")
def summed_and_scattered(e, y_bar):
    """y_k = sum over devices of the k-th part of x.      x_bar = [(y_1)_bar, (y_2)_bar, ...]"""
    p = e.params
    return lax.all_gather(
        y_bar,
        p["axis_name"],
        axis=p["scatter_dimension"],
        axis_index_groups=p["axis_index_groups"],
        tiled=p["tiled"],
    )


@linear("all_gather_invariant")
def gathered_to_invariant(e, y_bar):
    """y = [x_1, x_2, ...], invariant.      (x_k)_bar is the k-th part of y_bar"""
    axis, tiled = e.params["all_gather_dimension"], e.params["tiled"]
    size = y_bar.shape[axis] // e.params["axis_size"]
    start = lax.axis_index(e.params["axis_name"]) * size
    part = lax.dynamic_slice_in_dim(y_bar, start, size, axis)
    return part if tiled else lax.squeeze(part, (axis,))


@linear("all_to_all")
def exchanged(e, y_bar):
    """Part j of x_i becomes part i of y_j.      Part i of (y_j)_bar becomes part j of (x_i)_bar"""
    p = e.params
    swapped = {**p, "split_axis": p["concat_axis"], "concat_axis": p["split_axis"]}
    return e.primitive.bind(y_bar, **swapped)


@primitive("ragged_all_to_all")
class RaggedAllToAllRule:
    """Rows of x, s_j of them from a_j on, go to device j and lie there from b_j on; the rest of y is z's.

        x_bar = the exchange the other way: of y_bar, from b_j on, as many as arrived, to a_j on
        z_bar = y_bar where nothing arrived, elsewhere 0

    Where rows arrive is known by their sender: sender and receiver exchange their offsets.
    """

    def backward(e, y_bar):
        x, z, starts, sizes, targets, received = e.ins
        axis = e.params["axis_name"]
        arrived_at, sent_from = (lax.all_to_all(v, axis, 0, 0, tiled=True) for v in (targets, starts))
        (x_bar,) = e.bind(y_bar, jnp.zeros_like(x), arrived_at, received, sent_from, sizes)
        return x_bar, jnp.where(_rows_between(z, arrived_at, received), 0, y_bar), None, None, None, None

    def tangent(e, x_dot, z_dot, *_):
        x, z, *where = e.ins
        x_dot = jnp.zeros_like(x) if x_dot is None else x_dot
        z_dot = jnp.zeros_like(z) if z_dot is None else z_dot
        return e.bind(x_dot, z_dot, *where)


def _rows_between(z: Value, starts: Value, sizes: Value) -> Value:
    """Which rows of z are among `sizes` rows from one of `starts` on."""
    row = lax.broadcasted_iota(starts.dtype, (z.shape[0], starts.shape[0]), 0)
    starts, ends = (jnp.expand_dims(v, 0) for v in (starts, starts + sizes))
    some = jnp.any((row >= starts) & (row < ends), axis=1)
    return lax.broadcast_in_dim(some, z.shape, (0,))


@linear("unreduced_psum")
def unreduced_to_invariant(e, y_bar):
    """The sum still to be taken is taken.      Transpose: invariant becomes reduced"""
    return lax.pcast(y_bar, e.params["axes"], to="reduced")


@linear("preduced")
def invariant_to_reduced(e, y_bar):
    """Invariant becomes reduced.      Transpose: the sum over unreduced cotangents"""
    return lax.psum(y_bar, e.params["axes"])


@linear("vary_unreduced_cast", "vary_unreduced_cast_p")
def varying_to_unreduced(e, y_bar):
    """Varying values become terms of a sum.      Transpose: reduced becomes varying"""
    return lax.pcast(y_bar, e.params["axes"], to="varying")


@linear("reduced_vary_cast", "reduced_vary_cast_p")
def reduced_to_varying(e, y_bar):
    """Reduced becomes varying.      Transpose: varying cotangents become terms of a sum"""
    return lax.pcast(y_bar, e.params["axes"], to="unreduced")


@linear("all_gather_reduced")
def gathered_to_reduced(e, y_bar):
    """y = [x_1, x_2, ...], reduced.      (x_k)_bar = the sum still to be taken of the k-th part of y_bar"""
    p = e.params
    return lax.psum_scatter(
        y_bar, p["axis_name"], scatter_dimension=p["all_gather_dimension"], tiled=p["tiled"]
    )


@linear("unreduced_reduce_scatter")
def unreduced_summed_and_scattered(e, y_bar):
    """y_k = the sum, still to be taken, of the k-th part of x.      x_bar = [(y_1)_bar, ...], reduced"""
    p = e.params
    return lax.all_gather(y_bar, p["axis_name"], axis=p["scatter_dimension"], tiled=p["tiled"], to="reduced")
