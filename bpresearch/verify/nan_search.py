"""Which equation of a program makes the NaN and Inf that reach the program's results.

The results of all its equations are computed. From the program's results that are not finite the search goes
back, and an operand's NaN, or its Inf, is followed only if it matters: if with ordinary numbers in their
place the equation's result is another. So the Inf of a mask that a softmax takes away is left alone. Among
the equations that were met, the first in the order of the program that fits a criterion is opened: a loop
step by step, a branch, a function, until an equation without a program of its own is reached.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun
from jaxtyping import PyTree

from bpresearch.chainrule.primitives import Equation, Value, is_floating
from bpresearch.chainrule.rules.lax.loops import sizes
from bpresearch.jaxprs import read, where_going
from bpresearch.verify.precision import compares

NAN, INF = "NaN", "Inf"
TESTS = {NAN: np.isnan, INF: np.isinf}

Kinds: TypeAlias = frozenset[str]
"""Which of NaN and Inf."""

Matters: TypeAlias = dict[int, Kinds]
"""By the number of a result: which of its values that are not finite matter."""

CLOSED = ("shard_map", "pallas_call", "custom_partitioning")
"""Equations whose programs work on something else than the equation's operands."""


@dataclass(frozen=True)
class Call:
    """Something evaluated: a function, its operands and results."""

    function: Callable[..., Sequence[Value]]
    ins: Sequence[Value]
    outs: Sequence[Value]


Criterion: TypeAlias = Callable[[Call, Matters], bool]

Path: TypeAlias = list[tuple[Equation, Matters]]
"""Equations in the program's order, with what of their results matters."""


@dataclass(frozen=True)
class Origin:
    """An equation that makes NaN or Inf.

    Attributes:
        equation: with the values of its operands and results.
        matters: which results hold what.
        steps: the step of each loop it is in, the outermost first, counted from 0 along the loop's axis.
    """

    equation: Equation
    matters: Matters
    steps: tuple[int, ...]


def kinds(x: Value) -> Kinds:
    """Which of NaN and Inf an array holds."""
    if not is_floating(x):
        return frozenset()
    values = np.asarray(x)
    if np.isfinite(values).all():
        return frozenset()
    return frozenset(kind for kind, test in TESTS.items() if test(values).any())


def not_finite(values: Sequence[Value]) -> Matters:
    """Which values hold NaN or Inf."""
    return {i: held for i, value in enumerate(values) if (held := kinds(value))}


def makes_of_finite(call: Call, matters: Matters) -> bool:
    """Whether it makes NaN or Inf of finite numbers: also with ordinary numbers where operands hold none."""
    holding = [kinds(x) for x in call.ins]
    if not any(holding):
        return True
    ordinary = [
        call.function(*[_ordinary(x, k, fill) for x, k in zip(call.ins, holding, strict=True)])
        for fill in (0.5, 0.75)
    ]
    return all(
        any(
            (_where(call.outs[i], held) & ~np.isfinite(np.asarray(outs[i]))).any()
            for i, held in matters.items()
        )
        for outs in ordinary
    )


def makes_nan(call: Call, matters: Matters) -> bool:
    """Whether it makes NaN of numbers and Inf."""
    wrong = any(NAN in held for held in matters.values())
    return wrong and not any(NAN in kinds(x) for x in call.ins)


def first(
    jaxpr: Jaxpr,
    consts: Sequence[Value],
    args: Sequence[Value],
    matters: Matters,
    criterion: Criterion,
    within: Equation | None = None,
    steps: tuple[int, ...] = (),
) -> Origin | None:
    """The first equation of a program that fits the criterion: see `first_of`.

    Args:
        jaxpr, consts, args: the program and what it works on.
        matters: the results to explain.
        within: the equation whose program this is.
        steps: of the loops around it.
    """
    equations, _ = evaluated(jaxpr, consts, args, within)
    return first_of(reached(jaxpr, equations, matters)[0], criterion, steps)


def first_of(path: Path, criterion: Criterion, steps: tuple[int, ...] = ()) -> Origin | None:
    """The first equation that fits the criterion, of those through which NaN and Inf reach the results."""
    for equation, matters in path:
        if criterion(Call(equation.bind, equation.ins, equation.outs), matters):
            return opened(equation, matters, criterion, steps) or Origin(equation, matters, steps)
    return None


