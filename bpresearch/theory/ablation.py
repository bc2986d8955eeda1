"""One kind of factor of the gradient replaced everywhere: what does it contribute?

A gradient's factors downstream of a parameter are of three kinds: weights, derivatives of activations and
the derivative of the loss. The chain rule's backward passes are run with one kind replaced, the forward
passes as they are. Factors are replaced in layers with rules; what a model computes besides stays as it is.
"""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from bpresearch import chainrule
from bpresearch.chainrule.primitives import LAYER
from bpresearch.chainrule.registry import Layer, Rule
from bpresearch.functional import Params, State, merge, split

KINDS = ("weight", "activation", "loss")

Replacement = Callable[[Float[Array, "..."], Key[Array, ""]], Float[Array, "..."]]
"""`(factors, key) -> factors` of the same shape; the key is fixed for each place in the model."""


def ones(factors: Float[Array, "*shape"], key: Key[Array, ""]) -> Float[Array, "*shape"]:
    """1 everywhere: the factor is left out."""
    return jnp.ones_like(factors)


def mean(factors: Float[Array, "*shape"], key: Key[Array, ""]) -> Float[Array, "*shape"]:
    """Their mean everywhere: the right size and sign on average, without the differences."""
    return jnp.full_like(factors, jnp.mean(factors))


def random(factors: Float[Array, "*shape"], key: Key[Array, ""]) -> Float[Array, "*shape"]:
    """Normal numbers that stay the same, with their spread: feedback alignment (Lillicrap et al. 2016)."""
    return jnp.std(factors) * jax.random.normal(key, factors.shape, factors.dtype)


def kind_of(layer: Layer) -> str | None:
    """The kind of factor that a layer contributes to the gradients before it; None for any other layer.

    Weights are those of dense layers and convolutions, activations the functions of each element.
    """
    if isinstance(layer, nnx.Linear | nnx.Conv):
        return "weight"
    rule = getattr(chainrule.rule_for(layer)[0], "__qualname__", "")
    return "activation" if rule.startswith("elementwise.") else None


def ablated(kind: str, replacement: Replacement) -> Callable[..., PyTree]:
    """A gradient function as `chainrule.gradient`, with one kind of factor replaced in every backward pass.

    Args:
        kind: "weight", "activation" or "loss".
        replacement: what the factors become: `ones`, `mean`, `random`.

    Returns:
        `(graphdef, loss_fn, *, inputs=False) -> ((params, state, (x, y)) -> (loss, new_state), grads)`.
    """
    rules = {"weight": _weight, "activation": _activation, "loss": _loss}
    if kind not in rules:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")

    def replace(e: chainrule.Equation, rule: Any) -> Any:
        if e.primitive.name != LAYER or _kind_of_call(e) != kind:
            return rule
        key = functools.partial(jax.random.key, zlib.crc32(e.layer.encode()))
        return rules[kind](rule, lambda factors: replacement(factors, key()))

    def gradient(graphdef: nnx.GraphDef, loss_fn: Callable[..., Array], *, inputs: bool = False):
        engine = chainrule.gradient(graphdef, loss_fn, inputs=inputs)
        if kind == "loss":
            chainrule.rule_for(loss_fn)  # or nothing would be replaced

        def value_and_grad(params: Params, state: State, batch: PyTree):
            with chainrule.replacing(replace):
                return engine(params, state, batch)

        return value_and_grad

    return gradient


def _kind_of_call(e: chainrule.Equation) -> str | None:
    return "loss" if e.layer == "loss" else kind_of(e.params["call"].layer_with_options)


def _weight(rule: Rule, replaced: Callable[[Array], Array]) -> type:
    """x_bar with W' in the place of W, for a matrix y_bar W'^T; W_bar as it was."""

    class Ablated:
        def forward(layer, x, **options):
            y, residuals = rule.forward(layer, x, **options)
            return y, (x, residuals)

        def backward(layer, residuals, y_bar, **options):
            x, residuals = residuals
            grads, _ = rule.backward(layer, residuals, y_bar, **options)
            graphdef, params, state = split(layer)
            ablated = merge(graphdef, {**params, "kernel": replaced(params["kernel"])}, state)
            _, residuals = rule.forward(ablated, x, **options)
            _, x_bar = rule.backward(ablated, residuals, y_bar, **options)
            return grads, x_bar

    return Ablated


def _activation(rule: Rule, replaced: Callable[[Array], Array]) -> type:
    """x_bar = y_bar times what f'(x) is replaced by."""

    class Ablated:
        forward = rule.forward

        def backward(layer, residuals, y_bar, **options):
            _, derivative = rule.backward(layer, residuals, jnp.ones_like(y_bar), **options)
            return {}, y_bar * replaced(derivative)

    return Ablated


def _loss(rule: Rule, replaced: Callable[[Array], Array]) -> type:
    """o_bar is what c'(o) is replaced by, over the number of values that the mean takes."""

    class Ablated:
        forward = rule.forward

        def backward(layer, residuals, values_bar, **options):
            unit = jnp.ones_like(values_bar)
            _, (derivative, targets_bar) = rule.backward(layer, residuals, unit, **options)
            return {}, (replaced(derivative) * jnp.mean(values_bar), targets_bar)

    return Ablated


REPLACEMENTS = {
    f"{kind}: {how.__name__}": ablated(kind, how)
    for kind, hows in (
        ("weight", (ones, mean, random)),
        ("activation", (ones, mean)),
        ("loss", (ones, mean)),
    )
    for how in hows
}
"""Gradient functions by what they replace: each kind by each replacement that makes sense for it."""


class Deviation(NamedTuple):
    """How a gradient differs from the true one: their angle in degrees, and the ratio of their lengths."""

    angle: float
    length: float


def deviations(
    models: Sequence[nnx.Module],
    loss_fn: Callable[..., Array],
    x: PyTree,
    y: PyTree,
    gradients: Mapping[str, Callable[..., PyTree]],
) -> dict[str, Deviation]:
    """How far gradient functions are from the chain rule's: means over models of one structure.

    Args:
        models: the models.
        loss_fn: as both engines take it.
        x, y: the batch.
        gradients: gradient functions by name, such as `REPLACEMENTS`.
    """
    graphdef = split(models[0])[0]
    engines = [gradient(graphdef, loss_fn) for gradient in (chainrule.gradient, *gradients.values())]
    program = jax.jit(lambda *inputs: [engine(*inputs)[1] for engine in engines])
    rows = []
    for model in models:
        true, *others = program(*split(model)[1:], (x, y))
        length = float(optax.tree.norm(true))
        rows.append([(angle(other, true), float(optax.tree.norm(other)) / length) for other in others])
    return {
        name: Deviation(*means) for name, means in zip(gradients, np.mean(rows, axis=0).tolist(), strict=True)
    }


def angle(a: PyTree, b: PyTree) -> float:
    """The angle between two gradients, taken as vectors, in degrees; NaN where one of them is zero.

    >>> angle({"w": np.array([1.0, 0.0])}, {"w": np.array([0.0, 2.0])})
    90.0
    """
    u, v = (
        np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(g)])
        for g in (a, b)
    )
    lengths = np.linalg.norm(u), np.linalg.norm(v)
    if 0 in lengths:
        return float("nan")
    u, v = u / lengths[0], v / lengths[1]
    # Kahan's formula: exact also where the cosine rounds to one.
    return float(np.degrees(2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))))
