"""How far rounding moves a result, measured: random rounding of every operation of a program.

A traced program is evaluated in several lanes side by side. In each but the first, the result of every
operation is moved at random by up to one unit of the last place *of its own precision*, which is what another
order of operations, another library or another machine could have done to it (Monte Carlo arithmetic: Parker
1997; the CESTAC method: Vignes 1993; confidence from few lanes: Sohier et al. 2021). The root mean square
distance of the moved lanes from the unmoved one is the *spread* of that element. A sum inside one operation
counts for its length; a factorisation is moved in its operands, as backward error analysis has it; what
cannot be looked into (a kernel, a callback) rounds as its narrowest type does.

Values are moved, decisions are not: comparisons, whole numbers, the order of a sort and the branch taken come
from the unmoved lane, so that all lanes differentiate the same piece of the function.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var, jaxprs_in_params
from jaxtyping import ArrayLike, PyTree

from bpresearch.jaxprs import body, read, where_going, while_loop
from bpresearch.verify.moves import (
    DECISIONS,
    EXACT,
    INLINED,
    OPAQUE,
    STABLE,
    narrowest,
    terms,
    units,
)
from bpresearch.verify.precision import compiled

LANES = 6
"""The unmoved lane and five moved ones: a spread of five degrees of freedom."""

OFFSETS = 2**16


@dataclass(frozen=True)
class Lanes:
    """A value that differs from lane to lane: the lanes are its first axis, the unmoved one is the first."""

    values: jax.Array


Value = Any
"""An array that is the same in all lanes, or `Lanes`."""


class Rounding:
    """Evaluates programs in lanes. The random numbers are pieces of one long row of them."""

    def __init__(self, row: jax.Array, lanes: int):
        self.row, self.lanes = row, lanes
        self.step: jax.Array = jnp.uint32(0)  # counts the steps of the loops around
        self.calls = itertools.count(1)

    def evaluate(self, closed: Jaxpr | ClosedJaxpr, args: Sequence[Value]) -> list[Value]:
        """The results of a program whose arguments may differ from lane to lane."""
        jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
        values: dict[Var, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        for eqn in jaxpr.eqns:
            ins = [read(v, values) for v in eqn.invars]
            values.update(zip(eqn.outvars, self._equation(eqn, ins), strict=True))
        return [read(v, values) for v in jaxpr.outvars]

    def _equation(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        if name == "layer":
            return self.evaluate(jax.make_jaxpr(eqn.params["call"].apply)(*map(unmoved, ins)), ins)
        if name in INLINED:
            return self.evaluate(ClosedJaxpr(*body(eqn.params)), ins)
        if name in ("scan", "while", "cond"):
            return {"scan": self._scan, "while": self._while, "cond": self._cond}[name](eqn, ins)
        if name in DECISIONS or not any(is_inexact(v.aval) for v in eqn.outvars):
            return bind(eqn, list(map(unmoved, ins)))
        if name == "sort":
            return self._sort(eqn, ins)
        if name in ("top_k", "approx_top_k"):
            return self._top_k(eqn, ins)
        if name in ("select_and_scatter_add", "select_and_gather_add"):
            return self._moved(eqn, self._each(eqn, [ins[0], unmoved(ins[1])]))  # the second operand decides
        if name == "rem":
            whole = jnp.trunc(unmoved(ins[0]) / unmoved(ins[1]))
            return [self._apply(lambda a, b: a - b * whole, ins)]
        if name in EXACT or _widens(eqn):
            return self._each(eqn, ins)
        count = terms(eqn)
        if name in OPAQUE or name in STABLE:
            eps = narrowest(eqn)
            ins = [self._shift(x, eps * math.sqrt(count)) if is_inexact(x) else x for x in ins]
        elif count > 1:
            ins = [self.move(x, 1 + math.sqrt(count) / 2) if is_inexact(x) else x for x in ins]
        return self._moved(eqn, self._each(eqn, ins))

    def _moved(self, eqn: JaxprEqn, outs: Sequence[Value]) -> list[Value]:
        size = units(eqn.primitive.name) * (1 + math.sqrt(terms(eqn) - 1) / 2)
        eps = narrowest(eqn) if eqn.primitive.name in OPAQUE else None
        return [self.move(y, size, eps) if is_inexact(y) else y for y in outs]

    def _each(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        """The equation in each lane; once, where no operand differs."""
        if not any(isinstance(x, Lanes) for x in ins):
            return bind(eqn, ins)
        axes = [0 if isinstance(x, Lanes) else None for x in ins]
        operands = [x.values if isinstance(x, Lanes) else x for x in ins]
        try:
            outs = jax.vmap(lambda *lane: bind(eqn, lane), axes, axis_size=self.lanes)(*operands)
        except NotImplementedError:  # it does not run side by side
            rows = [bind(eqn, [lane(x, i) for x in ins]) for i in range(self.lanes)]
            outs = [jnp.stack(row) for row in zip(*rows, strict=True)]
        return [Lanes(y) if is_inexact(v.aval) else y[0] for v, y in zip(eqn.outvars, outs, strict=True)]

    def _apply(self, function: Callable[..., PyTree], ins: Sequence[Value]) -> Value:
        lanes = [x.values if isinstance(x, Lanes) else x for x in ins]
        axes = [0 if isinstance(x, Lanes) else None for x in ins]
        return Lanes(jax.vmap(function, axes, axis_size=self.lanes)(*lanes))

    # ------------------------------------------------------------------------------------------ moving

    def move(self, x: Value, size: float = 1.0, eps: float | None = None) -> Value:
        """x (1 + size eps u) in each lane but the first, u uniform in (-1, 1), anew for each element."""
        values = in_lanes(x, self.lanes)
        eps = float(jnp.finfo(values.dtype).eps) if eps is None else eps
        if jnp.iscomplexobj(values):
            parts = [self.move(Lanes(part), size, eps).values for part in (values.real, values.imag)]
            return Lanes(lax.complex(*parts))
        return Lanes(values * (1 + (size * eps * self._random(values.shape)).astype(values.dtype)))

    def _shift(self, x: Value, eps: float) -> Value:
        """x + max|x| eps u: of an operand that is rounded together with its largest element."""
        values = in_lanes(x, self.lanes)
        if jnp.iscomplexobj(values):
            parts = [self._shift(Lanes(part), eps).values for part in (values.real, values.imag)]
            return Lanes(lax.complex(*parts))
        finite = jnp.where(jnp.isfinite(values[0]), jnp.abs(values[0]), 0)
        noise = (eps * self._random(values.shape)).astype(values.dtype)
        return Lanes(values + noise * jnp.max(finite, initial=0.0).astype(values.dtype))

    def _random(self, shape: tuple[int, ...]) -> jax.Array:
        """Uniform numbers in (-1, 1); zeros in the first lane."""
        size = math.prod(shape[1:])
        number = jnp.uint32(next(self.calls)) * jnp.uint32(40503) + self.step * jnp.uint32(30011)
        start = (number % jnp.uint32(OFFSETS)).astype(jnp.int32)
        piece = lax.dynamic_slice(self.row, (start,), ((shape[0] - 1) * size,))
        moved = piece.reshape(shape[0] - 1, *shape[1:])
        return jnp.concatenate([jnp.zeros((1, *shape[1:]), moved.dtype), moved])

    # --------------------------------------------------------------------------------- order and loops

    def _sort(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        axis = eqn.params["dimension"]
        order = lax.broadcasted_iota(jnp.int32, jnp.shape(unmoved(ins[0])), axis)
        *_, order = lax.sort(
            [*map(unmoved, ins), order], dimension=axis, is_stable=eqn.params["is_stable"],
            num_keys=eqn.params["num_keys"],
        )  # fmt: skip
        return [self._taken(x, order, axis) for x in ins]

    def _top_k(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        _, index = outs = bind(eqn, [unmoved(ins[0])])
        axis = eqn.params.get("axis", eqn.params.get("reduction_dimension", -1)) % outs[0].ndim
        return [self._taken(ins[0], index, axis), index]

    def _taken(self, x: Value, index: jax.Array, axis: int) -> Value:
        if not isinstance(x, Lanes):
            return jnp.take_along_axis(x, index, axis)
        return Lanes(jax.vmap(lambda values: jnp.take_along_axis(values, index, axis))(x.values))

    def _scan(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        p = eqn.params
        consts, n = ins[: p["num_consts"]], p["num_carry"]
        init, xs = ins[len(consts) :][:n], ins[len(consts) + n :]
        moving = [isinstance(x, Lanes) for x in xs]
        steps = [jnp.moveaxis(x.values, 1, 0) if isinstance(x, Lanes) else x for x in xs]
        outer, answers = self.step, eqn.params["jaxpr"].out_avals

        def body(carry, x):
            self.step, state = carry
            x = [Lanes(part) if moves else part for part, moves in zip(x, moving, strict=True)]
            outs = self.evaluate(p["jaxpr"], [*consts, *map(laned, init, state), *x])
            outs = [self._fixed(y, aval) for y, aval in zip(outs, answers, strict=True)]
            return (self.step + jnp.uint32(1), outs[:n]), outs[n:]

        start = outer * jnp.uint32(7919), [self._fixed(x, x) for x in init]
        (_, last), rows = lax.scan(body, start, steps, p["length"], p["reverse"], p["unroll"])
        self.step = outer
        rows = [
            Lanes(jnp.moveaxis(y, 0, 1)) if is_inexact(aval) else y
            for y, aval in zip(rows, answers[n:], strict=True)
        ]
        return [*map(laned, answers[:n], last), *rows]

    def _while(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        p = eqn.params
        of_cond, rest = ins[: p["cond_nconsts"]], ins[p["cond_nconsts"] :]
        of_body, init = rest[: p["body_nconsts"]], rest[p["body_nconsts"] :]
        outer = self.step

        def goes_on(carry):
            state = map(unmoved, map(laned, init, carry[1]))
            return self._bare(p["cond_jaxpr"], [*map(unmoved, of_cond), *state])[0]

        def body(carry):
            self.step, state = carry
            outs = self.evaluate(p["body_jaxpr"], [*of_body, *map(laned, init, state)])
            return self.step + jnp.uint32(1), [self._fixed(y, x) for y, x in zip(outs, init, strict=True)]

        def where(going, new, old):  # the axis of the lanes comes before those of the loops
            pairs = zip(new[1], old[1], init, strict=True)
            return new[0], [where_going(going, n, o, axis=int(is_inexact(x))) for n, o, x in pairs]

        start = outer * jnp.uint32(7919), [self._fixed(x, x) for x in init]
        _, last = while_loop(goes_on, body, start, where)
        self.step = outer
        return list(map(laned, init, last))

    def _cond(self, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
        index, *operands = ins
        avals = [v.aval for v in eqn.outvars]

        def branch(closed):
            def run(values):
                outs = self.evaluate(closed, list(map(laned, operands, values)))
                return [self._fixed(y, aval) for y, aval in zip(outs, avals, strict=True)]

            return run

        values = [self._fixed(x, x) for x in operands]
        outs = lax.switch(index.astype(jnp.int32), list(map(branch, eqn.params["branches"])), values)
        return list(map(laned, avals, outs))

    def _bare(self, closed: ClosedJaxpr, args: Sequence[PyTree]) -> list[PyTree]:
        """The results of a program whose arguments are the same in all lanes, without moving any."""
        return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *args)

    def _fixed(self, value: Value, like: Any) -> PyTree:
        """The array of a value: with lanes if it is inexact, without if it is not."""
        return in_lanes(value, self.lanes) if is_inexact(like) else unmoved(value)


def is_inexact(x: Any) -> bool:
    """Whether a value or its type is of real or complex floating point."""
    return jnp.issubdtype((x.values if isinstance(x, Lanes) else x).dtype, jnp.inexact)


def _widens(eqn: JaxprEqn) -> bool:
    """Whether a conversion is exact: from whole numbers, or to a type that holds all of the other's."""
    if eqn.primitive.name != "convert_element_type":
        return False
    before, after = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    is_whole = not jnp.issubdtype(before, jnp.inexact)
    return is_whole or bool(jnp.finfo(after).eps <= jnp.finfo(before).eps)


