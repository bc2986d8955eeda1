"""The program of a batch as a program of one of its examples.

The batch's program is walked forward once. What does not depend on the examples, weights and random draws for
instance, is what it is in the batch: an example uses it whole, or its own part, such as its row of a dropout
mask. What does depend on them is computed for the example alone, on slices of length one. So the values are
those of the batch; and where two examples meet there is no such program, and the reason is kept instead. It
is an error only if the loss depends on it: the running averages of a BatchNorm that evaluates may do what
they like.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import source_info_util
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from bpresearch.chainrule import engine
from bpresearch.chainrule.example_axis import (
    ELEMENTWISE,
    TERM,
    Axis,
    CannotTell,
    ExamplesMeet,
    Operation,
    follow,
)
from bpresearch.chainrule.primitives import Equation, Value

LARGEST_KNOWN = 2**20
"""Integers are computed while tracing up to this many."""


@dataclass(frozen=True, eq=False)
class Shared:
    """A value that does not depend on the examples, as it is in the batch.

    Attributes:
        part: `axis -> value` for one example, if there is a better way than to cut it out.
        known: the value, if it is known while tracing.
    """

    value: Value
    part: Callable[[Axis], Value] | None = None
    known: np.ndarray | None = None


@dataclass(frozen=True)
class Own:
    """The example's own part of a value: a slice along an axis, or a term of a sum over the examples
    (`TERM`).

    Attributes:
        numbered: columns, along the last axis, that hold the number of the example.
    """

    value: Value
    axis: Axis
    numbered: dict[int, Axis] = field(default_factory=dict)


@dataclass(frozen=True)
class Mixed:
    """No value: examples meet in it. `reason` says what mixes them, and where."""

    reason: str
    value: None = None


MIX = "per_example_gradients: {} mixes the examples of the batch, which have no gradients of their own"
NO_RULE = "per_example_gradients: no rule tells whether {} keeps the examples of the batch apart"

Held: TypeAlias = Shared | Own | Mixed
Enter: TypeAlias = Callable[["OneExample", JaxprEqn, list[Held]], list[Held]]

entered: dict[str, Enter] = {}
"""How the walk goes into equations that hold programs of their own: `one_example_inner.py`,
`one_example_passes.py`."""


@dataclass
class OneExample:
    """The walk.

    Attributes:
        size: number of examples.
        number: of the example.
        adds: whether the program is a way back, in which the cotangents of what is shared are sums over
            examples.
        cuts: whether a part has been cut out of something shared.
        place: of the innermost equation that the walk has gone into and that has one.
    """

    size: int
    number: Value
    adds: bool = False
    cuts: bool = False
    place: str = ""

    def run(self, jaxpr: Jaxpr, consts: Sequence[Value], args: Sequence[Held]) -> list[Held]:
        """The results of a program."""
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(constant, consts), *args], strict=True))

        def read(v):
            if isinstance(v, Literal):
                return Shared(engine.read(v, {}), known=np.asarray(v.val))
            return values[v]

        for eqn in jaxpr.eqns:
            stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
            with source_info_util.user_context(eqn.source_info.traceback, name_stack=stack):
                outs = self.evaluate(eqn, [read(v) for v in eqn.invars])
            values.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def evaluate(self, eqn: JaxprEqn, ins: list[Held]) -> list[Held]:
        """The results of an equation."""
        name, outside = eqn.primitive.name, self.place
        try:
            if name in entered:
                self.place = place_of(eqn) or outside
                return entered[name](self, eqn, ins)
            if mixed := [x for x in ins if isinstance(x, Mixed)]:
                return [mixed[0]] * len(eqn.outvars)
            if all(isinstance(x, Shared) for x in ins):
                return self.shared(eqn, ins)
            if any(x.axis == TERM for x in ins if isinstance(x, Own)):
                return self.term(eqn, ins)
            return self.own(eqn, ins)
        except ExamplesMeet as error:
            where = f"{name} at {place_of(eqn) or self.place}"
            return [
                Mixed(NO_RULE.format(where) if isinstance(error, CannotTell) else MIX.format(where))
            ] * len(eqn.outvars)
        finally:
            self.place = outside

    def shared(self, eqn: JaxprEqn, ins: list[Any]) -> list[Held]:
        """All operands are the batch's, and so are the results."""
        outs = engine.equation(eqn, [x.value for x in ins], set()).bind(*[x.value for x in ins])
        known = self.known(eqn, ins)
        part = self.part_of(eqn, ins) if len(outs) == 1 else None
        return [Shared(out, part, k) for out, k in zip(outs, known, strict=True)]

    def known(self, eqn: JaxprEqn, ins: list[Any]) -> list[np.ndarray | None]:
        """The results, if they are integers that follow from known ones; no more than indices are made of."""
        small = is_small([v.aval for v in (*eqn.outvars, *eqn.invars)])
        simple = eqn.primitive.name in (*ELEMENTWISE, "iota", "broadcast_in_dim", "reshape", "concatenate")
        if not (small and simple and all(x.known is not None for x in ins)):
            return [None] * len(eqn.outvars)
        with jax.ensure_compile_time_eval():
            values = [jnp.asarray(x.known, v.aval.dtype) for x, v in zip(ins, eqn.invars, strict=True)]
            return [np.asarray(y) for y in engine.equation(eqn, values, set()).bind(*values)]

    def part_of(self, eqn: JaxprEqn, ins: list[Any]) -> Callable[[Axis], Value] | None:
        """The part of a result that is the same for all examples is made for one, not cut out of all."""
        name, (out,) = eqn.primitive.name, eqn.outvars

        def of_elements(axis):
            cut = [v.aval.ndim and v.aval.shape[axis.dim] == out.aval.shape[axis.dim] for v in eqn.invars]
            values = [self.part(x, axis) if c else x.value for x, c in zip(ins, cut, strict=True)]
            return Equation(eqn.primitive, eqn.params, tuple(values)).bind(*values)[0]

        def of_copies(axis):
            (x,), dims = ins, eqn.params["broadcast_dimensions"]
            value = x.value
            if axis.dim in dims and x.value.shape[place := dims.index(axis.dim)] != 1:
                value = self.part(x, axis.at(place))
            return lax.broadcast_in_dim(value, axis.cut(out.aval.shape), dims)

        if name in ELEMENTWISE and eqn.invars:
            return of_elements
        return of_copies if name == "broadcast_in_dim" and len(ins) == 1 else None

    def part(self, x: Held, axis: Axis) -> Value:
        """What one example has of a value along an axis."""
        if isinstance(x, Own):
            if x.axis != axis:
                raise ExamplesMeet
            return x.value
        if isinstance(x, Mixed):
            raise ValueError(x.reason)
        if axis == TERM:
            raise ExamplesMeet
        if x.part is not None:
            return x.part(axis)
        self.cuts = True
        dim, sizes = axis.dim, x.value.shape
        parted = x.value.reshape(*sizes[:dim], axis.before, self.size, axis.after, *sizes[dim + 1 :])
        return lax.dynamic_slice_in_dim(parted, self.number, 1, dim + 1).reshape(axis.cut(sizes))

    def own(self, eqn: JaxprEqn, ins: list[Any]) -> list[Held]:
        """Some operands are the example's own."""
        axes = [x.axis if isinstance(x, Own) else None for x in ins]
        shapes = [v.aval.shape for v in eqn.invars], [v.aval.shape for v in eqn.outvars]
        numbered = self.numbered(ins[1]) if len(ins) > 1 else {}
        passage = follow(
            eqn.primitive.name, Operation(eqn.params, *shapes, self.size, self.adds, numbered), axes
        )
        if any(own and not axis for own, axis in zip(axes, passage.operands, strict=True)):
            raise ExamplesMeet
        values = [
            x.value if axis is None else self.part(x, axis)
            for x, axis in zip(ins, passage.operands, strict=True)
        ]
        if passage.column is not None:
            number = self.number.astype(values[1].dtype)
            values[1] = values[1].at[..., passage.column].add(-number)
        e = Equation(eqn.primitive, {**eqn.params, **passage.changed}, tuple(values))
        columns = self.columns(eqn, ins) if eqn.primitive.name == "concatenate" else {}
        return [
            Own(value, axis, columns) for value, axis in zip(e.bind(*values), passage.results, strict=True)
        ]

    def numbered(self, x: Held) -> dict[int, Axis]:
        """The columns of indices that hold the number of the example, and the axis along which it counts."""
        if isinstance(x, Own):
            return x.numbered
        if not isinstance(x, Shared) or x.known is None or x.known.ndim < 2:
            return {}
        number_axes = {}
        for dim in range(x.known.ndim - 1):
            counted = np.arange(self.size).reshape(-1, *[1] * (x.known.ndim - 2 - dim))
            for column in range(x.known.shape[-1]):
                if x.known.shape[dim] == self.size and np.all(x.known[..., column] == counted):
                    number_axes[column] = Axis(dim)
        return number_axes

    def columns(self, eqn: JaxprEqn, ins: list[Held]) -> dict[int, Axis]:
        """The columns of indices that are put side by side."""
        if eqn.params["dimension"] != eqn.outvars[0].aval.ndim - 1:
            return {}
        number_axes: dict[int, Axis] = {}
        start = 0
        for x, v in zip(ins, eqn.invars, strict=True):
            number_axes |= {start + column: axis for column, axis in self.numbered(x).items()}
            start += v.aval.shape[-1]
        return number_axes

    def term(self, eqn: JaxprEqn, ins: list[Held]) -> list[Held]:
        """A sum over the examples goes on; what is linear in it is done to each term."""
        if not adds_up(eqn.primitive.name, [isinstance(x, Own) and x.axis == TERM for x in ins]):
            raise ExamplesMeet
        if any(isinstance(x, Own) and x.axis != TERM for x in ins):
            raise ExamplesMeet
        values = [x.value for x in ins]
        return [Own(y, TERM) for y in engine.equation(eqn, values, set()).bind(*values)]


