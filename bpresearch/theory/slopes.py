"""The local derivatives of a program's steps, by their rules: the factors that paths are products of.

A step's factors from an operand to a result are a matrix, units after by units before. Functions of each
element and copies have one number for each unit after; of all other steps the rule's backward is mapped over
unit cotangents, and row i of the matrix is what it gives for the i-th.

A complex number is two units, its real and imaginary part. By JAX's convention the cotangent of u + iv is
u_bar - i v_bar.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpresearch.chainrule import engine, tangents
from bpresearch.chainrule.primitives import LAYER, Equation, Value
from bpresearch.theory.routes import Factors
from bpresearch.theory.steps import CALLS, CUSTOM, LossProgram, Step, acts_on_each, shape_of

WEIGHT = -1
"""The node that paths start from: one element of a parameter."""

COPIES = frozenset({
    "broadcast_in_dim", "concatenate", "dynamic_slice", "dynamic_update_slice", "gather", "pad", "reshape",
    "rev", "slice", "split", "squeeze", "stack", "tile", "transpose", "unstack",
})  # fmt: skip
"""Each element of the result is an element of an operand, or a constant."""

UNSEEN = COPIES | {
    "add", "add_any", "complex", "convert_element_type", "copy", "imag", "name", "real", "reduce_precision",
    "reduce_sum", "sharding_constraint", "stage", "sub",
}  # fmt: skip
"""Steps all of whose factors are 1 (but those of what is subtracted): paths pass without noticing."""

MOST_ELEMENTS = 2**24
"""Of the cotangents that one mapped backward pass makes."""


class Slope(NamedTuple):
    """A step's derivative of one result by one operand.

    Attributes:
        step: number of the step; of the loss, which is one step, that of its first one.
        operand, result: their places among the step's.
        before, after: the nodes: numbers of values, or `WEIGHT`.
        form: of its matrix: "each", "copy", "sum", "dense" or "loss".
        unseen: whether all factors are 1 by the nature of the step.
        shape_before, shape_after: of the values, with a leading 2 where they are complex.
    """

    step: int
    operand: int
    result: int
    before: int
    after: int
    form: str
    unseen: bool
    shape_before: tuple[int, ...]
    shape_after: tuple[int, ...]


class Slopes:
    """All slopes between one parameter and the loss."""

    def __init__(self, program: LossProgram, parameter: int):
        self.program, self.steps = program, program.steps.steps
        self.parameter, self.end = parameter, program.steps.loss
        self.moving = program.steps.moving([parameter])
        self.weights = self._copies_of_the_weight()
        self.listed = [*self._of_model(), *self._of_loss()]

    def _copies_of_the_weight(self) -> set[int]:
        """The parameter and what only moves its elements: they are one node, the element itself."""
        copies = {self.program.steps.inputs[self.parameter]} & self.moving
        for i, step in enumerate(self.steps):
            operands = [k for k, v in enumerate(step.ins) if v in self.moving]
            if i in self.program.of_loss or not all(step.ins[k] in copies for k in operands):
                continue
            if operands and all(is_unseen(step, k) for k in operands):
                copies.update(out for out in step.outs if out in self.moving)
        return copies

    def _of_model(self) -> list[Slope]:
        return [
            self._slope(i, k, r)
            for i, step in enumerate(self.steps)
            if i not in self.program.of_loss
            for r, out in enumerate(step.outs)
            if out in self.moving and out not in self.weights
            for k, v in enumerate(step.ins)
            if v in self.moving
        ]

    def _slope(self, i: int, k: int, r: int) -> Slope:
        step = self.steps[i]
        is_weight = step.ins[k] in self.weights
        before = WEIGHT if is_weight else step.ins[k]
        shapes = units_of(step.eqn.invars[k].aval), units_of(step.eqn.outvars[r].aval)
        unseen = is_unseen(step, k) and not is_weight
        return Slope(
            i, k, r, WEIGHT if is_weight else before, step.outs[r], form_of(step, k), unseen, *shapes
        )

    def _of_loss(self) -> list[Slope]:
        """The loss as one step, from all that enters it."""
        inside = sorted(self.program.of_loss)
        made = {out for i in inside for out in self.steps[i].outs}
        entering = {
            WEIGHT if v in self.weights else v: units_of(step.eqn.invars[k].aval)
            for step in map(self.steps.__getitem__, inside)
            for k, v in enumerate(step.ins)
            if v in self.moving and v not in made
        }
        return [
            Slope(inside[0], 0, 0, before, self.end, "loss", False, shape, ())
            for before, shape in entering.items()
        ]

    def values(self, index: int) -> Callable[[Sequence[Value]], list[Value]]:
        """The function from the program's arguments to the numbers in each slope, by the rules.

        Args:
            index: of the parameter's element.
        """

        def values(args):
            equations = self.program.steps.evaluate(args, self.moving)
            dots = self._tangents(args, index, equations)
            bars = loss_bars(self.program, equations, self.moving)
            return [self._value(slope, equations[slope.step], dots, bars) for slope in self.listed]

        return values

    def _tangents(self, args: Sequence[Value], index: int, equations: list[Equation]) -> dict[int, Value]:
        """Of the parameter and its copies: 1 where the element is, else 0."""
        start, leaf = self.program.steps.inputs[self.parameter], args[self.parameter]
        dots = {start: jnp.zeros(leaf.size, leaf.dtype).at[index].set(1).reshape(leaf.shape)}
        for step, e in zip(self.steps, equations, strict=True):
            if any(out in self.weights for out in step.outs):
                given = [dots.get(v) for v in step.ins]
                _, out_dots = tangents.push(e, given)
                dots.update((v, dot) for v, dot in zip(step.outs, out_dots, strict=True) if dot is not None)
        return dots

    def _value(self, slope: Slope, e: Equation, dots: dict[int, Value], bars: dict[int, Value]) -> Value:
        """The numbers in a slope's matrix; from the weight, whose matrix is a column, that column."""
        if slope.form == "loss":
            return self._loss_value(slope, dots, bars)
        dot = dots[self.steps[slope.step].ins[slope.operand]] if slope.before == WEIGHT else None
        if slope.form == "each":
            return each(e, slope.operand, dot)
        if slope.form == "copy" and dot is None:
            return sources(e, slope.operand, slope.result)
        if slope.form == "sum" and dot is None:
            return jnp.zeros(())  # all that there is to know is in the shapes
        return dense(e, slope.operand, slope.result, dot)

    def _loss_value(self, slope: Slope, dots: dict[int, Value], bars: dict[int, Value]) -> Value:
        if slope.before == WEIGHT:
            terms = [real(jnp.sum(bars[v] * dot)) for v, dot in dots.items() if v in bars]
            return sum(terms, start=jnp.zeros(()))
        return parts(bars[slope.before]) if slope.before in bars else jnp.zeros(math.prod(slope.shape_before))

    def factors(self, slope: Slope, value: np.ndarray) -> Factors:
        """The slope's matrix, without zeros."""
        e, before = self.steps[slope.step].eqn, math.prod(slope.shape_before)
        if slope.before == WEIGHT:
            return from_dense(value.reshape(-1, 1))
        if slope.form in ("dense", "loss"):
            return from_dense(value.reshape(-1, before))
        x, y = e.invars[slope.operand].aval, e.outvars[slope.result].aval
        if slope.form == "each":
            return from_each(value, x, y)
        return from_copy(value, x, y) if slope.form == "copy" else from_sum(e.params["axes"], x, y)


