"""The chain-rule engine: a program walked forward and backward. It knows no derivative itself.

Forward evaluates each equation by its rule and keeps what the way back needs, the tape. Backward goes from
the last equation to the first: it takes the cotangents of an equation's results, asks the rule for those of
its operands, and adds up what flows into the same variable from several uses.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax.extend import source_info_util
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import PyTree

from bpresearch.chainrule.primitives import LAYER, Equation, NoPrimitiveRuleError, Value, is_floating, table
from bpresearch.jaxprs import read

Tape: TypeAlias = list[Any]
"""For each equation `(ins, outs, kept)`; None where no derivative passes."""

Replace: TypeAlias = Callable[[Equation, Any], Any]
Watch: TypeAlias = Callable[[Equation, Sequence[Value | None], tuple[Value | None, ...]], Any]

_enclosing: ContextVar[Equation | None] = ContextVar("enclosing", default=None)
_replace: ContextVar[Replace] = ContextVar("replace", default=lambda e, rule: rule)
_watch: ContextVar[Watch] = ContextVar("watch", default=lambda e, bars, cotangents: cotangents)


def forward(
    jaxpr: Jaxpr,
    consts: Sequence[Value],
    args: Sequence[Value],
    wanted: Sequence[bool],
    live: Sequence[bool] | None = None,
    given: Mapping[Var, Value] | None = None,
) -> tuple[list[Value], Tape]:
    """The results of a program, and the tape.

    Args:
        jaxpr, consts, args: the program and the values it works on.
        wanted: the arguments that are differentiated.
        live: the results that a cotangent may come back to; by default all.
        given: values of variables that are known already, and not computed again.
    """
    given = given or {}
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    on, tape = passed(jaxpr, wanted, live), []
    for eqn in jaxpr.eqns:
        e = equation(eqn, [read(v, values) for v in eqn.invars], on)
        moves = any(e.live)
        # What is made here is of the same line.
        with source_info_util.user_context(eqn.source_info.traceback):
            outs, residuals = evaluate(e) if moves else (e.bind(*e.ins), ())
        outs = [given.get(v, out) for v, out in zip(eqn.outvars, outs, strict=True)]
        values.update(zip(eqn.outvars, outs, strict=True))
        tape.append((e.ins, tuple(outs), residuals) if moves else None)
    return [read(v, values) for v in jaxpr.outvars], tape


def backward(
    jaxpr: Jaxpr,
    tape: Tape,
    bars: Sequence[Value | None],
    wanted: Sequence[bool],
    live: Sequence[bool] | None = None,
) -> list[Value | None]:
    """Cotangents of a program's arguments from those of its results; None is zero. `live` is as in
    `forward`.
    """
    on = passed(jaxpr, wanted, live)
    cotangents: dict[Var, Value] = {}

    def add(v, bar):
        if bar is not None and not isinstance(v, Literal) and v in on:
            cotangents[v] = cotangents[v] + bar if v in cotangents else bar

    for v, bar in zip(jaxpr.outvars, bars, strict=True):
        add(v, bar)
    for eqn, entry in zip(reversed(jaxpr.eqns), reversed(tape), strict=True):
        y_bars = [cotangents.pop(v, None) for v in eqn.outvars]
        if entry is not None and any(bar is not None for bar in y_bars):
            e = equation(eqn, entry[0], on, *entry[1:])
            with source_info_util.user_context(eqn.source_info.traceback):
                for v, bar in zip(eqn.invars, pull_back(e, y_bars), strict=True):
                    add(v, bar)
    return [cotangents.get(v) for v in jaxpr.invars]


def evaluate(e: Equation) -> tuple[Sequence[Value], PyTree]:
    """The results of an equation and what its rule keeps besides its operands and results."""
    rule = rule_of(e)
    with inside(e):
        return rule.forward(e) if hasattr(rule, "forward") else (e.bind(*e.ins), ())


def pull_back(e: Equation, bars: Sequence[Value | None]) -> tuple[Value | None, ...]:
    """Cotangents of an equation's operands, by its rule."""
    rule = rule_of(e)
    if not hasattr(rule, "forward"):
        bars = filled(bars, e.outs)
    with inside(e):
        cotangents = several(rule.backward(e, *bars))
    for x, bar, wanted in zip(e.ins, cotangents, e.wanted, strict=True):
        if wanted and bar is not None and (jnp.shape(bar), bar.dtype) != (jnp.shape(x), x.dtype):
            raise ValueError(
                f"the rule of {e.name} at {e.place} gives a cotangent of shape {jnp.shape(bar)} and type "
                f"{bar.dtype} for an operand of shape {jnp.shape(x)} and type {x.dtype}"
            )
    return _watch.get()(e, bars, cotangents)


def dependent(jaxpr: Jaxpr, wanted: Sequence[bool]) -> set[Var]:
    """The variables with a derivative with respect to the wanted arguments."""
    on = {v for v, w in zip(jaxpr.invars, wanted, strict=True) if w}
    for eqn in jaxpr.eqns:
        flags = tuple(not isinstance(v, Literal) and v in on for v in eqn.invars)
        if any(flags):
            on.update(v for v, flag in zip(eqn.outvars, flow(eqn, flags), strict=True) if flag)
    return on


