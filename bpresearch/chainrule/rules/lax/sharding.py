"""One program on many devices: `shard_map`, whose body each device runs on its own part of the operands.

    y = f(x) on each device,     x_bar = backward of f on each device

A part that several devices hold, because a spec does not mention an axis of the mesh, is one value. Its
cotangent is a sum over those devices. Where JAX checks which values vary over which axes (`check_vma`), the
body says itself where a value is handed to all devices, and the rule of that primitive (`pvary`) sums. Where
it does not check, over the axes m that a spec does not mention,

    y_bar on each device = y_bar / |m|,     x_bar = sum over m of x_bar on each device.

What backward reads is stored with a leading axis, along which lie the devices that hold different values.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr
from jax.sharding import PartitionSpec as P

from bpresearch.chainrule import engine, tangents
from bpresearch.chainrule.halves import halves
from bpresearch.chainrule.notes import collecting, note_all
from bpresearch.chainrule.primitives import Static, primitive, zeros
from bpresearch.chainrule.rules.lax.inner_calls import flow_of


@primitive("shard_map")
class ShardMapRule:
    """See above."""

    def flow(params, flags):
        return flow_of(params["jaxpr"], flags)

    def forward(e):
        p, depends = e.params, flow_of(e.params["jaxpr"], e.wanted)
        live = [f and g for f, g in zip(e.live, depends, strict=True)]
        cut = []

        def learn(*operands):  # types of values are those of a device, so the program is cut in two on one
            two, of_trace = halves(ClosedJaxpr(p["jaxpr"], ()), e.wanted, operands, live)
            cut.append((two, of_trace, [along(v.aval, p) for v in two.extras]))
            return ()

        jax.eval_shape(on_devices(learn, p, p["in_specs"], ()), *e.ins)
        ((two, of_trace, specs),) = cut

        def body(*operands):
            results, extras = two.forward(of_trace, operands, two.extras)
            return results, [jnp.expand_dims(x, 0) for x in extras]

        run = on_devices(body, p, p["in_specs"], (list(p["out_specs"]), specs))
        results, extras = run(*e.ins)
        return results, (Static((two, live, specs)), of_trace, extras)

    def backward(e, *bars):
        p = e.params
        static, of_trace, extras = e.kept
        two, live, extra_specs = static.value
        bars = engine.filled_where(live, bars, e.outs)
        used = {kind: [i for k, i in two.places if k == kind] for kind in ("operand", "result")}
        ins, in_specs = chosen(e.ins, p["in_specs"], used["operand"])
        outs, out_specs = chosen(e.outs, p["out_specs"], used["result"])
        bar_specs = [s.to_ct_spec() if f else None for s, f in zip(p["out_specs"], live, strict=True)]
        cotangent_specs = [
            s.to_ct_spec() if w else None for s, w in zip(p["in_specs"], e.wanted, strict=True)
        ]

        def body(ins, outs, extras, bars):
            extras = [jnp.squeeze(x, 0) for x in extras]
            if not p["check_vma"]:
                bars = [
                    shared(bar, unmentioned(s, p), p) for bar, s in zip(bars, p["out_specs"], strict=True)
                ]
            with collecting() as notes:
                cotangents = two.backward(of_trace, ins, outs, extras, bars)
            cotangents = [
                (zeros(v.aval) if bar is None else bar) if w else None
                for v, bar, w in zip(p["jaxpr"].invars, cotangents, e.wanted, strict=True)
            ]
            if not p["check_vma"]:
                cotangents = [
                    summed(bar, unmentioned(s, p)) for bar, s in zip(cotangents, p["in_specs"], strict=True)
                ]
            return cotangents, jax.tree.map(lambda x: jnp.expand_dims(x, 0), notes)

        taken = in_specs, out_specs, extra_specs, bar_specs
        run = on_devices(body, p, taken, (cotangent_specs, P(axes(p))))
        cotangents, notes = run(ins, outs, extras, bars)
        note_all({about: worst_of(*several) for about, several in notes.items()})
        return cotangents

    def pushforward(e, *dots):
        p, moving = e.params, [dot is not None for dot in dots]
        live = flow_of(p["jaxpr"], moving)
        dot_specs = [s.to_tangent_spec() if m else None for s, m in zip(p["in_specs"], moving, strict=True)]
        moved_specs = [s.to_tangent_spec() if m else None for s, m in zip(p["out_specs"], live, strict=True)]

        def body(ins, dots):
            outs, out_dots = tangents.walk(p["jaxpr"], (), ins, dots)
            return outs, [
                (jnp.zeros_like(y) if dot is None else dot) if flag else None
                for y, dot, flag in zip(outs, out_dots, live, strict=True)
            ]

        run = on_devices(body, p, (list(p["in_specs"]), dot_specs), (list(p["out_specs"]), moved_specs))
        return run(list(e.ins), list(dots))


def on_devices(body, p, in_specs, out_specs):
    """A function as each device runs it, on the same mesh as the equation with parameters p."""
    return jax.shard_map(
        body,
        mesh=p["mesh"],
        in_specs=tuple(in_specs),
        out_specs=out_specs,
        axis_names=set(p["newly_manual_axes"]),
        check_vma=p["check_vma"],
    )


def axes(p):
    """The axes of the mesh over which the body is spread, in the order of the mesh."""
    return tuple(name for name in p["mesh"].axis_names if name in p["newly_manual_axes"])


def along(aval, p):
    """The spec of a stored value: its leading axis lies along the axes of the mesh over which it varies."""
    varying = aval.manual_axis_type.varying if p["check_vma"] else axes(p)
    return P(tuple(name for name in axes(p) if name in varying) or None)


def unmentioned(spec, p):
    """The axes of the mesh along which a spec keeps copies."""
    mentioned = {name for part in spec for name in (part if isinstance(part, tuple) else (part,))}
    return tuple(name for name in axes(p) if name not in mentioned | spec.unreduced)


def shared(y_bar, names, p):
    """Each device's share of the cotangent of a value that all devices along these axes hold."""
    copies = math.prod(p["mesh"].shape[name] for name in names)
    return y_bar if y_bar is None or copies == 1 else y_bar / copies


def summed(x_bar, names):
    """The sum over the devices along these axes."""
    return x_bar if x_bar is None or not names else lax.psum(x_bar, names)


def chosen(values, specs, indices):
    """Values and specs at some places, None at the others."""
    pairs = enumerate(zip(values, specs, strict=True))
    selection = [(x, spec) if i in indices else (None, None) for i, (x, spec) in pairs]
    return [x for x, _ in selection], [spec for _, spec in selection]


def worst_of(errors, whats):
    """Of the notes of all devices that with the largest error."""
    worst = jnp.argmax(errors)
    return errors[worst], jax.tree.map(lambda x: x[worst], whats)
