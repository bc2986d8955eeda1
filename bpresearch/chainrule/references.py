"""Mutable references (`jax.new_ref`): a program that has them becomes one of values alone.

    r = new_ref(x)   is the value x;      r[i]   is x[i];      r[i] = y   makes the value x.at[i].set(y)

What a reference holds at each moment is one value, so a loop that writes to it carries that value, a branch
returns it, and the rules for reading and writing elements of arrays give the derivative.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import source_info_util
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from bpresearch.chainrule import engine
from bpresearch.chainrule.primitives import Equation, NoPrimitiveRuleError, Value
from bpresearch.jaxprs import CALLS, body, sizes

OPERATIONS = ("new_ref", "empty_ref", "free_ref", "freeze", "get", "swap", "addupdate")


def is_reference(v: Any) -> bool:
    """Whether a variable or a value is a mutable reference."""
    return isinstance(jax.typeof(v) if isinstance(v, jax.Ref) else v.aval, jax.ref.AbstractRef)


def has_references(jaxpr: Jaxpr) -> bool:
    """Whether a program, or one inside it, makes, reads or writes a reference."""
    return any(
        eqn.primitive.name in OPERATIONS or any(map(has_references, jaxprs_in_params(eqn.params)))
        for eqn in jaxpr.eqns
    )


def of_values(jaxpr: Jaxpr, consts: Sequence[Value]) -> Callable[..., list[Value]]:
    """The program's results as a function of its arguments, without references.

    Raises:
        NoPrimitiveRuleError: when it is called, and a reference was made outside of the program, or is used
            by a kind of inner program that is not known.
    """
    return lambda *args: _run(jaxpr, consts, args)[0]


def _run(jaxpr: Jaxpr, consts: Sequence[Value], args: Sequence[Value]) -> tuple[list[Value], list[Value]]:
    """Results, and what the references among the arguments hold in the end; each is given as its value."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    for eqn in jaxpr.eqns:
        e = engine.equation(eqn, [engine.read(v, values) for v in eqn.invars], set())
        source = eqn.source_info
        with source_info_util.user_context(source.traceback, name_stack=source.name_stack):
            outs, held = _evaluated(eqn, e)
        values.update(zip(eqn.outvars, outs, strict=True))
        values.update(zip(filter(is_reference, eqn.invars), held, strict=True))
    return [engine.read(v, values) for v in jaxpr.outvars], [
        values[v] for v in jaxpr.invars if is_reference(v)
    ]


def _evaluated(eqn: JaxprEqn, e: Equation) -> tuple[Sequence[Value], Sequence[Value]]:
    """The results of an equation, and what the references among its operands hold after it."""
    if any(isinstance(x, jax.Ref) for x in e.ins):
        raise NoPrimitiveRuleError(
            f"{e.name} at {e.place} changes a reference that was made outside of what is differentiated; "
            "make it inside, or return the value"
        )
    name, params = e.name, e.params
    if name == "new_ref":
        return e.ins, ()
    if name == "empty_ref":
        return [jnp.zeros(v.aval.shape, v.aval.dtype) for v in eqn.outvars], ()
    if name in ("freeze", "free_ref"):
        return list(e.ins)[: len(eqn.outvars)], e.ins
    if name == "get":
        return [e.ins[0][_index(e, e.ins[1:])]], e.ins[:1]
    if name in ("swap", "addupdate"):
        x, y, *indices = e.ins
        at = x.at[_index(e, indices)]
        return ([x[_index(e, indices)]], [at.set(y)]) if name == "swap" else ([], [at.add(y)])
    if not any(map(is_reference, eqn.invars)) and not any(map(has_references, jaxprs_in_params(params))):
        return e.bind(*e.ins), ()
    if name in CALLS:
        return _run(*body(params), e.ins)
    if name in ("remat2", "checkpoint", "remat"):
        options = {"prevent_cse": params["prevent_cse"], "policy": params["policy"]}
        return jax.checkpoint(lambda *ins: _run(params["jaxpr"], (), ins), **options)(*e.ins)
    if name == "cond":
        runs = [partial(_run, branch.jaxpr, branch.consts) for branch in params["branches"]]
        return lax.switch(e.ins[0], runs, e.ins[1:])
    if name == "scan" and not any(map(is_reference, eqn.invars[sizes(params)[0] :])):
        return _scanned(eqn, e)
    raise NoPrimitiveRuleError(f"{name} at {e.place} uses a mutable reference; let it return a value")


def _scanned(eqn: JaxprEqn, e: Equation) -> tuple[list[Value], list[Value]]:
    """A loop whose body uses references among its constants: what they hold is carried."""
    p, (a, b) = e.params, sizes(e.params)
    consts, init, xs = e.ins[:a], e.ins[a:b], e.ins[b:]
    places = [i for i in range(a) if is_reference(eqn.invars[i])]

    def step(loop, slices):
        carry, held = loop
        given = dict(enumerate(consts)) | dict(zip(places, held, strict=True))
        outs, held = _run(p["jaxpr"].jaxpr, p["jaxpr"].consts, [*given.values(), *carry, *slices])
        return (outs[: b - a], held), outs[b - a :]

    options = {name: p[name] for name in ("length", "reverse", "unroll")}
    (carry, held), ys = lax.scan(step, (list(init), [consts[i] for i in places]), list(xs), **options)
    return [*carry, *ys], held


def _index(e: Equation, indices: Sequence[Value]) -> Any:
    """What `x[...]` takes, from the indexers of an equation; arrays of indices come before slices."""
    indexers = jax.tree.unflatten(e.params["tree"], indices)
    if not indexers:
        return ...
    if len(indexers) > 1 or not hasattr(indexers[0], "int_indexer_shape"):
        raise NoPrimitiveRuleError(f"{e.name} at {e.place} uses a view of a mutable reference; index it once")
    parts, shape = indexers[0].indices, indexers[0].int_indexer_shape
    if not shape and all(isinstance(getattr(part, "start", 0), int) for part in parts):
        return tuple(
            slice(part.start, part.start + part.size * part.stride, part.stride) if _is_slice(part) else part
            for part in parts
        )
    slices = [i for i, part in enumerate(parts) if _is_slice(part)]
    grid = []
    for i, part in enumerate(parts):
        if _is_slice(part):
            along = [-1 if i == j else 1 for j in slices]
            grid.append((part.start + part.stride * jnp.arange(part.size)).reshape(*[1] * len(shape), *along))
        else:
            grid.append(jnp.broadcast_to(part, shape).reshape(*shape, *[1] * len(slices)))
    return tuple(jnp.broadcast_arrays(*grid))


def _is_slice(part: Any) -> bool:
    return hasattr(part, "stride")