def passed(jaxpr: Jaxpr, wanted: Sequence[bool], live: Sequence[bool] | None = None) -> set[Var]:
    """The variables that a cotangent passes on its way from the live results to the wanted arguments."""
    on = dependent(jaxpr, wanted)
    live = [True] * len(jaxpr.outvars) if live is None else live
    reached = {v for v, flag in zip(jaxpr.outvars, live, strict=True) if flag and isinstance(v, Var)}
    for eqn in reversed(jaxpr.eqns):
        if any(v in reached and v in on for v in eqn.outvars):
            reached |= {v for v in eqn.invars if isinstance(v, Var)}
    return on & reached


def flow(eqn: JaxprEqn, flags: Sequence[bool]) -> Sequence[bool]:
    """Which results of an equation have a derivative with respect to its flagged operands."""
    name = eqn.primitive.name
    if name in table.constants:
        return [False] * len(eqn.outvars)
    flow = getattr(table.rules.get(name), "flow", None)
    floating = [is_floating(v.aval) for v in eqn.outvars]
    if flow is None:
        return floating
    return [f and g for f, g in zip(floating, flow(eqn.params, flags), strict=True)]


def equation(
    eqn: JaxprEqn, ins: Sequence[Value], on: Container[Var], outs: Sequence[Value] = (), kept: PyTree = ()
) -> Equation:
    """An equation of a program with its values."""
    wanted = tuple(not isinstance(v, Literal) and v in on for v in eqn.invars)
    live = tuple(v in on for v in eqn.outvars)
    values = tuple(ins), tuple(outs), wanted, live, kept
    return Equation(eqn.primitive, eqn.params, *values, eqn.source_info, _enclosing.get())


def filled_where(
    live: Sequence[bool], bars: Sequence[Value | None], values: Sequence[Value]
) -> list[Value | None]:
    """Cotangents with zeros for the live values, and None for all others."""
    return [
        None if not flag else jnp.zeros_like(y) if bar is None else bar
        for flag, bar, y in zip(live, bars, values, strict=True)
    ]


def filled(bars: Sequence[Value | None], values: Sequence[Value]) -> list[Value | None]:
    """Cotangents with zeros in the place of None, for values that are floating point."""
    return [
        jnp.zeros_like(y) if bar is None and is_floating(y) else bar
        for bar, y in zip(bars, values, strict=True)
    ]


def several(answer: PyTree) -> tuple[Value, ...]:
    """A rule's answer as a tuple: a lone value stands for a tuple of one."""
    return tuple(answer) if isinstance(answer, tuple | list) else (answer,)


def rule_of(e: Equation) -> Any:
    """The rule that answers for an equation.

    Raises:
        NoPrimitiveRuleError: there is none.
    """
    rule = table.rules.get(e.primitive.name)
    if rule is None:
        raise NoPrimitiveRuleError(missing(e))
    return rule if e.primitive.name == LAYER else in_force(e, rule)


def in_force(e: Equation, rule: Any) -> Any:
    """The rule, or what has been put in its place; of a layer the layer's own."""
    return _replace.get()(e, rule)


def missing(e: Equation) -> str:
    """What to do about a primitive without a rule."""
    name = e.primitive.name
    if reason := table.refused.get(name):
        return f"{name} at {e.place} has no derivative: {reason}"
    return (
        f"no chain-rule derivative for the primitive {name} at {e.place}: write one under "
        f"@bpresearch.chainrule.primitive({name!r}), or let JAX differentiate it with "
        f"bpresearch.chainrule.primitive({name!r})(bpresearch.autodiff.ByJax)"
    )


@contextmanager
def _setting(variable: ContextVar, value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def inside(e: Equation):
    """Context in which equations are those of a program in this one, and in its layer if they name none."""
    return _setting(_enclosing, e)


def replacing(replace: Replace):
    """Context in which `replace(equation, rule)` takes the place of each rule; the verifier plants faults so.

    For the call of a layer, `rule` is the layer's own (see `registry.Rule`).

    >>> def doubled(equation, rule):
    ...     class Doubled(rule):
    ...         def backward(e, y_bar):
    ...             return 2 * rule.backward(e, y_bar)[0]
    ...     return Doubled if equation.name == "sin" else rule
    >>> with bp.chainrule.replacing(doubled):
    ...     print(bp.chainrule.grad(jnp.sin)(0.0))
    2.0
    """
    return _setting(_replace, replace)


def watching(watch: Watch):
    """Context in which `watch(equation, bars, answer)` sees each answer and returns what is handed on.

    >>> def watch(equation, bars, answer):
    ...     print(equation.name)
    ...     return answer
    >>> with bp.chainrule.watching(watch):
    ...     gradient = bp.chainrule.grad(lambda x: jnp.exp(jnp.sin(x)))(0.0)
    exp
    sin
    """
    return _setting(_watch, watch)


def rules_in_force() -> tuple[Replace, Watch]:
    """What programs that were compiled with other rules, or watched by others, differ in."""
    return _replace.get(), _watch.get()