def unmoved(x: Value) -> PyTree:
    """The value in the unmoved lane."""
    return x.values[0] if isinstance(x, Lanes) else x


def lane(x: Value, number: int) -> PyTree:
    """The value in one lane."""
    return x.values[number] if isinstance(x, Lanes) else x


def in_lanes(x: Value, lanes: int) -> PyTree:
    """The array with its lanes."""
    return x.values if isinstance(x, Lanes) else jnp.broadcast_to(x, (lanes, *jnp.shape(x)))


def laned(like: Any, values: PyTree) -> Value:
    """An array that carries lanes if it is inexact."""
    return Lanes(values) if is_inexact(like) else values


def bind(eqn: JaxprEqn, ins: Sequence[PyTree]) -> list[PyTree]:
    """The results of an equation."""
    outs = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
    return list(outs) if eqn.primitive.multiple_results else [outs]


def in_random_rounding(
    function: Callable[..., PyTree], args: PyTree, seed: ArrayLike, lanes: int = LANES
) -> list[PyTree]:
    """The leaves of `function(*args)` in lanes, along a new first axis; to be compiled.

    >>> def third(x):
    ...     return [x / 3]
    >>> values = in_random_rounding(third, (jnp.float32(1),), 0)[0]
    >>> values.shape, bool(values[0] == jnp.float32(1) / 3), bool(jnp.ptp(values) < 1e-7)
    ((6,), True, True)
    """
    closed = jax.make_jaxpr(function)(*args)
    largest = max([1, *(math.prod(getattr(v.aval, "shape", ())) for v in _variables(closed.jaxpr))])
    row = _random_row(OFFSETS + (lanes - 1) * largest, seed)
    with jax.enable_x64(True):  # types are those of the trace: whole numbers may have 64 bits in any case
        outs = Rounding(row, lanes).evaluate(closed, jax.tree.leaves(args))
    return [in_lanes(y, lanes) for y in outs]


