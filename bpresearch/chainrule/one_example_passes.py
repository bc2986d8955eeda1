"""Derivatives that someone wrote, for one example: `custom_jvp`, `custom_vjp` and the rules of layers.

They stay what they are. The author's programs for the batch are walked for one example, backward as well:
there, the cotangent of what an example has of its own is its own, and that of what all share is a sum over
the batch, of which the example's term is taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal, Var
from jax.interpreters import ad
from jaxtyping import PyTree

from bpresearch.chainrule import engine
from bpresearch.chainrule.example_axis import TERM, ExamplesMeet
from bpresearch.chainrule.one_example import MIX, Held, Mixed, OneExample, Own, Shared
from bpresearch.chainrule.one_example_inner import (
    Noted,
    as_kinds,
    enters,
    kinds_of,
    values_of,
    with_values,
)
from bpresearch.chainrule.primitives import LAYER, Value, is_floating
from bpresearch.chainrule.whole import layer_p
from bpresearch.jaxprs import body

OURS = "bpresearch.chainrule.rules."
"""Rules from here are those of their layer at any number of examples."""


def types_of(variables: Sequence[Var | Literal]) -> list[jax.ShapeDtypeStruct]:
    """Shapes and types of the batch's values."""
    return [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in variables]


def nothing(y: Value) -> Value:
    """The tangent or cotangent zero."""
    return jnp.zeros_like(y) if is_floating(y) else np.zeros(jnp.shape(y), jax.dtypes.float0)


def first_mixed(ins: Sequence[Held]) -> Mixed | None:
    return next((x for x in ins if isinstance(x, Mixed)), None)


@enters("custom_jvp_call")
def custom_jvp(walk, eqn, ins):
    """y_dot = L(x) x_dot by the author's rule: tangents are cut as what they are of."""
    if mixed := first_mixed(ins):
        return [mixed] * len(eqn.outvars)
    p, (jaxpr, consts), count = eqn.params, body(eqn.params), eqn.params.get("num_consts", 0)
    run = Noted(lambda held: walk.run(jaxpr, consts, held))

    @jax.custom_jvp
    def of_example(number, *values):
        run.function = lambda held: replace(walk, number=number).run(jaxpr, consts, held)
        return run(ins, values)

    @of_example.defjvp
    def tangent(primals, dots):
        (number, *values), (_, *dots) = primals, dots
        program, consts, zeros = p["jvp_jaxpr_fun"].call_wrapped(*[False] * (len(ins) - count))
        held = [*with_values(ins, values)[count:], *with_values(ins, dots)[count:]]
        numbered = replace(walk, number=number)
        outs, kinds = numbered.run(program, consts, held), run.kinds
        ys, moved = as_kinds(numbered, outs[: len(zeros)], kinds), iter(outs[len(zeros) :])
        y_dots = [Shared(None) if zero else next(moved) for zero in zeros]
        return ys, [
            None if y is None else nothing(y) if zero else as_kinds(numbered, [dot], [kind])[0]
            for y, dot, kind, zero in zip(ys, y_dots, kinds, zeros, strict=True)
        ]

    values = of_example(walk.number, *values_of(ins))
    return with_values(run.kinds, values)


