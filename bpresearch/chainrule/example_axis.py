"""Where the examples of a batch are: their axis, followed through one operation after another.

A value of a batch has an axis along which its examples lie. An operation keeps the examples apart if each
slice of its result along that axis is made from the same slices of its operands; then it can be done for one
example alone, on slices of length one. There is a rule for each primitive of which that is known. A rule says
along which axes the operands are cut, what changes in the parameters when the axis has length one, and where
the axis is in the results; it raises `ExamplesMeet` where two examples come together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, SupportsInt, TypeAlias


@dataclass(frozen=True)
class Axis:
    """The axis of the examples. Reshapes merge it with others: its length is `before` * batch * `after`."""

    dim: int
    before: int = 1
    after: int = 1

    @property
    def length(self) -> int:
        """What one example has of the axis."""
        return self.before * self.after

    def at(self, dim: SupportsInt) -> "Axis":
        """The axis, moved."""
        return replace(self, dim=int(dim))

    def cut(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Sizes of axes of the batch's value, for one example."""
        return (*sizes[: self.dim], self.length, *sizes[self.dim + 1 :])


Axes: TypeAlias = Sequence[Any]
"""For each operand its axis, or None."""

TERM = Axis(-1)
"""In the place of an axis: what one example adds to a sum over the batch; on the way back only."""


class ExamplesMeet(Exception):
    """Two examples come together in an operation."""


class CannotTell(ExamplesMeet):
    """There is no rule that tells whether they do."""


@dataclass(frozen=True)
class Operation:
    """An equation of a batch's program, for looking at.

    Attributes:
        params: its parameters.
        operands, results: shapes.
        size: number of examples.
        adds: whether sums over the examples may be taken, because the cotangent of what they share is one.
        numbered: of indices, the columns that hold the number of the example itself, and along which axis.
    """

    params: dict[str, Any]
    operands: list[tuple[int, ...]]
    results: list[tuple[int, ...]]
    size: int
    adds: bool = False
    numbered: dict[int, Axis] = field(default_factory=dict)


@dataclass(frozen=True)
class Passage:
    """How examples pass an operation.

    Attributes:
        operands: the axis along which one example is cut out of each; None where it is taken as it is.
        results: where the axis is in each result.
        changed: parameters that are others for one example.
        column: of the indices, in which the number of the example becomes 0.
    """

    operands: tuple[Axis | None, ...]
    results: tuple[Axis, ...]
    changed: dict[str, Any] = field(default_factory=dict)
    column: int | None = None


Follow = Callable[[Operation, Axes], Passage]
rules: dict[str, Follow] = {}
"""How the examples pass an operation, by the name of its primitive."""


def follow(name: str, o: Operation, axes: Axes) -> Passage:
    """How the examples pass an operation, some of whose operands have an axis of them."""
    if name in rules:
        return rules[name](o, axes)
    raise CannotTell


def _rule(*names: str) -> Callable[[Follow], Follow]:
    def register(function: Follow) -> Follow:
        rules.update(dict.fromkeys(names, function))
        return function

    return register


def _common(axes: Axes) -> Axis:
    """The axis of all operands that have one."""
    distinct = {axis for axis in axes if axis is not None}
    if len(distinct) != 1:
        raise ExamplesMeet
    return distinct.pop()


def _apart(condition: bool) -> None:
    if not condition:
        raise ExamplesMeet


ELEMENTWISE = [
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "bessel_i0e", "bessel_i1e", "bitcast_convert_type", "cbrt", "ceil", "clamp", "clz", "complex",
    "conj", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "div", "eq", "eq_to",
    "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma", "igamma_grad_a",
    "igammac", "imag", "integer_pow", "is_finite", "le", "le_to", "lgamma", "log", "log1p", "log2",
    "logistic", "lt", "lt_to", "max", "min", "mul", "mulhi", "name", "ne", "neg", "nextafter", "not",
    "one_minus_square", "or", "polygamma", "population_count", "pow", "random_clone", "random_fold_in",
    "random_gamma", "random_seed", "real", "reduce_precision", "regularized_incomplete_beta", "rem",
    "round", "rsqrt", "select_n", "sharding_constraint", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan",
    "tanh", "threefry2x32", "xor", "zeta",
]  # fmt: skip


