"""Faults that fit any rule: a backward pass changed from outside, without knowing what it computes.

Not every change changes something: of a layer without parameters none can be forgotten, and what has one
element looks the same in reverse. `changes` tells.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpresearch.verify.detection.faults import FAULTS, Fault
from bpresearch.verify.precision import is_floating

MUTATIONS: dict[str, Fault] = {}


def mutation(backward: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Decorator: a changed backward pass becomes the fault of its name, described by its docstring."""
    name = backward.__name__
    description = (backward.__doc__ or "").strip()
    fault = Fault(name, description, "any layer or primitive", lambda layer: True, backward, anywhere=True)
    MUTATIONS[name] = FAULTS[name] = fault
    return backward


def _floats(change: Callable[[jax.Array], jax.Array], tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: change(leaf) if is_floating(leaf) else leaf, tree)


def _first(change: Callable[[jax.Array], jax.Array], tree: PyTree) -> PyTree:
    """Changes the first floating leaf of at least one axis."""
    leaves, structure = jax.tree.flatten(tree)
    index = next((i for i, leaf in enumerate(leaves) if is_floating(leaf) and leaf.ndim), None)
    if index is not None:
        leaves[index] = change(leaves[index])
    return structure.unflatten(leaves)


def _along_last(change: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda leaf: change(leaf) if leaf.ndim else leaf


def _largest_scaled(leaf: PyTree) -> PyTree:
    if not leaf.size:
        return leaf
    return leaf.at[jnp.unravel_index(jnp.argmax(jnp.abs(leaf)), leaf.shape)].multiply(1.01)


@mutation
def sign_wrong(rule, layer, residuals, y_bar, **options):
    """Every derivative has the wrong sign."""
    return _floats(lambda leaf: -leaf, rule.backward(layer, residuals, y_bar, **options))


@mutation
def factor_doubled(rule, layer, residuals, y_bar, **options):
    """Every derivative is twice as large."""
    return _floats(lambda leaf: 2 * leaf, rule.backward(layer, residuals, y_bar, **options))


@mutation
def cotangent_ignored(rule, layer, residuals, y_bar, **options):
    """The derivative of the layer alone, not multiplied by y_bar."""
    return rule.backward(layer, residuals, _floats(jnp.ones_like, y_bar), **options)


@mutation
def input_forgotten(rule, layer, residuals, y_bar, **options):
    """x_bar is zero."""
    grads, x_bar = rule.backward(layer, residuals, y_bar, **options)
    return grads, _floats(jnp.zeros_like, x_bar)


@mutation
def parameters_forgotten(rule, layer, residuals, y_bar, **options):
    """The parameters' derivatives are zero."""
    grads, x_bar = rule.backward(layer, residuals, y_bar, **options)
    return _floats(jnp.zeros_like, grads), x_bar


@mutation
def mean_for_sum(rule, layer, residuals, y_bar, **options):
    """The parameters' derivatives are means over the first axis of y_bar instead of sums."""
    grads, x_bar = rule.backward(layer, residuals, y_bar, **options)
    first = jax.tree.leaves(y_bar)[0]
    return _floats(lambda leaf: leaf / max(first.shape[0] if first.ndim else 1, 1), grads), x_bar


@mutation
def transposed(rule, layer, residuals, y_bar, **options):
    """Square matrices among the derivatives are transposed."""

    def change(leaf):
        return leaf.T if leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1] else leaf

    return _floats(change, rule.backward(layer, residuals, y_bar, **options))


@mutation
def input_reversed(rule, layer, residuals, y_bar, **options):
    """x_bar is reversed along its last axis."""
    grads, x_bar = rule.backward(layer, residuals, y_bar, **options)
    return grads, _floats(_along_last(lambda leaf: jnp.flip(leaf, -1)), x_bar)


@mutation
def input_shifted(rule, layer, residuals, y_bar, **options):
    """x_bar is off by one element along its last axis."""
    grads, x_bar = rule.backward(layer, residuals, y_bar, **options)
    return grads, _floats(_along_last(lambda leaf: jnp.roll(leaf, 1, -1)), x_bar)


@mutation
def slice_sign_wrong(rule, layer, residuals, y_bar, **options):
    """The sign of the first slice along the last axis of x_bar is wrong."""
    grads, x_bar = rule.backward(layer, residuals, y_bar, **options)
    return grads, _first(lambda leaf: leaf.at[..., :1].multiply(-1), x_bar)


@mutation
def example_dropped(rule, layer, residuals, y_bar, **options):
    """The first element along the first axis of y_bar has no part in any derivative."""
    return rule.backward(layer, residuals, _first(lambda leaf: leaf.at[:1].set(0), y_bar), **options)


@mutation
def element_scaled(rule, layer, residuals, y_bar, **options):
    """The largest element of x_bar is 1 % too large."""
    grads, x_bar = rule.backward(layer, residuals, y_bar, **options)
    return grads, _first(_largest_scaled, x_bar)


@mutation
def last_example_dropped(rule, layer, residuals, y_bar, **options):
    """The last element along the first axis of y_bar has no part in any derivative."""
    return rule.backward(layer, residuals, _first(lambda leaf: leaf.at[-1:].set(0), y_bar), **options)


@mutation
def step_dropped(rule, layer, residuals, y_bar, **options):
    """The last step in time, along the second axis of y_bar, has no part in any derivative."""

    def change(leaf):
        return leaf.at[:, -1:].set(0) if leaf.ndim > 2 else leaf

    return rule.backward(layer, residuals, _floats(change, y_bar), **options)


@mutation
def parameter_element_scaled(rule, layer, residuals, y_bar, **options):
    """The largest element of the first parameter's derivative is 1 % too large."""
    grads, x_bar = rule.backward(layer, residuals, y_bar, **options)
    return _first(_largest_scaled, grads), x_bar


@mutation
def residual_stale(rule, layer, residuals, y_bar, **options):
    """What `forward` kept belongs to the example before."""
    moved = _floats(lambda leaf: jnp.roll(leaf, 1, 0) if leaf.ndim else leaf, residuals)
    return rule.backward(layer, moved, y_bar, **options)


@mutation
def residual_imprecise(rule, layer, residuals, y_bar, **options):
    """What `forward` kept is off by one part in ten thousand."""
    return rule.backward(layer, _floats(lambda leaf: leaf * (1 + 1e-4), residuals), y_bar, **options)


def changes(found: PyTree, right: PyTree) -> float:
    """The largest change that a fault makes to any derivative, relative to the largest of its leaf.

    A leaf whose derivatives are zero but for rounding (the bias of attention's keys) counts as 1e-12 of the
    largest of all.
    """
    found, right = (
        [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree) if is_floating(leaf) and leaf.size]
        for tree in (found, right)
    )
    sizes = [np.max(np.abs(leaf)) for leaf in right]
    least, worst = 1e-12 * max(sizes, default=0.0), 0.0
    for f, r, size in zip(found, right, sizes, strict=True):
        apart = np.max(np.abs(f - r))
        worst = max(worst, apart / max(size, least) if least else (np.inf if apart else 0.0))
    return float(worst)
