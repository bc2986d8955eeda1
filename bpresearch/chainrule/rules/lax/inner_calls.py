"""Programs inside an equation that are walked where they stand: `jit`, `remat`, derivatives that a user wrote.

* A call is its body: forward and backward go through it.
* `remat` keeps its operands and what its policy names, and goes forward once more before it goes backward
  (Chen et al. 2016).
* `custom_vjp` is differentiated as its author wrote it.
* `custom_jvp` has its author's tangent rule. That rule is a program, linear in the tangents, and backward walks
  it: y_dot = L(x) x_dot, so x_bar = L(x)^T y_bar.
* The solution of a linear system, A y = b:  b_bar = A^-T y_bar, and A's parameters get the cotangent of
  -A y with y held, from b_bar.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Var
from jax.interpreters import ad

from bpresearch.chainrule import engine, tangents
from bpresearch.chainrule.halves import depending, run
from bpresearch.chainrule.primitives import LAYER, NoPrimitiveRuleError, Static, is_floating, primitive

BODIES = ("jaxpr", "call_jaxpr")


def body(params):
    """The program of a call, and the values of its constants."""
    found = next(params[name] for name in BODIES if name in params)
    return (found.jaxpr, found.consts) if hasattr(found, "consts") else (found, ())


def flow_of(jaxpr, flags):
    """Which results of a program depend on its flagged operands."""
    on = engine.dependent(jaxpr, flags)
    return [isinstance(v, Var) and v in on for v in jaxpr.outvars]


@primitive("jit", "pjit", "closed_call", "core_call", "custom_vmap_call", "eval_jaxpr", "composite")
class CallRule:
    """y = f(x) for a program f.      Backward and tangent are those of f's equations"""

    def flow(params, flags):
        return flow_of(body(params)[0], flags)

    def forward(e):
        return engine.forward(*body(e.params), e.ins, e.wanted, e.live)

    def backward(e, *bars):
        return engine.backward(body(e.params)[0], e.kept, bars, e.wanted, e.live)

    def pushforward(e, *dots):
        return tangents.walk(*body(e.params), e.ins, dots)


@primitive("remat2", "checkpoint", "remat")
class RematRule:
    """y = f(x).      x_bar is f's, after f has been computed again from x and what the policy saves"""

    def flow(params, flags):
        return flow_of(params["jaxpr"], flags)

    def forward(e):
        jaxpr = inlined(e)
        saved = saveable(jaxpr, e.params["policy"])
        values = run(jaxpr.jaxpr, jaxpr.consts, e.ins, [*jaxpr.jaxpr.outvars, *saved])
        count = len(jaxpr.jaxpr.outvars)
        return values[:count], (Static((jaxpr.jaxpr, saved)), jaxpr.consts, values[count:])

    def backward(e, *bars):
        static, consts, values = e.kept
        jaxpr, saved = static.value
        ins = list(e.ins)
        if e.params["prevent_cse"]:
            # Or the compiler would keep the first computation's values after all. With the cotangents behind
            # the same barrier, it cannot begin before they are there, and hold what it computes until then.
            consts, ins, values, bars = lax.optimization_barrier((list(consts), ins, values, list(bars)))
        given = dict(zip(saved, values, strict=True))
        _, tape = engine.forward(jaxpr, consts, ins, e.wanted, e.live, given)
        return engine.backward(jaxpr, tape, bars, e.wanted, e.live)

    def pushforward(e, *dots):
        return tangents.walk(e.params["jaxpr"], (), e.ins, dots)


def inlined(e):
    """The body of a `remat` with the calls in it opened, so that its policy sees their equations."""

    def opened(jaxpr, consts, args):
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        for eqn in jaxpr.eqns:
            ins = [engine.read(v, values) for v in eqn.invars]
            if eqn.primitive.name in ("jit", "pjit", "closed_call", "core_call"):
                outs = opened(*body(eqn.params), ins)
            else:
                outs = engine.equation(eqn, ins, set()).bind(*ins)
            values.update(zip(eqn.outvars, outs, strict=True))
        return [engine.read(v, values) for v in jaxpr.outvars]

    return jax.make_jaxpr(lambda *args: opened(e.params["jaxpr"], (), args))(*e.ins)