def loss_bars(program: LossProgram, equations: list[Equation], moving: set[int]) -> dict[int, Value]:
    """The loss walked backward: cotangents of the values in it and of those that enter it."""
    bars: dict[int, Value] = {program.steps.loss: jnp.ones((), equations[-1].outs[0].dtype)}
    for i in sorted(program.of_loss, reverse=True):
        step, e = program.steps.steps[i], equations[i]
        y_bars = [bars.get(out) for out in step.outs]
        if any(bar is not None and out in moving for out, bar in zip(step.outs, y_bars, strict=True)):
            for v, bar in zip(step.ins, engine.pull_back(e, y_bars), strict=True):
                if bar is not None and v in moving:
                    bars[v] = bars[v] + bar if v in bars else bar
    return bars


def units_of(aval: jax.core.ShapedArray) -> tuple[int, ...]:
    """The shape of a value's units."""
    return (2, *aval.shape) if jnp.issubdtype(aval.dtype, jnp.complexfloating) else tuple(aval.shape)


def is_unseen(step: Step, k: int) -> bool:
    """Whether all factors from an operand are 1 by the nature of the step."""
    name = step.eqn.primitive.name
    return name in UNSEEN and not (name == "sub" and k == 1)


def form_of(step: Step, k: int) -> str:
    """What kind of matrix a step's factors from an operand are."""
    name = step.eqn.primitive.name
    if name in COPIES:
        return "copy"
    if name == "reduce_sum":
        return "sum"
    alike = shape_of(step.eqn.invars[k]) == shape_of(step.eqn.outvars[0])
    return "each" if acts_on_each(step.eqn) and (alike or repeats(name)) else "dense"


def repeats(name: str) -> bool:
    """Whether a primitive that acts on each element may repeat operands of length one."""
    return name not in CALLS | CUSTOM | {LAYER}


# ------------------------------------------------------------------------------ complex numbers as two units


def real(x: Value) -> Value:
    return x.real if jnp.iscomplexobj(x) else x


def parts(bar: Value) -> Value:
    """A cotangent as a vector of the derivatives by each unit."""
    if not jnp.iscomplexobj(bar):
        return bar.ravel()
    return jnp.concatenate([bar.real.ravel(), -bar.imag.ravel()])