@enters("custom_vjp_call", "custom_vjp_call_jaxpr")
def custom_vjp(walk, eqn, ins):
    """x_bar = bwd(what fwd kept, y_bar), both by the author."""
    if mixed := first_mixed(ins):
        return [mixed] * len(eqn.outvars)
    p, (jaxpr, consts), count = eqn.params, body(eqn.params), eqn.params.get("num_consts", 0)
    run = Noted(lambda held: walk.run(jaxpr, consts, held))
    residual_kinds: list[tuple[Held, jax.ShapeDtypeStruct]] = []  # kinds, and the batch's types

    @jax.custom_vjp
    def of_example(number, *values):
        run.function = lambda held: replace(walk, number=number).run(jaxpr, consts, held)
        return run(ins, values)

    def forward(number, *values):
        held = with_values(ins, values)[count:]
        program, consts = p["fwd_jaxpr_thunk"].call_wrapped(*[True] * len(held))
        outs = replace(walk, number=number).run(program, consts, held)
        _, residuals, *forwarded = p["out_trees"]()
        forwarded = forwarded[0] if forwarded else [None] * residuals.num_leaves
        own = iter(zip(outs, types_of(program.outvars), strict=True))
        given = list(zip(held, types_of(eqn.invars[count:]), strict=True))
        pairs = [next(own) if i is None else given[i] for i in forwarded]
        residual_kinds[:] = [(kinds_of([x])[0], type_) for x, type_ in pairs]
        results = [y for y, _ in own]
        run.kinds = kinds_of(results)
        return values_of(results), (number, values, [x.value for x, _ in pairs])

    def bwd(residuals, bars):
        zeros = [ad.Zero(v.aval.to_tangent_aval()) for v in eqn.outvars]
        bars = [zero if bar is None else bar for bar, zero in zip(bars, zeros, strict=True)]
        cotangents = p["bwd"].call_wrapped(*residuals, *bars)
        cotangents = cotangents[0] if isinstance(cotangents, tuple) else cotangents
        return [None if isinstance(bar, ad.Zero) or not is_floating(bar) else bar for bar in cotangents]

    def backward(kept_values, bars):
        number, values, residuals = kept_values
        held, types = with_values([x for x, _ in residual_kinds], residuals), [t for _, t in residual_kinds]
        numbered, outs = replace(walk, number=number), (eqn, run.kinds)
        cotangents = way_back(numbered, bwd, (held, types), outs, bars, ins[count:])
        cotangents = [
            nothing(x) if bar is None else bar for x, bar in zip(values[count:], cotangents, strict=True)
        ]
        return nothing(number), *map(nothing, values[:count]), *cotangents

    of_example.defvjp(forward, backward)
    values = of_example(walk.number, *values_of(ins))
    return with_values(run.kinds, values)


def way_back(
    walk: OneExample,
    backward: Callable[[PyTree, PyTree], list[Value | None]],
    residuals: tuple[Sequence[Held], Sequence[jax.ShapeDtypeStruct]],
    outs: tuple[JaxprEqn, Sequence[Held]],
    bars: Sequence[Value | None],
    ins: Sequence[Held],
) -> list[Value | None]:
    """Someone's backward pass of the batch, `(residuals, bars) -> bars of the operands`, for one example.

    Args:
        residuals: what it reads, for one example, and the types of that in the batch.
        outs, bars: the equation, the kinds of its results, and their cotangents.
        ins: kinds of the operands.
    """
    (eqn, kinds), moving = outs, [is_floating(v.aval) for v in outs[0].outvars]
    values, types = residuals
    of_bars = [type_ if f else None for type_, f in zip(types_of(eqn.outvars), moving, strict=True)]
    closed, shapes = jax.make_jaxpr(backward, return_shape=True)(list(types), of_bars)
    held = [
        Own(bar, kind.axis if isinstance(kind, Own) else TERM)
        for bar, kind, f in zip(bars, kinds, moving, strict=True)
        if f
    ]
    back = replace(walk, adds=True)
    cotangents = iter(back.run(closed.jaxpr, closed.consts, [*values, *held]))
    answers: list[Value | None] = []
    for x, shape in zip(ins, shapes, strict=True):
        bar = None if shape is None else next(cotangents)
        if bar is None or (isinstance(x, Shared) and isinstance(bar, Shared)):
            answers.append(None if bar is None else bar.value)
        else:
            try:
                answers.append(back.part(bar, x.axis if isinstance(x, Own) else TERM))
            except ExamplesMeet as error:
                e = engine.equation(eqn, (), {})
                raise ValueError(MIX.format(f"the backward pass of {e.name} at {e.place}")) from error
    return answers