@_rule(*ELEMENTWISE)
def elementwise(o: Operation, axes: Axes) -> Passage:
    """Operands that are no scalars, nor broadcast along the axis, are cut like the result."""
    axis, shape = _common(axes), o.results[0]
    cut = [len(s) == len(shape) and len(s) > 0 and s[axis.dim] == shape[axis.dim] for s in o.operands]
    _apart(all(c for c, own in zip(cut, axes, strict=True) if own))
    return Passage(tuple(axis if c else None for c in cut), (axis,) * len(o.results))


@_rule("optimization_barrier", "device_put", "tie")
def in_pairs(o: Operation, axes: Axes) -> Passage:
    """Result n is operand n; those that all examples share are cut like the others."""
    axis = _common(axes)
    _apart(all(len(shape) > axis.dim for shape in o.operands) and len(o.operands) == len(o.results))
    return Passage((axis,) * len(o.operands), (axis,) * len(o.results))


@_rule("reshape")
def reshape(o: Operation, axes: Axes) -> Passage:
    """The axis may be merged with its neighbours and parted from them again, but not be divided itself."""
    (axis, *_), (shape, *_), sizes = axes, o.operands, o.params["new_sizes"]
    before = prod(shape[: axis.dim]) * axis.before
    after = axis.after * prod(shape[axis.dim + 1 :])
    _apart(o.params.get("dimensions") is None)
    for dim, length in enumerate(sizes):
        left, right = prod(sizes[:dim]), prod(sizes[dim + 1 :])
        if left and right and before % left == 0 and after % right == 0:
            new = Axis(dim, before // left, after // right)
            if new.length * o.size == length:
                return Passage((axis,), (new,), {"new_sizes": new.cut(sizes)})
    raise ExamplesMeet


@_rule("broadcast_in_dim")
def broadcast_in_dim(o: Operation, axes: Axes) -> Passage:
    axis, shape = axes[0], o.params["shape"]
    new = axis.at(o.params["broadcast_dimensions"][axis.dim])
    _apart(shape[new.dim] == o.operands[0][axis.dim])
    return Passage((axis,), (new,), {"shape": new.cut(shape)})


@_rule("transpose")
def transpose(o: Operation, axes: Axes) -> Passage:
    return Passage((axes[0],), (axes[0].at(o.params["permutation"].index(axes[0].dim)),))


@_rule("squeeze")
def squeeze(o: Operation, axes: Axes) -> Passage:
    return _without(o.params["dimensions"], o, axes)


def _without(gone: Sequence[Any], o: Operation, axes: Axes) -> Passage:
    """Axes are taken away, but not that of the examples; operands of no axes are as they are."""
    axis = _common(axes)
    _apart(axis.dim not in gone)
    new = axis.at(axis.dim - sum(dim < axis.dim for dim in gone))
    return Passage(tuple(axis if shape else None for shape in o.operands), (new,) * len(o.results))


@_rule("reduce_sum")
def reduce_sum(o: Operation, axes: Axes) -> Passage:
    if o.adds and axes[0].dim in o.params["axes"]:
        return Passage((axes[0],), (TERM,))
    return _without(o.params["axes"], o, axes)


@_rule("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin")
def reductions(o: Operation, axes: Axes) -> Passage:
    return _without(o.params["axes"], o, axes)


@_rule("reduce")
def reduce(o: Operation, axes: Axes) -> Passage:
    return _without(o.params["dimensions"], o, axes)


@_rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "split", "top_k", "sort", "concatenate")
def along_an_axis(o: Operation, axes: Axes) -> Passage:
    """What happens along one axis leaves the others apart."""
    axis, p = _common(axes), o.params
    _apart(p.get("axis", p.get("dimension", -1)) % len(o.operands[0]) != axis.dim)
    return Passage((axis,) * len(o.operands), (axis,) * len(o.results))


@_rule("rev")
def rev(o: Operation, axes: Axes) -> Passage:
    _apart(axes[0].dim not in o.params["dimensions"])
    return Passage((axes[0],), (axes[0],))


@_rule("pad")
def pad(o: Operation, axes: Axes) -> Passage:
    _apart(axes[0] is not None and tuple(o.params["padding_config"][axes[0].dim]) == (0, 0, 0))
    return Passage((axes[0], None), (axes[0],))


