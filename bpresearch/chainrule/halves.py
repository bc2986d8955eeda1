"""A program inside an equation, cut in two: a pass forward that stores what the pass backward reads.

What backward reads is found by tracing it: of all that forward could store, the values on which no cotangent
depends are dropped, each value is stored once, and those that are there anyway (operands, results, constants)
are not stored at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.interpreters import partial_eval

from bpresearch.chainrule import engine
from bpresearch.chainrule.notes import collecting
from bpresearch.chainrule.primitives import Value, zeros

OPERAND, RESULT, CONSTANT, EXTRA = "operand", "result", "constant", "extra"
LITERAL, UNREAD = "literal", "unread"


@dataclass(frozen=True, eq=False)
class Halves:
    """The two passes of an inner program.

    Attributes:
        program: the program itself.
        wanted: which of its operands are differentiated.
        live: which of its results have a cotangent.
        jaxpr: the pass forward, from the operands to the results and everything that it could store.
        results: number of the results.
        places: for each leaf of the tape where it is: `(kind, index)`, `(LITERAL, literal)` or, if backward
            does not read it, `(UNREAD, type)`.
        extras: the variables that are stored.
        structure: of the tape.
    """

    program: ClosedJaxpr
    wanted: tuple[bool, ...]
    live: tuple[bool, ...]
    jaxpr: Jaxpr
    results: int
    places: list[tuple[str, Any]]
    extras: list[Var]
    structure: jax.tree_util.PyTreeDef

    def forward(
        self, consts: Sequence[Value], operands: Sequence[Value], extras: Sequence[Var]
    ) -> tuple[list[Value], list[Value]]:
        """Results, and the values of some of the extras."""
        outvars = [*self.jaxpr.outvars[: self.results], *extras]
        values = run(self.jaxpr, consts, operands, outvars)
        return values[: self.results], values[self.results :]

    def backward(
        self,
        consts: Sequence[Value],
        operands: Sequence[Value],
        results: Sequence[Value],
        extras: Sequence[Value],
        bars: Sequence[Value | None],
    ) -> list[Value | None]:
        """Cotangents of the operands from those of the live results, all given, and the stored values."""
        there = {OPERAND: operands, RESULT: results, CONSTANT: consts, EXTRA: extras}

        def value(place):
            kind, index = place
            if kind == LITERAL:
                return engine.read(index, {})
            return _nothing(index) if kind == UNREAD else there[kind][index]

        tape = self.structure.unflatten([value(place) for place in self.places])
        return engine.backward(self.program.jaxpr, tape, bars, self.wanted, self.live)


def halves(
    program: ClosedJaxpr,
    wanted: Sequence[bool],
    operands: Sequence[Value],
    live: Sequence[bool],
    there: Sequence[bool] | None = None,
) -> tuple[Halves, list[Value]]:
    """Cuts a program in two; with the values of the constants of its pass forward.

    Args:
        program: what to cut.
        wanted: which of its operands are differentiated.
        operands: their values, or shapes and types.
        live: which results have a cotangent.
        there: which results will be there on the way back; by default all.
    """

    def backward(tape, bars):
        remaining = iter(bars)
        given = [next(remaining) if flag else None for flag in live]
        with collecting() as notes:  # a watch may read more than the rules do
            return engine.backward(program.jaxpr, tape, given, wanted, live), notes

    traced = []

    def forward(*operands):
        results, tape = engine.forward(program.jaxpr, program.consts, operands, wanted, live)
        bars = [result for result, flag in zip(results, live, strict=True) if flag]
        traced.append(jax.make_jaxpr(backward)(tape, bars).jaxpr)  # here, where their full types are known
        return results, tape

    passed, (results, tape) = jax.make_jaxpr(forward, return_shape=True)(*operands)
    (traced,) = traced
    _, _, reads = partial_eval.dce_jaxpr_consts(traced, [True] * len(traced.outvars))
    structure, count = jax.tree.structure(tape), len(results)
    jaxpr = passed.jaxpr
    extras: dict[Var, int] = {}
    known = {v: (CONSTANT, i) for i, v in enumerate(jaxpr.constvars)}
    there = [True] * count if there is None else there
    known |= {v: (RESULT, i) for i, v in enumerate(jaxpr.outvars[:count]) if isinstance(v, Var) and there[i]}
    known |= {v: (OPERAND, i) for i, v in enumerate(jaxpr.invars)}
    places: list[tuple[str, Any]] = []
    for v, is_read in zip(jaxpr.outvars[count:], reads[: structure.num_leaves], strict=True):
        if not is_read:
            places.append((UNREAD, v.aval))
        elif isinstance(v, Literal):
            places.append((LITERAL, v))
        else:
            places.append(known.get(v) or (EXTRA, extras.setdefault(v, len(extras))))
    made = Halves(program, tuple(wanted), tuple(live), jaxpr, count, places, list(extras), structure)
    return made, passed.consts


def _nothing(aval: Any) -> Value:
    """What stands in the place of a value that nobody reads, but whose shape and type a rule may ask for."""
    is_key = jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype) if is_key else zeros(aval)


def run(
    jaxpr: Jaxpr,
    consts: Sequence[Value],
    operands: Sequence[Value],
    outvars: Sequence[Var | Literal],
    effects: bool = True,
) -> list[Value]:
    """The values of some variables of a program; what they do not need is not evaluated.

    Effects (printing, say) happen unless told otherwise.
    """
    needed = {v for v in outvars if isinstance(v, Var)}
    path: list[JaxprEqn] = []
    for eqn in reversed(jaxpr.eqns):
        if (effects and eqn.effects) or any(v in needed for v in eqn.outvars):
            path.append(eqn)
            needed |= {v for v in eqn.invars if isinstance(v, Var)}
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *operands], strict=True))
    for eqn in reversed(path):
        e = engine.equation(eqn, [engine.read(v, values) for v in eqn.invars], set())
        with source_info_util.user_context(eqn.source_info.traceback):
            values.update(zip(eqn.outvars, e.bind(*e.ins), strict=True))
    return [engine.read(v, values) for v in outvars]


def depending(jaxpr: Jaxpr, operands: Sequence[bool]) -> set[Var]:
    """The variables of a program that depend on the flagged operands in any way, or on an effect."""
    on = {v for v, flag in zip(jaxpr.invars, operands, strict=True) if flag}
    for eqn in jaxpr.eqns:
        if eqn.effects or any(isinstance(v, Var) and v in on for v in eqn.invars):
            on.update(eqn.outvars)
    return on
