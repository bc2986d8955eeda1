"""Forward mode by hand: a program walked once, each value with its tangent.

    y = f(x),   y_dot = f'(x) x_dot

The tangent of an equation's result comes from the `tangent` of its rule. Over a program that is itself a
gradient (forward over reverse), it is the Hessian's product with a vector (Pearlmutter 1994).
"""

from collections.abc import Sequence

from jax.extend import source_info_util
from jax.extend.core import Jaxpr, Literal

from bpresearch.chainrule.engine import equation, inside, rule_of, several
from bpresearch.chainrule.primitives import Equation, Value, is_floating, table
from bpresearch.jaxprs import read


def walk(
    jaxpr: Jaxpr, consts: Sequence[Value], args: Sequence[Value], dots: Sequence[Value | None]
) -> tuple[list[Value], list[Value | None]]:
    """The results of a program and their tangents from its arguments and theirs; None is zero."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    moving = {v: dot for v, dot in zip(jaxpr.invars, dots, strict=True) if dot is not None}
    for eqn in jaxpr.eqns:
        e = equation(eqn, [read(v, values) for v in eqn.invars], moving)
        given = [None if isinstance(v, Literal) else moving.get(v) for v in eqn.invars]
        with source_info_util.user_context(eqn.source_info.traceback):
            outs, out_dots = push(e, given)
        values.update(zip(eqn.outvars, outs, strict=True))
        for v, dot in zip(eqn.outvars, out_dots, strict=True):
            if dot is not None and is_floating(v.aval):
                moving[v] = dot
    results = [read(v, values) for v in jaxpr.outvars]
    return results, [None if isinstance(v, Literal) else moving.get(v) for v in jaxpr.outvars]


def push(e: Equation, dots: Sequence[Value | None]) -> tuple[Sequence[Value], Sequence[Value | None]]:
    """The results of an equation and their tangents, by its rule."""
    if all(dot is None for dot in dots) or e.primitive.name in table.constants:
        outs = e.bind(*e.ins)
        return outs, [None] * len(outs)
    rule = rule_of(e)
    if hasattr(rule, "pushforward"):
        with inside(e):
            return rule.pushforward(e, *dots)
    outs = e.bind(*e.ins)
    return outs, several(rule.tangent(e.with_results(outs), *dots))