LINEAR = {
    "neg",
    "convert_element_type",
    "reshape",
    "transpose",
    "squeeze",
    "broadcast_in_dim",
    "copy",
    "copy_p",
}
LINEAR |= {"reduce_sum", "real", "imag", "conj", "slice", "rev"}


def adds_up(name: str, terms: Sequence[bool]) -> bool:
    """Whether an operation is linear in those of its operands that are terms of sums over the examples."""
    if name in ("add", "add_any", "sub", "concatenate"):
        return all(terms)
    if name in ("mul", "dot_general"):
        return sum(terms) == 1
    return name in LINEAR or (name == "div" and list(terms) == [True, False])


def place_of(eqn: JaxprEqn) -> str:
    """Layer path and line of an equation that is being walked."""
    stack = source_info_util.current_name_stack()
    return Equation(eqn.primitive, eqn.params, (), source=eqn.source_info.replace(name_stack=stack)).place


def constant(value: Value) -> Shared:
    """A constant of a program."""
    known = is_small([value]) and not isinstance(value, jax.core.Tracer)
    return Shared(value, known=np.asarray(value) if known else None)


def is_small(values: Sequence[Any]) -> bool:
    """Whether values, or variables, hold integers or truth values, and not too many."""
    return all(
        np.prod(v.shape) <= LARGEST_KNOWN and (v.dtype == bool or jnp.issubdtype(v.dtype, jnp.integer))
        for v in values
    )


def like(x: Held, value: Value) -> Held:
    """The same kind of value."""
    if isinstance(x, Shared):
        return Shared(value)
    return Own(value, x.axis) if isinstance(x, Own) else x
