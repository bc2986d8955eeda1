"""Engine against engine: the gradient in question and autodiff's, as functions of the same arguments.

Gradients are lists with one array for each floating-point leaf of the parameters and the input.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from bpresearch import chainrule
from bpresearch.functional import Loss, merge, objective
from bpresearch.paths import format_path
from bpresearch.verify.equations import Plant, pullback
from bpresearch.verify.precision import is_floating


def leaf_names(tree: tuple[PyTree, PyTree]) -> list[str]:
    """Paths of the floating leaves of `(params, x)`: `layers.1.kernel` and so on, then `input`."""
    names = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        head, *rest = (getattr(key, "idx", getattr(key, "key", key)) for key in path)
        if is_floating(leaf):
            names.append(format_path(tuple(rest) if head == 0 else ("input", *rest)))
    return names


def floating_leaves(tree: PyTree, gradients: PyTree) -> list[jax.Array]:
    """The leaves of `gradients` at the floating leaves of `tree`; zeros where a rule gave None."""
    leaves, structure = jax.tree.flatten(tree)
    pairs = zip(leaves, structure.flatten_up_to(gradients), strict=True)
    return [jnp.zeros_like(leaf) if bar is None else bar for leaf, bar in pairs if is_floating(leaf)]


def by_rules(
    graphdef: nnx.GraphDef, loss_fn: Loss, plant: Plant
) -> Callable[..., tuple[list[jax.Array], jax.Array]]:
    """The gradient in question: `(params, state, x, y) -> gradient leaves, loss`."""
    value_and_grad = chainrule.gradient(graphdef, loss_fn, inputs=True)

    def gradient(params, state, x, y):
        with chainrule.replacing(plant):
            (loss, _), gradients = value_and_grad(params, state, (x, y))
        return floating_leaves((params, x), gradients), loss

    return gradient


def by_autodiff(graphdef: nnx.GraphDef, loss_fn: Loss) -> Callable[..., tuple[list[jax.Array], jax.Array]]:
    """The same by `jax.vjp` of the model, which sees no rule."""

    def gradient(params, state, x, y):
        def loss(params, x):
            return mean_loss(graphdef, loss_fn, params, state, x, y)

        value, gradients = pullback(loss, (params, x))
        return floating_leaves((params, x), gradients), value

    return gradient


def mean_loss(
    graphdef: nnx.GraphDef, loss_fn: Loss, params: PyTree, state: PyTree, x: PyTree, y: PyTree
) -> jax.Array:
    """The scalar that is differentiated."""
    return objective(loss_fn)(merge(graphdef, params, state), params, x, y)