@enters(LAYER)
def layer(walk, eqn, ins):
    """A layer stays one, with its rule.

    Where its values are others for one example alone, because it draws random numbers, it is opened. So much
    is known of the rules of this package; of any other, forward and backward are walked.
    """
    call = eqn.params["call"]
    if mixed := first_mixed(ins):
        return [mixed] * len(eqn.outvars)
    values = jax.make_jaxpr(lambda *operands: call.forward(call.rule, *operands)[0])(*types_of(eqn.invars))
    trial = replace(walk, cuts=False)
    run = Noted(lambda held: trial.run(values.jaxpr, values.consts, held))
    jax.eval_shape(lambda values: run(ins, values), values_of(ins))
    kinds = [said_of(call, kind) for kind in run.kinds]
    if any(isinstance(kind, Mixed) for kind, is_output in zip(kinds, call.answers, strict=True) if is_output):
        return kinds
    if not call.rule.__module__.startswith(OURS):
        outs = layer_p.bind(*values_of(ins), walk.number, call=walked(walk, eqn, ins, values, kinds))
    elif trial.cuts:
        opened = jax.make_jaxpr(call.apply)(*types_of(eqn.invars))
        outs = as_kinds(walk, walk.run(opened.jaxpr, opened.consts, ins), kinds)
    else:
        results = tuple(jax.eval_shape(call.apply, *values_of(ins)))
        outs = layer_p.bind(*values_of(ins), call=replace(call, results=results))
    return with_values(kinds, outs)


def said_of(call, kind: Held) -> Held:
    """What a layer mixes is said of the layer."""
    if not isinstance(kind, Mixed) or MIX.split("{}")[1] not in kind.reason:
        return kind
    of_flax = "nnx." * type(call.layer).__module__.startswith("flax.nnx")
    hint = "; set use_running_average=True" * (call.name == "BatchNorm")
    return Mixed(MIX.format(f"{of_flax}{call.name} at {call.path or 'the model itself'}") + hint)


def walked(walk, eqn, ins, values, kinds):
    """The call of a layer whose two passes are those of the batch, walked for one example.

    The number of the example is one more operand.
    """
    call, types, count = eqn.params["call"], types_of(eqn.invars), len(eqn.outvars)
    residual_kinds: list[tuple[Held, jax.ShapeDtypeStruct]] = []
    structures: list[jax.tree_util.PyTreeDef] = []

    def results(numbered, outs):
        nothings = [jnp.zeros(t.shape, t.dtype) for t in types_of(eqn.outvars)]
        values = as_kinds(numbered, outs, kinds)
        return [zero if y is None else y for y, zero in zip(values, nothings, strict=True)]

    def apply(*operands):
        numbered = replace(walk, number=operands[-1])
        return results(numbered, numbered.run(values.jaxpr, values.consts, with_values(ins, operands[:-1])))

    def forward(rule, *operands):
        numbered = replace(walk, number=operands[-1])
        traced = jax.make_jaxpr(lambda *x: call.forward(rule, *x), return_shape=True)
        closed, (_, residuals) = traced(*types)
        outs = numbered.run(closed.jaxpr, closed.consts, with_values(ins, operands[:-1]))
        structures[:] = [jax.tree.structure(residuals)]
        residual_kinds[:] = zip(kinds_of(outs[count:]), jax.tree.leaves(residuals), strict=True)
        return results(numbered, outs[:count]), values_of(outs[count:])

    def backward(rule, operands, residuals, bars):
        def program(values, bars):
            operands, residuals = values[: len(ins)], structures[0].unflatten(values[len(ins) :])
            return call.backward(rule, operands, residuals, bars)

        held = with_values([*ins, *(kind for kind, _ in residual_kinds)], [*operands[:-1], *residuals])
        numbered, outs = replace(walk, number=operands[-1]), (eqn, kinds)
        residuals_held = held, [*types, *(t for _, t in residual_kinds)]
        cotangents = way_back(numbered, program, residuals_held, outs, bars, ins)
        return [*cotangents, None]

    made = replace(call, apply=apply, forward=forward, backward=backward, moving=(*call.moving, False))
    return replace(made, results=tuple(jax.eval_shape(apply, *values_of(ins), walk.number)))