def reached(jaxpr: Jaxpr, equations: Sequence[Equation], matters: Matters) -> tuple[Path, Matters]:
    """Of a program's equations, as evaluated, those through which NaN and Inf reach its results; and the
    arguments they come from.
    """
    known: dict[Var, Kinds] = {}

    def add(v: Var | Literal, held: Kinds) -> None:
        if not isinstance(v, Literal):
            known[v] = known.get(v, frozenset()) | held

    for i, held in matters.items():
        add(jaxpr.outvars[i], held)
    path: Path = []
    for eqn, equation in zip(reversed(jaxpr.eqns), reversed(equations), strict=True):
        mine = {i: known[v] for i, v in enumerate(eqn.outvars) if v in known}
        if mine:
            path.append((equation, mine))
            for i, held in brought(Call(equation.bind, equation.ins, equation.outs), mine).items():
                add(eqn.invars[i], held)
    return path[::-1], {i: known[v] for i, v in enumerate(jaxpr.invars) if v in known}


def evaluated(
    jaxpr: Jaxpr, consts: Sequence[Value], args: Sequence[Value], within: Equation | None = None
) -> tuple[list[Equation], list[Value]]:
    """The equations of a program with the values of their operands and results, and the program's results."""
    all_ins, all_outs, results = _evaluator(jaxpr)(list(consts), list(args))
    equations = [
        Equation(eqn.primitive, eqn.params, tuple(ins), tuple(outs), source=eqn.source_info, enclosing=within)
        for eqn, ins, outs in zip(jaxpr.eqns, all_ins, all_outs, strict=True)
    ]
    return equations, results


@functools.lru_cache(maxsize=32)
def _evaluator(jaxpr: Jaxpr) -> Callable[..., PyTree]:
    """`(consts, args) -> operands and results of each equation, and the results`, compiled as one."""

    def run(consts, args):
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        all_ins, all_outs = [], []
        for eqn in jaxpr.eqns:
            ins = tuple(read(v, values) for v in eqn.invars)
            # What has no result prints, say.
            outs = Equation(eqn.primitive, eqn.params, ins).bind(*ins) if eqn.outvars else ()
            # Or the compiler would make x * 1e25 * 1e20 one product with infinity.
            outs = tuple(lax.optimization_barrier(y) if is_floating(y) else y for y in outs)
            values.update(zip(eqn.outvars, outs, strict=True))
            all_ins.append(ins)
            all_outs.append(outs)
        return all_ins, all_outs, [read(v, values) for v in jaxpr.outvars]

    return _as_written(run, jaxpr)


@functools.lru_cache(maxsize=32)
def _body(closed: ClosedJaxpr) -> Callable[..., list[Value]]:
    return _as_written(jaxpr_as_fun(closed), closed.jaxpr)


def _as_written(run: Callable[..., PyTree], jaxpr: Jaxpr) -> Callable[..., PyTree]:
    """Compiled so that each value is rounded to its own type, and little time is spent on speed."""
    options = {"xla_allow_excess_precision": False, "xla_backend_optimization_level": int(compares(jaxpr))}
    return jax.jit(run, compiler_options=options)


def brought(call: Call, matters: Matters) -> Matters:
    """By the number of an operand: which of its values that are not finite bring about those that matter."""
    holding = not_finite(call.ins)
    causes: Matters = {}
    for i, several in holding.items():
        for kind in several:
            ins = list(call.ins)
            ins[i] = _ordinary(ins[i], frozenset({kind}), 0.5)
            if not _stays(call, matters, ins):
                causes[i] = causes.get(i, frozenset()) | {kind}
    # NaN + NaN: neither alone is what brings it about, both together are.
    return causes or holding


def _ordinary(x: Value, which: Kinds, fill: float) -> Value:
    """An array with an ordinary number in the place of its NaN, or Inf."""
    if not which:
        return x
    values = np.asarray(x)
    return jnp.asarray(np.where(_where(values, which), np.asarray(fill, values.dtype), values))


def _where(x: Value, which: Iterable[str]) -> np.ndarray:
    """The elements of an array that are NaN, or Inf."""
    values = np.asarray(x)
    return np.asarray(np.any([TESTS[kind](values) for kind in which], axis=0))


