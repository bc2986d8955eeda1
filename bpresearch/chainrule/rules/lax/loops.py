"""Loops: back-propagation through time (Werbos 1990), once for every recurrence.

    carry_t, y_t = f(consts, carry_{t-1}, x_t)

    (consts_bar at t, (carry_{t-1})_bar, (x_t)_bar) = backward of f at t, from ((carry_t)_bar, (y_t)_bar)

The cotangent of the carry is a recursion from the last step to the first; that of a constant is a sum over
all steps. So the backward pass of a scan is a scan in the other direction.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Var

from bpresearch.chainrule import engine, tangents
from bpresearch.chainrule.halves import depending, halves, run
from bpresearch.chainrule.primitives import Static, is_floating, primitive, zeros
from bpresearch.chainrule.sums import step_by_step
from bpresearch.jaxprs import sizes, while_loop


def carried(params, flags):
    """Flags of a body's operands and results: a carry depends on what it becomes dependent on in any step."""
    a, b = sizes(params)
    body, flags = params["jaxpr"].jaxpr, list(flags)
    while True:
        on = engine.dependent(body, flags)
        out = [isinstance(v, Var) and v in on for v in body.outvars]
        grown = [f or o for f, o in zip(flags[a:b], out, strict=False)]
        if grown == flags[a:b]:
            return flags, [*grown, *out[b - a :]]
        flags[a:b] = grown


def live_results(params, wanted, live):
    """Which results of the body have a cotangent: a carry has one if anything that is live comes of it
    later.
    """
    a, b = sizes(params)
    body, live = params["jaxpr"].jaxpr, list(live)
    while True:
        on = engine.passed(body, wanted, live)
        grown = [f or v in on for f, v in zip(live[: b - a], body.invars[a:b], strict=True)]
        if grown == live[: b - a]:
            return live
        live[: b - a] = grown


def slice_types(xs):
    """Types of one step's slices."""
    return [jax.eval_shape(lambda x: x[0], x) for x in xs]


@primitive("scan")
class ScanRule:
    """See above. What does not change from step to step is stored once, all else that is needed for each
    step.
    """

    def flow(params, flags):
        return carried(params, flags)[1]

    def forward(e):
        p, (a, b) = e.params, sizes(e.params)
        if p["length"] == 0:
            return e.bind(*e.ins), None
        consts, init, xs = e.ins[:a], e.ins[a:b], e.ins[b:]
        wanted, depends = carried(p, e.wanted)
        live = live_results(p, wanted, [f and g for f, g in zip(e.live, depends, strict=True)])
        types = [*consts, *init, *slice_types(xs)]
        two, of_trace = halves(p["jaxpr"], wanted, types, live, [i >= b - a for i in range(len(live))])
        moves = depending(two.jaxpr, [i >= a for i in range(len(e.ins))])
        fixed = [v for v in two.extras if v not in moves]
        stored = [v for v in two.extras if v in moves]
        # A carry that backward reads is stored at each step, as it comes in.
        read = sorted({i for kind, i in two.places if kind == "operand" and a <= i < b})

        def step(carry, slices):
            results, values = two.forward(of_trace, [*consts, *carry, *slices], stored)
            return results[: b - a], (results[b - a :], values, [carry[i - a] for i in read])

        carry, (ys, values, carries) = lax.scan(
            step, list(init), list(xs), length=p["length"], reverse=p["reverse"], unroll=p["unroll"]
        )
        hoisted = run(two.jaxpr, of_trace, [*consts, *[None] * (len(e.ins) - a)], fixed, effects=False)
        static = Static((two, live, fixed, stored, read))
        return [*carry, *ys], (static, of_trace, hoisted, values, carries)

    def backward(e, *bars):
        p, (a, b) = e.params, sizes(e.params)
        if p["length"] == 0:  # the carries are handed on
            return [*[None] * a, *bars[: b - a], *[None] * (len(e.ins) - b)]
        static, of_trace, hoisted, values, carries = e.kept
        two, live, fixed, stored, read = static.value
        wanted, consts = two.wanted, e.ins[:a]
        bars = engine.filled_where(live, bars, e.outs)
        carry_bar, ys_bar = bars[: b - a], bars[b - a :]
        given = [*wanted[:a], *live[: b - a], *wanted[b:]]
        of_fixed = dict(zip(fixed, hoisted, strict=True))

        def step(carry_bar, slices):
            xs, ys, values, carries, ys_bar = slices
            carry = dict(zip(read, carries, strict=True))
            operands = [*consts, *(carry.get(i) for i in range(a, b)), *xs]
            there = of_fixed | dict(zip(stored, values, strict=True))
            extras = [there[v] for v in two.extras]
            cotangents = two.backward(
                of_trace, operands, [*[None] * (b - a), *ys], extras, [*carry_bar, *ys_bar]
            )
            cotangents = [
                zeros(v.aval) if flag and bar is None else bar if flag else None
                for bar, v, flag in zip(cotangents, two.program.jaxpr.invars, given, strict=True)
            ]
            return cotangents[a:b], cotangents[:a], cotangents[b:]

        used = {i for kind, i in two.places if kind == "operand"}
        results = {i for kind, i in two.places if kind == "result"}
        xs = [x if i in used else None for i, x in enumerate(e.ins[b:], start=b)]
        ys = [y if i in results else None for i, y in enumerate(e.outs[b - a :], start=b - a)]
        carry_bar, consts_bar, xs_bar = step_by_step(
            step,
            carry_bar,
            (xs, ys, values, carries, ys_bar),
            length=p["length"],
            reverse=not p["reverse"],
            unroll=p["unroll"],
        )
        return [*consts_bar, *carry_bar, *xs_bar]

    def pushforward(e, *dots):
        p, (a, b) = e.params, sizes(e.params)
        body, moving = p["jaxpr"], [dot is not None for dot in dots]
        moving, _ = carried(p, moving)
        consts, init, xs = e.ins[:a], e.ins[a:b], e.ins[b:]
        init_dot = [
            (jnp.zeros_like(x) if dot is None else dot) if flag else None
            for x, dot, flag in zip(init, dots[a:b], moving[a:b], strict=True)
        ]

        def step(loop, slices):
            (carry, carry_dot), (xs, xs_dot) = loop, slices
            outs, out_dots = tangents.walk(
                body.jaxpr, body.consts, [*consts, *carry, *xs], [*dots[:a], *carry_dot, *xs_dot]
            )
            carry_dot = [
                (jnp.zeros_like(y) if dot is None else dot) if flag else None
                for y, dot, flag in zip(outs, out_dots, moving[a:b], strict=False)
            ]
            return (outs[: b - a], carry_dot), (outs[b - a :], out_dots[b - a :])

        (carry, carry_dot), (ys, ys_dot) = lax.scan(
            step,
            (list(init), init_dot),
            (list(xs), list(dots[b:])),
            length=p["length"],
            reverse=p["reverse"],
            unroll=p["unroll"],
        )
        return [*carry, *ys], [*carry_dot, *ys_dot]