def _variables(jaxpr: Jaxpr) -> Iterator[Var]:
    yield from jaxpr.invars
    for eqn in jaxpr.eqns:
        yield from eqn.outvars
        if eqn.primitive.name == "layer":
            shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
            yield from _variables(jax.make_jaxpr(eqn.params["call"].apply)(*shapes).jaxpr)
        for inner in jaxprs_in_params(eqn.params):
            yield from _variables(inner)


def _random_row(length: int, seed: ArrayLike) -> jax.Array:
    """Uniform numbers in (-1, 1) from a mixed counter (the finaliser of MurmurHash3): cheap to compile."""
    bits = lax.iota(jnp.uint32, length) + jnp.uint32(0x9E3779B9) * (jnp.asarray(seed, jnp.uint32) + 1)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return (bits >> 8).astype(jnp.float32) / 2**23 - 1


@dataclass(frozen=True)
class Spread:
    """The measured spread of every element of a list of arrays.

    Attributes:
        sizes: root mean square distance of the moved lanes from the unmoved one; infinite where a moved lane
            is not finite and the unmoved one is.
        freedom: how many lanes it was measured with.
    """

    sizes: list[np.ndarray]
    freedom: int


class Spreads:
    """Measures the spread of what a program computes; compiled once for all arguments of one kind."""

    def __init__(self, function: Callable[..., PyTree], lanes: int = LANES):
        self.lanes = lanes
        self._program = compiled(lambda args, seed: in_random_rounding(function, args, seed, lanes))

    def __call__(self, args: PyTree, rounds: int = 1, seed: int = 0) -> Spread:
        """The spread from `rounds` evaluations of all lanes, each with other random numbers."""
        scales: list[np.ndarray] = []
        squares: list[np.ndarray] = []
        for number in range(rounds):
            outs = jax.device_get(self._program(args, np.uint32((seed * 1009 + number) % 2**32)))
            apart = [_distance(np.asarray(y)) for y in outs]
            if not scales:  # squares of small numbers vanish: they are taken of numbers near one
                scales = [np.max(a, axis=0, initial=0.0, where=np.isfinite(a)) for a in apart]
                scales = [np.where(scale > 0, scale, 1.0) for scale in scales]
                squares = [np.zeros(scale.shape) for scale in scales]
            with np.errstate(over="ignore", invalid="ignore"):
                squares = [
                    s + np.sum((a / c) ** 2, axis=0) for s, a, c in zip(squares, apart, scales, strict=True)
                ]
        freedom = rounds * (self.lanes - 1)
        pairs = zip(squares, scales, strict=True)
        return Spread([np.asarray(c * np.sqrt(s / freedom)) for s, c in pairs], freedom)


def _distance(lanes: np.ndarray) -> np.ndarray:
    """|moved - unmoved|; 0 where both are the same infinity or NaN, infinite where only one is finite."""
    lanes = lanes.astype(np.complex128 if np.iscomplexobj(lanes) else np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.abs(lanes[1:] - lanes[:1])
    same = (lanes[1:] == lanes[:1]) | (np.isnan(lanes[1:]) & np.isnan(lanes[:1]))
    return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
