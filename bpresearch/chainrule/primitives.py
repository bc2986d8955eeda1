"""Rules for the primitives of `jax.lax`: what an equation is, and the table of their derivatives.

A rule knows one primitive. `backward` takes the cotangents of an equation's results and gives those of its
operands; `tangent` takes the tangents of the operands and gives those of the results. Cotangents follow JAX's
convention for complex numbers: backward is the transpose of the tangent map, without conjugation.

Most rules are declared in a line by one of `elementwise`, `linear` and `constant`; the others are classes
under `@primitive`. The formulas are in `rules/lax/`, a file for each family.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import source_info_util
from jax.extend.core import Primitive
from jaxtyping import PyTree

from bpresearch.chainrule.registry import NoRuleError, changed

source_info_util.register_exclusion(str(Path(__file__).parent))  # lines of the engine are no user's

Value = Any
"""An array, or a tracer of one."""

LAYER = "layer"
"""The name of the primitive that stands for the call of a layer with a rule."""

TRACING = str(Path(__file__).with_name("program.py"))
"""The file in which traces begin."""

SCOPE = "at:"
"""What the name of a scope begins with that says in which layer an equation was made."""


@dataclass(frozen=True)
class Equation:
    """One operation of a program, with the values it works on.

    Attributes:
        primitive: the operation.
        params: its static parameters.
        ins: the operands' values.
        outs: the results' values; empty before the equation has been evaluated.
        wanted: for each operand, whether anyone asks for its cotangent.
        live: for each result, whether a cotangent may come back to it.
        kept: what the rule's own `forward` kept, if it has one.
        source: JAX's record of where the equation comes from.
        enclosing: the equation in whose program this one is.
    """

    primitive: Primitive
    params: dict[str, Any]
    ins: tuple[Value, ...]
    outs: tuple[Value, ...] = ()
    wanted: tuple[bool, ...] = ()
    live: tuple[bool, ...] = ()
    kept: PyTree = None
    source: source_info_util.SourceInfo | None = None
    enclosing: "Equation | None" = None

    def bind(self, *ins: Value) -> tuple[Value, ...]:
        """The equation's results for other operands."""
        outs = self.primitive.bind(*ins, **self.primitive.get_bind_params(self.params))
        return tuple(outs) if self.primitive.multiple_results else (outs,)

    def with_results(self, outs: Sequence[Value]) -> "Equation":
        """The same equation, evaluated."""
        return replace(self, outs=tuple(outs))

    @property
    def name(self) -> str:
        """The name of the primitive; of a layer, its type's name."""
        call = self.params.get("call") if self.primitive.name == LAYER else None
        return call.name if call is not None else self.primitive.name

    @property
    def layer(self) -> str:
        """Path of the layer that the equation is in, or is; "" in the model itself or outside of it."""
        if self.primitive.name == LAYER:
            return self.params["call"].path
        scopes = re.findall(rf"{SCOPE}([^/()]*)", str(self.source.name_stack)) if self.source else ()
        return scopes[-1] if scopes else self.enclosing.layer if self.enclosing else ""

    @property
    def line(self) -> str:
        """The user's own `file.py:line (function)`, or that of the call that a library made the equation in;
        "" where nothing but libraries did.
        """
        around = self.enclosing.line if self.enclosing else ""
        if not self.source or not self.source.traceback:
            return around
        line = source_info_util.summarize(self.source)
        # Frames before the one that began the trace belong to whoever asked, not to the program.
        inside = itertools.takewhile(lambda f: f.file_name != TRACING, self.source.traceback.frames)
        return line if any(f"{f.file_name}:{f.line_num}" in line for f in inside) else around

    @property
    def place(self) -> str:
        """Layer path and line, for messages."""
        return ", ".join(filter(None, (self.layer, self.line)))


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class Static:
    """Something that is no array among what a rule keeps."""

    value: Any


@runtime_checkable
class PrimitiveRule(Protocol):
    """The hand-written derivative of a primitive. Both functions are plain (no `self`).

    `backward(e, *bars)` takes a cotangent for each result (zeros where nothing depends on it; for results
    that are not floating point, None) and returns one for each operand, None for zero; a lone value stands
    for a tuple of one. `tangent(e, *dots)` takes a tangent for each operand, None for zero (not all are
    None), and returns one for each result, None for zero; again a lone value is a tuple of one.

    A rule whose equation holds programs of its own (a loop, say) has more: `forward(e) -> outs, kept`, whose
    second part `backward` finds in `e.kept`; `pushforward(e, *dots) -> outs, out_dots` instead of `tangent`;
    and `flow(params, flags)`, which tells the results that depend on the flagged operands. Its `backward`
    gets None for results on which nothing depends.
    """

    backward: Callable[..., PyTree]


class NoPrimitiveRuleError(NoRuleError):
    """A primitive has no hand-written rule. The message names it and the user's line."""


@dataclass(frozen=True)
class Table:
    """Rules and reasons by the name of the primitive."""

    rules: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


table = Table()