@_rule("slice")
def slice_(o: Operation, axes: Axes) -> Passage:
    """All examples are taken."""
    axis, p = axes[0], o.params
    strides = p["strides"] or (1,) * len(o.operands[0])
    _apart(strides[axis.dim] == 1 and o.results[0][axis.dim] == o.operands[0][axis.dim])
    return Passage((axis,), (axis,), {"limit_indices": axis.cut(p["limit_indices"])})


@_rule("dynamic_slice")
def dynamic_slice(o: Operation, axes: Axes) -> Passage:
    """All examples are taken; where that is so, the index along their axis is 0, whatever is given."""
    axis, sizes = axes[0], o.params["slice_sizes"]
    _apart(axis is not None and not any(axes[1:]) and sizes[axis.dim] == o.operands[0][axis.dim])
    nothing = (None,) * (len(o.operands) - 1)
    return Passage((axis, *nothing), (axis,), {"slice_sizes": axis.cut(sizes)})


@_rule("dynamic_update_slice")
def dynamic_update_slice(o: Operation, axes: Axes) -> Passage:
    axis = _common(axes[:2])
    _apart(not any(axes[2:]) and o.operands[0][axis.dim] == o.operands[1][axis.dim])
    return Passage((axis, axis, *(None,) * (len(o.operands) - 2)), (axis,))


@_rule("stack")
def stack(o: Operation, axes: Axes) -> Passage:
    axis = _common(axes)
    return Passage((axis,) * len(o.operands), (axis.at(axis.dim + (o.params["axis"] <= axis.dim)),))


@_rule("unstack")
def unstack(o: Operation, axes: Axes) -> Passage:
    return _without((o.params["axis"],), o, axes)


@_rule("tile")
def tile(o: Operation, axes: Axes) -> Passage:
    _apart(o.params["reps"][axes[0].dim] == 1)
    return Passage((axes[0],), (axes[0],))


@_rule("fft")
def fft(o: Operation, axes: Axes) -> Passage:
    _apart(axes[0].dim < len(o.operands[0]) - len(o.params["fft_lengths"]))
    return Passage((axes[0],), (axes[0],))


@_rule("cholesky", "lu", "qr", "eigh", "eig", "svd", "triangular_solve", "tridiagonal_solve")
def of_matrices(o: Operation, axes: Axes) -> Passage:
    """One matrix for each index of the axes in front."""
    axis = _common(axes)
    _apart(axis.dim < max(map(len, o.operands)) - 2)
    return Passage((axis,) * len(o.operands), (axis,) * len(o.results))


@_rule("random_bits", "random_split", "random_wrap", "random_unwrap")
def keys(o: Operation, axes: Axes) -> Passage:
    """One draw for each key: what is drawn has further axes behind those of the keys."""
    _apart(axes[0].dim < len(o.results[0]))
    return Passage((axes[0],), (axes[0],))


@_rule(
    "reduce_window_sum",
    "reduce_window_max",
    "reduce_window_min",
    "select_and_gather_add",
    "select_and_scatter_add",
)
def windows(o: Operation, axes: Axes) -> Passage:
    """The window has length one along the examples."""
    axis, p = _common(axes), o.params
    window = p["window_dimensions"][axis.dim], p["window_strides"][axis.dim], *p["padding"][axis.dim]
    dilations = [p[name][axis.dim] for name in ("base_dilation", "window_dilation") if p.get(name)]
    _apart(window == (1, 1, 0, 0) and all(d == 1 for d in dilations))
    return Passage((axis,) * len(o.operands), (axis,))


@_rule("reduce_window")
def reduce_window(o: Operation, axes: Axes) -> Passage:
    count = len(o.operands) // 2
    _apart(not any(axes[count:]))
    passage = windows(replace(o, operands=o.operands[:count]), axes[:count])
    return Passage((*passage.operands, *(None,) * count), passage.results * len(o.results))


@_rule("conv_general_dilated")
def convolution(o: Operation, axes: Axes) -> Passage:
    """The examples are what the convolution itself takes for a batch, and share the kernel."""
    (x, kernel), (of_x, _, of_y) = axes, o.params["dimension_numbers"]
    _apart(x is not None and kernel is None and x.dim == of_x[0] and o.params["batch_group_count"] == 1)
    return Passage((x, None), (x.at(of_y[0]),))


