"""Operations that are objects, all of them the one primitive `call_hi_primitive`: newer JAX has a few.

Of most the results are integers: the places of `searchsorted` or `nonzero`. The others have a rule here each.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bpresearch.chainrule import engine, tangents
from bpresearch.chainrule.primitives import Equation, NoPrimitiveRuleError, Value, is_floating, primitive


class LdexpRule:
    """y = x 2^n:  x_bar = y_bar 2^n"""

    def backward(e, y_bar):
        return jnp.ldexp(y_bar, e.ins[1]), None

    def tangent(e, x_dot, _):
        return jnp.ldexp(x_dot, e.ins[1])


class FrexpRule:
    """x = m 2^n, 1/2 <= |m| < 1:  x_bar = m_bar 2^-n"""

    def backward(e, m_bar, _):
        return jnp.ldexp(m_bar, -e.outs[1])

    def tangent(e, x_dot):
        return jnp.ldexp(x_dot, -e.outs[1]), None


class CustomRootRule:
    """F(p, x) = 0.      x_dot = -A^-1 (dF/dp) p_dot, A = dF/dx: the implicit function theorem

    The user's `tangent_solve` is A^-1 and linear: p -> -A^-1 F(p, x), with A and x held, has that derivative.
    """

    def backward(e, *bars):
        step, held, parameters, after = _newton_step(e)
        closed = jax.make_jaxpr(step)(*parameters)
        wanted = [is_floating(p) for p in parameters]
        results, tape = engine.forward(closed.jaxpr, closed.consts, parameters, wanted)
        cotangents = engine.backward(closed.jaxpr, tape, bars[: len(results)], wanted)
        return *[None] * held, *cotangents, *[None] * after

    def tangent(e, *dots):
        step, held, parameters, _ = _newton_step(e)
        closed = jax.make_jaxpr(step)(*parameters)
        of_parameters = dots[held : held + len(parameters)]
        _, out_dots = tangents.walk(closed.jaxpr, closed.consts, parameters, of_parameters)
        return *out_dots, *[None] * (len(e.outs) - len(out_dots))


def _newton_step(e: Equation) -> tuple[Callable[..., list[Value]], int, list[Value], int]:
    """The map of the parameters, and the number of operands before them, they, and that of those after
    them.
    """
    operation = e.params["_prim"]
    solver, guess, parameters, of_tangents = operation.in_tree.unflatten(e.ins)
    solution = operation.out_tree.unflatten(e.outs)
    root = solution[0] if operation.has_aux else solution
    leaves, structure = jax.tree.flatten(parameters)

    def step(*leaves):
        value = operation.f(structure.unflatten(leaves), root)
        return [-x for x in jax.tree.leaves(operation.tangent_solve(of_tangents, root, value))]

    held = len(jax.tree.leaves((solver, guess)))
    return step, held, leaves, len(jax.tree.leaves(of_tangents))


RULES = {"Ldexp": LdexpRule, "Frexp": FrexpRule, "CustomRoot": CustomRootRule}


@primitive("call_hi_primitive")
class HiPrimitiveRule:
    """By the kind of operation: its own rule, or none where its results are integers."""

    def backward(e, *bars):
        return _rule(e).backward(e, *bars)

    def tangent(e, *dots):
        return _rule(e).tangent(e, *dots)


class IntegerResultsRule:
    """No derivative."""

    def backward(e, *bars):
        return (None,) * len(e.ins)

    def tangent(e, *dots):
        return (None,) * len(e.outs)


def _rule(e: Equation) -> Any:
    kind = type(e.params["_prim"]).__name__
    if not any(map(is_floating, e.outs)):
        return IntegerResultsRule
    if kind not in RULES:
        raise NoPrimitiveRuleError(
            f"{kind} at {e.place} has no rule: it is of an experimental kind (jax.experimental.hijax)"
        )
    return RULES[kind]
