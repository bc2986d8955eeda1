"""The equations of a model's gradient: which there are, and what JAX says that each one's derivative is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxprs_in_params
from jaxtyping import PyTree

from bpresearch import chainrule
from bpresearch.chainrule.engine import evaluate
from bpresearch.chainrule.notes import collecting
from bpresearch.chainrule.primitives import LAYER, Equation, is_floating
from bpresearch.functional import Loss, split
from bpresearch.jaxprs import CALLS, read

Plant = Callable[[Equation, Any], Any]
"""What `chainrule.replacing` takes: `(equation, rule) -> rule`."""

OPENED = (*CALLS, "composite", "eval_jaxpr", "custom_vmap_call")
"""Equations without a derivative of their own: what they call is looked at instead."""


@dataclass(frozen=True, order=True)
class Label:
    """Where an equation is: the same in every program that is traced from the model.

    Attributes:
        name: of the primitive or the layer's type.
        layer: path of the layer that it is, or is in.
        line: the user's file and line.
        is_layer: whether it is the call of a layer with a rule.
        signature: shapes of its operands, and where derivatives pass.
    """

    name: str
    layer: str
    line: str
    is_layer: bool
    signature: str

    @property
    def where(self) -> str:
        """As reports name it: a layer by its path, anything else by path, file and line."""
        if self.is_layer:
            return self.layer or "model"
        place = ", ".join(filter(None, (self.layer, self.line)))
        return f"{self.name} at {place}" if place else self.name

    def matches(self, place: str) -> bool:
        """Whether `place` names it: a path, a primitive, `path:primitive` or `file.py:line`."""
        return place in (self.where, self.layer, self.name, f"{self.layer}:{self.name}") or (
            ".py:" in place and place in self.line
        )


def label(e: Equation) -> Label:
    """The label of an equation."""
    signature = f"{[jnp.shape(x) for x in e.ins]} {e.wanted} {e.live}"
    is_layer = e.primitive.name == LAYER  # its path tells where it is; the line may be that of whoever asked
    return Label(e.name, e.layer, "" if is_layer else e.line, is_layer, signature)


def equations_of(model: nnx.Module, loss_fn: Loss, x: PyTree, y: PyTree) -> dict[Label, Equation]:
    """Every equation that a cotangent passes, in the order of the forward pass; calls are not among them."""
    graphdef, params, state = split(model)
    equations: dict[Label, Equation] = {}

    def see(e, bars, x_bars):
        if e.primitive.name not in OPENED:
            equations.setdefault(label(e), e)
        return x_bars

    def run(params, state, x, y):
        with chainrule.watching(see), collecting():
            return chainrule.gradient(graphdef, loss_fn, inputs=True)(params, state, (x, y))

    jax.eval_shape(run, params, state, x, y)
    return dict(reversed(equations.items()))


def with_backward(
    rule: Any, backward: Callable[..., PyTree], forward: Callable[..., PyTree] | None = None
) -> Any:
    """The rule with another backward pass, and if given another forward pass."""
    names = ("forward", "flow", "pushforward", "tangent")
    same = {name: getattr(rule, name) for name in names if hasattr(rule, name)}
    return SimpleNamespace(**same | {"backward": backward} | ({"forward": forward} if forward else {}))


def evaluated(e: Equation) -> Equation:
    """An equation with its results, and with what its rule keeps."""
    outs, residuals = evaluate(e)
    return replace(e, outs=tuple(outs), kept=residuals)


def pullback(
    function: Callable[..., PyTree], arguments: PyTree, y_bar: PyTree = None
) -> tuple[PyTree, PyTree]:
    """`function(*arguments)` and the cotangents of `arguments`, by `jax.vjp`; None for what has none.

    `y_bar` has the structure of the output, with None for outputs that are not floating point; without it,
    every output has the cotangent one, which makes the gradient of a scalar.
    """
    leaves, structure = jax.tree.flatten(arguments)
    floating = [is_floating(leaf) for leaf in leaves]
    whole: Any = None

    def of_floats(floats):
        nonlocal whole
        remaining = iter(floats)
        filled = [next(remaining) if f else leaf for f, leaf in zip(floating, leaves, strict=True)]
        outputs, whole = jax.tree.flatten(function(*structure.unflatten(filled)))
        return [leaf for leaf in outputs if is_floating(leaf)], outputs

    floats = [leaf for f, leaf in zip(floating, leaves, strict=True) if f]
    _, vjp, outputs = jax.vjp(of_floats, floats, has_aux=True)
    y_bar = jax.tree.map(jnp.ones_like, outputs) if y_bar is None else whole.flatten_up_to(y_bar)
    bars = [bar for leaf, bar in zip(outputs, y_bar, strict=True) if is_floating(leaf)]
    (floats_bar,) = vjp(bars)
    remaining = iter(floats_bar)
    cotangents = structure.unflatten([next(remaining) if f else None for f in floating])
    return whole.unflatten(outputs), cotangents


def reference(e: Equation) -> Callable[[Iterable[PyTree]], list[PyTree]]:
    """The floating results of an equation as a function of its wanted operands, for JAX to differentiate.

    Layers in it are opened, so that no rule of ours has a part in it.
    """
    e = replace(e, params={name: _opened_inside(value) for name, value in e.params.items()})

    def results(some):
        remaining = iter(some)
        ins = [next(remaining) if w else x for x, w in zip(e.ins, e.wanted, strict=True)]
        outs = e.params["call"].apply(*ins) if e.primitive.name == LAYER else e.bind(*ins)
        return [y for y in outs if is_floating(y)]

    return results


def _opened_inside(value: Any) -> Any:
    """A program among an equation's parameters with the layers in it opened; anything else as it is."""
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_opened_inside(v) for v in value)
    closed = value if hasattr(value, "consts") else ClosedJaxpr(value, ()) if hasattr(value, "eqns") else None
    if closed is None or not _has_layer(closed.jaxpr):
        return value
    made = jax.make_jaxpr(lambda *args: _evaluate(closed.jaxpr, closed.consts, args))(*closed.in_avals)
    return made if hasattr(value, "consts") else made.jaxpr


def _has_layer(jaxpr: Jaxpr) -> bool:
    return any(
        e.primitive.name == LAYER or any(map(_has_layer, jaxprs_in_params(e.params))) for e in jaxpr.eqns
    )


def _evaluate(jaxpr: Jaxpr, consts: Iterable[PyTree], args: Iterable[PyTree]) -> list[PyTree]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    for eqn in jaxpr.eqns:
        ins = [read(v, values) for v in eqn.invars]
        if eqn.primitive.name == LAYER:
            outs = eqn.params["call"].apply(*ins)
        else:
            params = {name: _opened_inside(value) for name, value in eqn.params.items()}
            outs = Equation(eqn.primitive, params, tuple(ins)).bind(*ins)
        values.update(zip(eqn.outvars, outs, strict=True))
    return [read(v, values) for v in jaxpr.outvars]