@primitive("while")
class WhileRule:
    """carry <- f(consts, carry) while a condition holds: tangents go along; backward would need every carry.

    The number of steps is not known beforehand, so there is no array to keep the carries in. JAX refuses it,
    too.
    """

    def flow(params, flags):
        return _carried_by_while(params, flags)

    def forward(e):
        raise engine.NoPrimitiveRuleError(
            f"while at {e.place} has no backward pass: the number of its steps is not known beforehand; "
            "a scan has one, and so has a fori_loop that is given the number of steps as a Python int"
        )

    def backward(e, *bars):
        raise AssertionError("forward has refused")

    def pushforward(e, *dots):
        p = e.params
        a, b = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        cond, body = p["cond_jaxpr"], p["body_jaxpr"]
        of_cond, of_body, init = e.ins[:a], e.ins[a:b], e.ins[b:]
        moving = _carried_by_while(p, [dot is not None for dot in dots])
        init_dot = [
            (jnp.zeros_like(x) if dot is None else dot) if flag and is_floating(x) else None
            for x, dot, flag in zip(init, dots[b:], moving, strict=True)
        ]

        def goes_on(loop):
            return jax.core.eval_jaxpr(cond.jaxpr, cond.consts, *of_cond, *loop[0])[0]

        def step(loop):
            carry, carry_dot = loop
            outs, out_dots = tangents.walk(
                body.jaxpr, body.consts, [*of_body, *carry], [*dots[a:b], *carry_dot]
            )
            return outs, [
                None if before is None else jnp.zeros_like(y) if dot is None else dot
                for y, dot, before in zip(outs, out_dots, carry_dot, strict=True)
            ]

        return while_loop(goes_on, step, (list(init), init_dot))


def _carried_by_while(params, flags):
    a, b = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    body, flags = params["body_jaxpr"].jaxpr, list(flags[a:])
    while True:
        on = engine.dependent(body, flags)
        grown = [
            f or (isinstance(v, Var) and v in on) for f, v in zip(flags[b - a :], body.outvars, strict=True)
        ]
        if grown == flags[b - a :]:
            return grown
        flags[b - a :] = grown
