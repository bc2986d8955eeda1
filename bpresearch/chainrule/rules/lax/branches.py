"""Branches: the derivative of the one that was taken.

    y = f_i(x),     x_bar = backward of f_i,     y_dot = tangent of f_i

The index i has no derivative. Each branch stores values of its own, so what is stored is the list of all of
them, zeros for those that were not taken.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Var

from bpresearch.chainrule import engine, tangents
from bpresearch.chainrule.halves import halves
from bpresearch.chainrule.notes import collecting, none_yet, note_all
from bpresearch.chainrule.primitives import Static, is_floating, primitive, zeros


@primitive("cond")
class CondRule:
    """See above; `lax.switch` and `nnx.cond` are the same primitive."""

    def flow(params, flags):
        each = []
        for branch in params["branches"]:
            on = engine.dependent(branch.jaxpr, flags[1:])
            each.append([isinstance(v, Var) and v in on for v in branch.jaxpr.outvars])
        return [any(column) for column in zip(*each, strict=True)]

    def forward(e):
        index, *operands = e.ins
        depends = CondRule.flow(e.params, e.wanted)
        live = [f and g for f, g in zip(e.live, depends, strict=True)]
        cut = [halves(branch, e.wanted[1:], operands, live) for branch in e.params["branches"]]
        none = [[zeros(v.aval) for v in two.extras] for two, _ in cut]

        def branch(i):
            two, of_trace = cut[i]

            def run(*operands):
                results, extras = two.forward(of_trace, operands, two.extras)
                return results, [extras if j == i else nothing for j, nothing in enumerate(none)]

            return run

        results, extras = lax.switch(index, [branch(i) for i in range(len(cut))], *operands)
        static = Static(([two for two, _ in cut], live))
        return results, (static, [of_trace for _, of_trace in cut], extras)

    def backward(e, *bars):
        index, *operands = e.ins
        static, of_traces, extras = e.kept
        cut, live = static.value
        bars = engine.filled_where(live, bars, e.outs)
        wanted = e.wanted[1:]

        def branch(i):
            def run(bars):
                with collecting() as notes:
                    cotangents = cut[i].backward(of_traces[i], operands, e.outs, extras[i], bars)
                return [
                    (jnp.zeros_like(x) if bar is None else bar) if flag else None
                    for x, bar, flag in zip(operands, cotangents, wanted, strict=True)
                ], notes

            return run

        notes = [jax.eval_shape(branch(i), bars)[1] for i in range(len(cut))]
        every = {about: what for branch_notes in notes for about, what in branch_notes.items()}

        def with_all_notes(run):
            def noted(bars):
                cotangents, notes = run(bars)
                return cotangents, {**none_yet(every), **notes}

            return noted

        cotangents, notes = lax.switch(index, [with_all_notes(branch(i)) for i in range(len(cut))], bars)
        note_all(notes)
        return [None, *cotangents]

    def pushforward(e, *dots):
        index, *operands = e.ins
        live = CondRule.flow(e.params, [dot is not None for dot in dots])

        def branch(closed):
            def run(operands, dots):
                outs, out_dots = tangents.walk(closed.jaxpr, closed.consts, operands, dots)
                return outs, [
                    (jnp.zeros_like(y) if dot is None else dot) if flag and is_floating(y) else None
                    for y, dot, flag in zip(outs, out_dots, live, strict=True)
                ]

            return run

        branches = [branch(closed) for closed in e.params["branches"]]
        return lax.switch(index, branches, list(operands), list(dots[1:]))