def saveable(closed, policy):
    """The variables that a policy saves; a layer is saved if something in it is."""
    if policy is None:
        return []

    def saves(eqn):
        if eqn.primitive.name == LAYER:
            inner = jax.make_jaxpr(eqn.params["call"].apply)(*[v.aval for v in eqn.invars])
            return any(saves(part) for part in inner.jaxpr.eqns)
        decision = policy(eqn.primitive, *[v.aval for v in eqn.invars], **eqn.params)
        return decision if isinstance(decision, bool) else "Recompute" not in type(decision).__name__

    on = depending(closed.jaxpr, [True] * len(closed.jaxpr.invars))
    return [v for eqn in closed.jaxpr.eqns if saves(eqn) for v in eqn.outvars if v in on]


@primitive("custom_vjp_call", "custom_vjp_call_jaxpr")
class CustomVJPRule:
    """y = f(x).      x_bar = bwd(what fwd kept, y_bar), both by f's author"""

    def flow(params, flags):
        return [True] * len(body(params)[0].outvars)

    def forward(e):
        p, (jaxpr, _) = e.params, body(e.params)
        count = p.get("num_consts", 0)
        fwd, consts = p["fwd_jaxpr_thunk"].call_wrapped(*e.wanted[count:])
        values = jax.core.eval_jaxpr(fwd, consts, *e.ins[count:])
        _, residuals, *forwarded = p["out_trees"]()
        forwarded = forwarded[0] if forwarded else [None] * residuals.num_leaves
        own = len(values) - len(jaxpr.outvars)
        remaining = iter(values[:own])
        kept = [next(remaining) if i is None else e.ins[count + i] for i in forwarded]
        return values[own:], kept

    def backward(e, *bars):
        bars = [
            bar if is_floating(y) else ad.Zero(jax.typeof(y).to_tangent_aval())
            for bar, y in zip(engine.filled(bars, e.outs), e.outs, strict=True)
        ]
        found = e.params["bwd"].call_wrapped(*e.kept, *bars)
        found = found[0] if isinstance(found, tuple) else found
        count = e.params.get("num_consts", 0)
        return [*[None] * count, *(None if isinstance(bar, ad.Zero) else bar for bar in found)]

    def pushforward(e, *dots):
        raise NoPrimitiveRuleError(
            f"a custom_vjp at {e.place} has no tangent: its author wrote the backward pass alone, and JAX has no "
            "forward mode of it either"
        )


@primitive("custom_jvp_call")
class CustomJVPRule:
    """y = f(x).      y_dot = L(x) x_dot as f's author wrote it, and x_bar = L(x)^T y_bar"""

    def flow(params, flags):
        return [True] * len(body(params)[0].outvars)

    def forward(e):
        at, primals = _own(e)
        dots = [jnp.zeros_like(x) if w else None for x, w in zip(primals, e.wanted[at:], strict=True)]
        jaxpr, consts, zeros, dots, moving = _tangent_program(e.params, primals, dots)
        wanted = [*[False] * len(primals), *moving]
        moved = [flag for flag, zero in zip(e.live, zeros, strict=True) if not zero]
        live = [*[False] * len(zeros), *moved]
        values, tape = engine.forward(jaxpr, consts, [*primals, *dots], wanted, live)
        return values[: len(zeros)], (Static((jaxpr, zeros, wanted, live)), tape)

    def backward(e, *bars):
        static, tape = e.kept
        jaxpr, zeros, wanted, live = static.value
        at, primals = _own(e)
        of_dots = [bar for bar, zero in zip(bars, zeros, strict=True) if not zero]
        found = engine.backward(jaxpr, tape, [*[None] * len(zeros), *of_dots], wanted, live)[len(primals) :]
        remaining = (bar for bar, w in zip(found, wanted[len(primals) :], strict=True) if w)
        return [next(remaining) if w and i >= at else None for i, w in enumerate(e.wanted)]

    def pushforward(e, *dots):
        at, primals = _own(e)
        jaxpr, consts, zeros, dots, _ = _tangent_program(e.params, primals, dots[at:])
        values = jax.core.eval_jaxpr(jaxpr, consts, *primals, *dots)
        outs, remaining = values[: len(zeros)], iter(values[len(zeros) :])
        return outs, [None if zero else next(remaining) for zero in zeros]