def _stays(call: Call, matters: Matters, ins: Sequence[Value]) -> bool:
    """Whether all that matters in the results is as it was with other operands."""
    outs = call.function(*ins)
    return not any(
        (_where(call.outs[i], {kind}) & ~_where(outs[i], {kind})).any()
        for i, held in matters.items()
        for kind in held
    )


def opened(
    equation: Equation, matters: Matters, criterion: Criterion, steps: tuple[int, ...]
) -> Origin | None:
    """The first equation that fits the criterion in the program of an equation; None where it has none."""
    name, params = equation.primitive.name, equation.params
    if name in ("scan", "while"):
        scan = name == "scan"
        consts, carried = _sizes(equation)
        body = params["jaxpr" if scan else "body_jaxpr"]
        runs = list(_scan(equation) if scan else _while(equation))
        of_steps = _of_steps(runs, matters, consts, carried)
        for (step, call), mine in zip(runs, of_steps, strict=True):
            if mine and criterion(call, mine):
                inner = first(body.jaxpr, body.consts, call.ins, mine, criterion, equation, (*steps, step))
                if inner is not None:
                    return inner
        return None
    if name == "cond":
        index, *operands = equation.ins
        branch = params["branches"][int(np.clip(int(index), 0, len(params["branches"]) - 1))]
        return first(branch.jaxpr, branch.consts, operands, matters, criterion, equation, steps)
    program = program_of(equation)
    if program is None:
        return None
    return first(program.jaxpr, program.consts, equation.ins, matters, criterion, equation, steps)


def program_of(equation: Equation) -> ClosedJaxpr | None:
    """The program that an equation evaluates on its own operands: of a `jit`, a `remat`, a custom rule."""
    if equation.primitive.name in CLOSED:
        return None
    for value in equation.params.values():
        if hasattr(value, "eqns"):
            closed = value if hasattr(value, "consts") else ClosedJaxpr(value, ())
            sizes = len(closed.jaxpr.invars), len(closed.jaxpr.outvars)
            if sizes == (len(equation.ins), len(equation.outs)):
                return closed
    return None


def _sizes(equation: Equation) -> tuple[int, int]:
    """How many operands of a loop are constant, and how many it carries from step to step."""
    if equation.primitive.name == "while":
        return equation.params["body_nconsts"], len(equation.outs)
    a, b = sizes(equation.params)
    return a, b - a


def _scan(equation: Equation) -> Iterator[tuple[int, Call]]:
    p, ins = equation.params, equation.ins
    a, b = sizes(p)
    body = _body(p["jaxpr"])
    carry = list(ins[a:b])
    for step in range(p["length"])[:: -1 if p["reverse"] else 1]:
        args = [*ins[:a], *carry, *(x[step] for x in ins[b:])]
        outs = body(*args)
        yield step, Call(body, args, outs)
        carry = outs[: b - a]


def _while(equation: Equation) -> Iterator[tuple[int, Call]]:
    p, ins = equation.params, equation.ins
    a, b = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    goes_on, body = (_body(p[name]) for name in ("cond_jaxpr", "body_jaxpr"))
    carry, step = list(ins[b:]), 0
    while jnp.any(going := goes_on(*ins[:a], *carry)[0]):
        args = [*ins[a:b], *carry]
        carry = [where_going(going, new, old) for new, old in zip(body(*args), carry, strict=True)]
        yield step, Call(body, args, carry)
        step += 1


def _of_steps(runs: Sequence[tuple[int, Call]], matters: Matters, consts: int, carried: int) -> list[Matters]:
    """For each step of a loop what matters in its results: from the last step back."""
    stacked = {i: held for i, held in matters.items() if i >= carried}
    wanted = {i: held for i, held in matters.items() if i < carried}
    of_steps = []
    for _, call in reversed(runs):
        mine = {i: left for i, held in (wanted | stacked).items() if (left := held & kinds(call.outs[i]))}
        of_steps.append(mine)
        wanted = not_finite(call.ins[consts : consts + carried]) if mine else {}
    return of_steps[::-1]


def of_gradient(equation: Equation) -> bool:
    """Whether JAX made the equation on the way back of a gradient."""
    stack = str(equation.source.name_stack) if equation.source else ""
    return "transpose(" in stack or (equation.enclosing is not None and of_gradient(equation.enclosing))
