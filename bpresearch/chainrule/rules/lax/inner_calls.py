"""Programs inside an equation that are walked where they stand: `jit`, `remat`, derivatives that a user
wrote.

* A call is its body: forward and backward go through it.
* `remat` keeps its operands and what its policy names, and goes forward once more before it goes backward
  (Chen et al. 2016).
* `custom_vjp` is differentiated as its author wrote it.
* `custom_jvp` has its author's tangent rule. That rule is a program, linear in the tangents, and backward
walks
  it: y_dot = L(x) x_dot, so x_bar = L(x)^T y_bar.
* The solution of a linear system, A y = b:  b_bar = A^-T y_bar, and A's parameters get the cotangent of
  -A y with y held, from b_bar.
"""

from contextlib import contextmanager
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Var
from jax.interpreters import ad

from bpresearch.chainrule import engine, tangents
from bpresearch.chainrule.halves import depending, run
from bpresearch.chainrule.primitives import LAYER, NoPrimitiveRuleError, Static, is_floating, primitive
from bpresearch.chainrule.staging import closure
from bpresearch.jaxprs import CALLS, body


def flow_of(jaxpr, flags):
    """Which results of a program depend on its flagged operands."""
    on = engine.dependent(jaxpr, flags)
    return [isinstance(v, Var) and v in on for v in jaxpr.outvars]


@primitive(
    *CALLS,
    "custom_vmap_call",
    "eval_jaxpr",
    "composite",
    "xla_metadata_call",
)
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
            if eqn.primitive.name in CALLS:
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
        count, operands = _own(e, e.wanted)
        with _explaining_closures(e):
            fwd, consts = p["fwd_jaxpr_thunk"].call_wrapped(*e.wanted[count:])
            if len(fwd.invars) > len(operands):  # newer versions of JAX have constants among the operands
                consts, operands = (), [*consts, *operands]
            values = jax.core.eval_jaxpr(fwd, consts, *operands)
        _, residuals, *forwarded = p["out_trees"]()
        forwarded = forwarded[0] if forwarded else [None] * residuals.num_leaves
        own = len(values) - len(jaxpr.outvars)
        remaining = iter(values[:own])
        residual_values = [next(remaining) if i is None else e.ins[i] for i in forwarded]
        return values[own:], residual_values

    def backward(e, *bars):
        bars = [
            bar if is_floating(y) else ad.Zero(jax.typeof(y).to_tangent_aval())
            for bar, y in zip(engine.filled(bars, e.outs), e.outs, strict=True)
        ]
        cotangents = e.params["bwd"].call_wrapped(*e.kept, *bars)
        cotangents = cotangents[0] if isinstance(cotangents, tuple) else cotangents
        count = e.params.get("num_consts", 0)
        return [*[None] * count, *(None if isinstance(bar, ad.Zero) else bar for bar in cotangents)]

    def pushforward(e, *dots):
        raise NoPrimitiveRuleError(
            f"a custom_vjp at {e.place} has no tangent: its author wrote the backward pass alone, and JAX "
            "has no forward mode of it either"
        )


@primitive("custom_jvp_call")
class CustomJVPRule:
    """y = f(x).      y_dot = L(x) x_dot as f's author wrote it, and x_bar = L(x)^T y_bar"""

    def flow(params, flags):
        return [True] * len(body(params)[0].outvars)

    def forward(e):
        at, primals = _own(e, e.wanted)
        dots = [jnp.zeros_like(x) if w else None for x, w in zip(primals, e.wanted[at:], strict=True)]
        jaxpr, consts, zeros, operands, moving = _tangent_program(e, primals, dots)
        wanted = [*[False] * (len(operands) - len(moving)), *moving]
        moved = [flag for flag, zero in zip(e.live, zeros, strict=True) if not zero]
        live = [*[False] * len(zeros), *moved]
        with _explaining_closures(e):
            values, tape = engine.forward(jaxpr, consts, operands, wanted, live)
        return values[: len(zeros)], (Static((jaxpr, zeros, wanted, live)), tape)

    def backward(e, *bars):
        static, tape = e.kept
        jaxpr, zeros, wanted, live = static.value
        at, _ = _own(e, e.wanted)
        of_dots = [bar for bar, zero in zip(bars, zeros, strict=True) if not zero]
        cotangents = engine.backward(jaxpr, tape, [*[None] * len(zeros), *of_dots], wanted, live)
        remaining = (bar for bar, w in zip(cotangents, wanted, strict=True) if w)
        return [next(remaining) if w and i >= at else None for i, w in enumerate(e.wanted)]

    def pushforward(e, *dots):
        at, primals = _own(e, [dot is not None for dot in dots])
        jaxpr, consts, zeros, operands, _ = _tangent_program(e, primals, dots[at:])
        with _explaining_closures(e):
            values = jax.core.eval_jaxpr(jaxpr, consts, *operands)
        outs, remaining = values[: len(zeros)], iter(values[len(zeros) :])
        return outs, [None if zero else next(remaining) for zero in zeros]