def cotangent(units: Value, like: Value) -> Value:
    """The inverse of `parts`."""
    if not jnp.iscomplexobj(like):
        return units.astype(like.dtype).reshape(like.shape)
    u, v = units.reshape(2, *like.shape)
    return (u - 1j * v).astype(like.dtype)


# ------------------------------------------------------------------------------------------ local derivatives


def each(e: Equation, k: int, dot: Value | None) -> Value:
    """Of a function of each element: (parts after, parts before, elements), a backward pass for each part."""
    y, *others = e.outs
    if repeats(e.primitive.name):
        e = replace(e, ins=tuple(jnp.broadcast_to(x, y.shape) for x in e.ins))
        dot = None if dot is None else jnp.broadcast_to(dot, y.shape)
    rows = []
    for unit in (1, -1j) if jnp.iscomplexobj(y) else (1,):
        bar = engine.pull_back(e, [jnp.full_like(y, unit), *[None] * len(others)])[k]
        bar = jnp.zeros_like(e.ins[k]) if bar is None else bar
        rows.append(parts(bar).reshape(-1, y.size) if dot is None else real(bar * dot).reshape(1, -1))
    return jnp.stack(rows)


def sources(e: Equation, k: int, r: int) -> Value:
    """Of a copy: for each element of the result the place of the operand's element, or -1."""
    numbers = jnp.arange(e.ins[k].size, dtype=jnp.int32).reshape(e.ins[k].shape)
    elsewhere = [
        jnp.full_like(x, -1, dtype=jnp.int32) if jnp.issubdtype(x.dtype, jnp.inexact) else x for x in e.ins
    ]
    params = {**e.params, "fill_value": -1} if e.params.get("fill_value", 0) is None else e.params
    copied = replace(e, params=params)
    return copied.bind(*elsewhere[:k], numbers, *elsewhere[k + 1 :])[r].ravel()


def dense(e: Equation, k: int, r: int, dot: Value | None) -> Value:
    """The rule's backward at each unit cotangent; with a tangent of the operand, the product with it."""
    y, x = e.outs[r], e.ins[k]
    size = y.size * (2 if jnp.iscomplexobj(y) else 1)

    def row(i):
        bars: list[Value | None] = [None] * len(e.outs)
        bars[r] = cotangent(jnp.zeros(size).at[i].set(1), y)
        bar = engine.pull_back(e, bars)[k]
        bar = jnp.zeros_like(x) if bar is None else bar
        return parts(bar) if dot is None else real(jnp.sum(bar * dot))

    together = max(1, MOST_ELEMENTS // max(x.size, 1))
    if size <= together:
        return jax.vmap(row)(jnp.arange(size))
    return jax.lax.map(row, jnp.arange(size), batch_size=together)


# ----------------------------------------------------------------------------------------------- as matrices


def from_dense(matrix: np.ndarray) -> Factors:
    """The elements that are not zero."""
    after, before = np.nonzero(matrix)
    return Factors(matrix[after, before].astype(np.float64), after, before, matrix.shape[1])


def from_each(values: np.ndarray, x: jax.core.ShapedArray, y: jax.core.ShapedArray) -> Factors:
    """From (parts after, parts before, elements), where elements of x may be repeated in y."""
    after, before, n = np.nonzero(values)
    places = np.broadcast_to(np.arange(x.size).reshape(x.shape), y.shape).ravel()
    units = math.prod(units_of(x))
    return Factors(
        values[after, before, n].astype(np.float64), after * y.size + n, before * x.size + places[n], units
    )


def from_copy(sources: np.ndarray, x: jax.core.ShapedArray, y: jax.core.ShapedArray) -> Factors:
    """From the places that the elements of y come from, -1 where it is from nowhere."""
    (after,) = np.nonzero(sources >= 0)
    return _of_ones(after, sources[after], x, y)


def from_sum(axes: Sequence[int], x: jax.core.ShapedArray, y: jax.core.ShapedArray) -> Factors:
    """Of a sum over some axes: where each element of x goes."""
    reduced = [1 if axis in axes else n for axis, n in enumerate(x.shape)]
    goes = np.broadcast_to(np.arange(math.prod(reduced)).reshape(reduced), x.shape).ravel()
    return _of_ones(goes, np.arange(x.size), x, y)


def _of_ones(
    after: np.ndarray, before: np.ndarray, x: jax.core.ShapedArray, y: jax.core.ShapedArray
) -> Factors:
    """Ones at these places, for the imaginary parts as well where there are any."""
    part = np.arange(math.prod(units_of(x)) // max(x.size, 1))[:, None]
    after, before = (part * y.size + after).ravel(), (part * x.size + before).ravel()
    return Factors(np.ones(len(after)), after, before, math.prod(units_of(x)))