@_rule("dot_general")
def dot_general(o: Operation, axes: Axes) -> Passage:
    """The axis is free in one factor, and the other is shared; or it is a batch axis of both."""
    (contracted, batched), ranks = o.params["dimension_numbers"], [len(shape) for shape in o.operands]
    side = 0 if axes[0] is not None else 1
    axis, other = axes[side], axes[1 - side]
    passage: list[Axis | None] = [None, None]
    passage[side] = axis
    for kind, adds in ((batched, False), (contracted, True)):
        if axis.dim in kind[side]:
            place = list(kind[side]).index(axis.dim)
            passage[1 - side] = axis.at(kind[1 - side][place])
            _apart(not adds or o.adds)
            return Passage(tuple(passage), (TERM if adds else axis.at(place),))
    _apart(other is None)
    free = [[d for d in range(ranks[s]) if d not in (*contracted[s], *batched[s])] for s in (0, 1)]
    start = len(batched[0]) + (len(free[0]) if side else 0)
    return Passage(tuple(passage), (axis.at(start + free[side].index(axis.dim)),))


@_rule("gather")
def gather(o: Operation, axes: Axes) -> Passage:
    """Indices that are an example's own pick from it or from a table; those that all share, from each."""
    (x, index), (shape, indices), n = axes, o.operands, o.params["dimension_numbers"]
    sizes = o.params["slice_sizes"]
    taken = [d for d in range(len(shape)) if d not in (*n.collapsed_slice_dims, *n.operand_batching_dims)]
    picks = [d for d in range(len(o.results[0])) if d not in n.offset_dims]
    if x is None:
        _apart(index.dim < len(indices) - 1)
        if index.dim in n.start_indices_batching_dims:
            x = index.at(n.operand_batching_dims[n.start_indices_batching_dims.index(index.dim)])
            _apart(x.before == x.after == 1)
        return Passage((x, index), (index.at(picks[index.dim]),), {"slice_sizes": sizes})
    if x.dim in taken:
        _apart(index is None and sizes[x.dim] == shape[x.dim])
        return Passage((x, None), (x.at(n.offset_dims[taken.index(x.dim)]),), {"slice_sizes": x.cut(sizes)})
    if x.dim in n.operand_batching_dims:
        index = x.at(n.start_indices_batching_dims[n.operand_batching_dims.index(x.dim)])
        return Passage((x, index), (x.at(picks[index.dim]),))
    column = n.start_index_map.index(x.dim) if x.dim in n.start_index_map else -1
    _apart(column in o.numbered and x == Axis(x.dim))
    index = o.numbered[column]
    return Passage((x, index), (index.at(picks[index.dim]),), column=column)


@_rule("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")
def scatter(o: Operation, axes: Axes) -> Passage:
    """Each example is written to at its own places, or at places that all share."""
    (x, index, updates), n = axes, o.params["dimension_numbers"]
    shape, _, moved = o.operands
    written = [d for d in range(len(shape)) if d not in (*n.inserted_window_dims, *n.operand_batching_dims)]
    places = [d for d in range(len(moved)) if d not in n.update_window_dims]

    def passage(dim, of_index, of_updates, column=None):
        axis = (x or updates or index).at(dim)
        _apart(axis == Axis(dim) or of_index is None)
        cut = None if of_index is None else axis.at(of_index)
        return Passage((axis, cut, axis.at(of_updates)), (axis,), column=column)

    for dim in written:
        of_updates = n.update_window_dims[written.index(dim)]
        if (x and x.dim == dim) or (not x and updates and updates.dim == of_updates):
            _apart(index is None and moved[of_updates] == shape[dim])
            return passage(dim, None, of_updates)
    for dim, of_index in zip(n.operand_batching_dims, n.scatter_indices_batching_dims, strict=True):
        if x.dim == dim if x else (index or updates).dim == (of_index if index else places[of_index]):
            return passage(dim, of_index, places[of_index])
    for column, of_index in o.numbered.items():
        dim = n.scatter_dims_to_operand_dims[column]
        if dim in n.inserted_window_dims and (not x or x == Axis(dim)):
            return passage(dim, of_index.dim, places[of_index.dim], column)
    raise ExamplesMeet