def primitive(*names: str) -> Callable[[Any], Any]:
    """Class decorator that registers the rule of one or more primitives.

    >>> @bp.chainrule.primitive("sin")
    ... class SinRule:
    ...     '''y = sin x.      x_bar = cos(x) y_bar'''
    ...     def backward(e, y_bar):
    ...         return jnp.cos(e.ins[0]) * y_bar
    >>> print(bp.chainrule.grad(jnp.sin)(0.0))
    1.0
    """

    def register(class_: Any) -> Any:
        table.rules.update(dict.fromkeys(names, class_))
        changed()
        return class_

    return register


def elementwise(name: str, *partials: Callable[..., Value] | None, doc: str = "") -> None:
    """Declares y = f(a, b, ...) on each element by its partial derivatives, one for each operand.

        a_bar = (df/da) y_bar,   y_dot = (df/da) a_dot + (df/db) b_dot + ...

    Args:
        name: the primitive.
        partials: `(a, b, ..., y) -> df/da`, in the shape of y or of length one along broadcast axes; None for
            an operand without a derivative.
        doc: what to know: which derivative is taken at a kink, a source.

    >>> bp.chainrule.elementwise("sin", lambda x, y: jnp.cos(x))
    >>> print(bp.chainrule.grad(jnp.sin)(0.0))
    1.0
    """

    class ElementwiseRule:
        def backward(e, y_bar):
            return tuple(
                fit(y_bar * partial(*e.ins, *e.outs), x) if wanted and partial is not None else None
                for partial, x, wanted in zip(partials, e.ins, e.wanted, strict=True)
            )

        def tangent(e, *dots):
            terms = [
                dot * partial(*e.ins, *e.outs)
                for partial, dot in zip(partials, dots, strict=True)
                if dot is not None and partial is not None
            ]
            return total(terms, e.outs[0])

    ElementwiseRule.__doc__ = doc
    primitive(name)(ElementwiseRule)


def linear(*names: str) -> Callable[[Callable], Callable]:
    """Decorator: from the transpose `(e, y_bar) -> x_bar` of a map that is linear in its first operand to
    its rule.

    The tangent is the map itself, at the tangent of the first operand; others (indices, say) have none.

    >>> @bp.chainrule.linear("neg")
    ... def negative(e, y_bar):
    ...     return -y_bar
    >>> print(bp.chainrule.grad(jnp.negative)(1.0))
    -1.0
    """

    def register(transpose: Callable[..., Value]) -> Callable[..., Value]:
        class LinearRule:
            def backward(e, *bars):
                return transpose(e, *bars), *(None,) * (len(e.ins) - 1)

            def tangent(e, x_dot, *others):
                return None if x_dot is None else e.bind(x_dot, *e.ins[1:])

        LinearRule.__doc__ = transpose.__doc__
        primitive(*names)(LinearRule)
        return transpose

    return register


def constant(*names: str, why: str) -> None:
    """Declares that the derivative of these primitives is zero wherever it exists.

    >>> bp.chainrule.constant("floor", why="it is constant between whole numbers")
    >>> print(bp.chainrule.grad(jnp.floor)(0.5))
    0.0
    """
    table.constants.update(dict.fromkeys(names, why))


def refused(*names: str, why: str) -> None:
    """Declares primitives that have no rule for a reason: JAX refuses them as well, or users cannot bind
    them.
    """
    table.refused.update(dict.fromkeys(names, why))


def is_floating(x: Any) -> bool:
    """Whether x is of a type that has a derivative: real or complex floating point."""
    return jnp.issubdtype(jax.dtypes.result_type(x) if not hasattr(x, "dtype") else x.dtype, jnp.inexact)


def zeros(aval: Any) -> Value:
    """Zeros of a type: in the body of a `shard_map` they vary over the same axes of the mesh."""
    value = jnp.zeros(aval.shape, aval.dtype)
    manual = aval.manual_axis_type
    return lax.pcast(value, tuple(manual.varying), to="varying") if manual and manual.varying else value


def fit(bar: Value, x: Value) -> Value:
    """The cotangent of an operand that the operation broadcast or promoted: summed over its copies.

    Scalars and axes of length one are broadcast by binary primitives. A real operand of a complex result
    gets the real part.
    """
    extra = bar.ndim - jnp.ndim(x)
    spread = [extra + i for i, n in enumerate(jnp.shape(x)) if n == 1 and bar.shape[extra + i] != 1]
    if extra or spread:
        bar = jnp.sum(bar, (*range(extra), *spread)).reshape(jnp.shape(x))
    if jnp.iscomplexobj(bar) and not jnp.iscomplexobj(x):
        bar = bar.real
    return bar.astype(jnp.result_type(x))


def total(terms: Sequence[Value], like: Value) -> Value:
    """The sum of the terms of a tangent in the shape and dtype of a result; None where there are none."""
    if not terms:
        return None
    value = sum(terms[1:], start=terms[0])
    return jnp.broadcast_to(value, jnp.shape(like)).astype(jnp.result_type(like))