def _own(e):
    """The number of operands that the call closes over, and the others."""
    count = e.params.get("num_consts", 0)
    return count, e.ins[count:]


def _tangent_program(params, primals, dots):
    """The author's rule as a program of the primals and tangents; those tangents, and which of them are not zero.

    A rule that takes symbolic zeros is not given the others; any other gets zeros of the right type.
    """
    symbolic = params["symbolic_zeros"]
    jaxpr, consts, zeros = params["jvp_jaxpr_fun"].call_wrapped(*[symbolic and dot is None for dot in dots])
    given = [dot for dot in dots if dot is not None or not symbolic]
    filled = [_zero(x) if dot is None else dot for x, dot in zip(primals, dots, strict=True) if dot is not None or not symbolic]
    return jaxpr, consts, zeros, filled, [dot is not None for dot in given]


def _zero(x):
    return jnp.zeros_like(x) if is_floating(x) else np.zeros(jnp.shape(x), jax.dtypes.float0)


@primitive("custom_linear_solve")
class LinearSolveRule:
    """A y = b.      b_bar = A^-T y_bar,   A's parameters: the cotangent of -(A y), y held, from b_bar

    y_dot = A^-1 (b_dot - A_dot y).
    """

    def forward(e):
        return e.bind(*e.ins), ()

    def backward(e, *bars):
        parts, b = _split(e)
        y_bar = engine.filled(bars, e.outs)[: len(b)]
        programs = e.params["jaxprs"]
        transposed = programs.transpose_solve
        if transposed is None:
            raise NoPrimitiveRuleError(f"custom_linear_solve at {e.place} was given no transpose_solve")
        b_bar = jax.core.eval_jaxpr(transposed.jaxpr, transposed.consts, *parts.transpose_solve, *y_bar)[: len(b)]
        wanted = e.wanted[: len(parts.matvec)]
        params_bar = [None] * len(parts.matvec)
        if any(wanted):
            program, y = programs.matvec, e.outs[: len(b)]
            flags = [*wanted, *[False] * len(y)]
            _, tape = engine.forward(program.jaxpr, program.consts, [*parts.matvec, *y], flags)
            params_bar = engine.backward(program.jaxpr, tape, [-bar for bar in b_bar], flags)[: len(wanted)]
        others = len(e.ins) - len(parts.matvec) - len(b)
        return [*params_bar, *[None] * others, *b_bar]

    def pushforward(e, *dots):
        parts, b = _split(e)
        outs, programs = e.bind(*e.ins), e.params["jaxprs"]
        y, params_dot, b_dot = outs[: len(b)], dots[: len(parts.matvec)], dots[len(e.ins) - len(b) :]
        b_dot = [jnp.zeros_like(x) if dot is None else dot for x, dot in zip(b, b_dot, strict=True)]
        if any(dot is not None for dot in params_dot):
            program = programs.matvec
            _, moved = tangents.walk(
                program.jaxpr, program.consts, [*parts.matvec, *y], [*params_dot, *[None] * len(y)]
            )
            b_dot = [dot if m is None else dot - m for dot, m in zip(b_dot, moved, strict=True)]
        solve = programs.solve
        found = jax.core.eval_jaxpr(solve.jaxpr, solve.consts, *parts.solve, *b_dot)[: len(b)]
        return outs, [*found, *[None] * (len(outs) - len(b))]


def _split(e):
    """The operands of each program of a linear solve, and the right-hand side."""
    lengths, parts, at = e.params["const_lengths"], [], 0
    for length in lengths:
        parts.append(e.ins[at : at + length])
        at += length
    return type(lengths)(*parts), e.ins[at:]