def _own(e, moving):
    """The number of operands that the call closes over, and the others; only these may be differentiated."""
    count = e.params.get("num_consts", 0)
    if any(moving[:count]):
        raise NoPrimitiveRuleError(closure(e))
    return count, e.ins[count:]


@contextmanager
def _explaining_closures(e):
    """Context in which an author's program may find that a value it closes over was traced, and is gone."""
    try:
        yield
    except jax.errors.UnexpectedTracerError as error:
        raise NoPrimitiveRuleError(closure(e)) from error


def _tangent_program(e, primals, dots):
    """The author's rule as a program, its operands (primals, then tangents), and which tangents are not zero.

    A rule that takes symbolic zeros is not given the others; any other gets zeros of the right type.
    """
    symbolic = e.params["symbolic_zeros"]
    absent = [symbolic and dot is None for dot in dots]
    with _explaining_closures(e):
        jaxpr, consts, zeros = e.params["jvp_jaxpr_fun"].call_wrapped(*absent)
    given = [dot for dot in dots if dot is not None or not symbolic]
    filled = [
        _zero(x) if dot is None else dot
        for x, dot in zip(primals, dots, strict=True)
        if dot is not None or not symbolic
    ]
    operands = [*primals, *filled]
    if len(jaxpr.invars) > len(operands):  # newer versions of JAX have constants among the operands
        consts, operands = [], [*consts, *operands]
    return jaxpr, consts, zeros, operands, [dot is not None for dot in given]


def _zero(x):
    return jnp.zeros_like(x) if is_floating(x) else np.zeros(jnp.shape(x), jax.dtypes.float0)


@primitive("linear_call")
class LinearCallRule:
    """y = A(r) x, with A(r)^T as its author wrote it.      x_bar = A(r)^T y_bar,   y_dot = A(r) x_dot

    What the map depends on, r, has no derivative, as in JAX.
    """

    def backward(e, *bars):
        at, count = e.params["num_callee_consts"], e.params["num_res"]
        if any(e.wanted[: at + count]):
            raise NoPrimitiveRuleError(
                f"linear_call at {e.place} has a derivative in its linear operands alone"
            )
        jaxpr, consts = e.params["transpose_thunk"]()
        cotangents = jax.core.eval_jaxpr(jaxpr, consts, *e.ins[at : at + count], *bars)
        return [*[None] * (at + count), *cotangents]

    def tangent(e, *dots):
        at = e.params["num_callee_consts"] + e.params["num_res"]
        x_dot = [
            jnp.zeros_like(x) if dot is None else dot for x, dot in zip(e.ins[at:], dots[at:], strict=True)
        ]
        return e.bind(*e.ins[:at], *x_dot)


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
        programs, lengths = e.params["jaxprs"], e.params["const_lengths"]
        if programs.transpose_solve is None:
            raise NoPrimitiveRuleError(f"custom_linear_solve at {e.place} was given no transpose_solve")
        # A solution again, and not the program that finds it: that one may hold constant what it uses.
        operands = [x for part in parts.transpose() for x in part]
        params = {**e.params, "jaxprs": programs.transpose(), "const_lengths": lengths.transpose()}
        b_bar = replace(e, params=params).bind(*operands, *y_bar)[: len(b)]
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
        y_dot = e.bind(*e.ins[: len(e.ins) - len(b)], *b_dot)[: len(b)]
        return outs, [*y_dot, *[None] * (len(outs) - len(b))]


def _split(e):
    """The operands of each program of a linear solve, and the right-hand side."""
    lengths, parts, at = e.params["const_lengths"], [], 0
    for length in lengths:
        parts.append(e.ins[at : at + length])
        at += length
    return type(lengths)(*parts), e.ins[at:]
