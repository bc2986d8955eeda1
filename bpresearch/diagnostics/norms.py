"""Norms of gradients, updates and ways, and the sizes of the gradient's elements."""

import jax
import jax.numpy as jnp
import optax

from bpresearch.functional import Params
from bpresearch.paths import format_path
from bpresearch.train import Measured, Moment

BINS = 20


def gradient_norms(moment: Moment) -> dict[str, Measured]:
    """`gradient_norm` by layer: |g| of each parameter array."""
    return {"gradient_norm": _by_layer(moment.next.gradient)}


def update_norms(moment: Moment) -> dict[str, Measured]:
    """`update_norm` by layer: |d| of each parameter array."""
    return {"update_norm": _by_layer(moment.next.update)}


def distance(moment: Moment) -> dict[str, Measured]:
    """`distance` from the initial weights: |w - w_0|."""
    difference = jax.tree.map(jnp.subtract, moment.run.params, moment.initial)
    return {"distance": Measured(optax.tree.norm(difference))}


def gradient_histogram(moment: Moment) -> dict[str, Measured]:
    """`gradient_histogram`: the part of g's elements with each order of magnitude.

    The bins of `log10_gradient`, named by their lower ends, are half an order wide and go from 1e-8 to 100;
    what is smaller or larger, zero too, counts in the first or the last.
    """
    g = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in jax.tree.leaves(moment.next.gradient)])
    ends = [-8 + bin / 2 for bin in range(BINS)]
    g = jax.lax.optimization_barrier(g)  # put together once, not for each of its bins
    above = jnp.stack([jnp.sum(g >= 10.0**end, dtype=jnp.int32) for end in ends[1:]])
    parts = -jnp.diff(above, prepend=g.size, append=0) / g.size
    return {"gradient_histogram": Measured(parts, {"log10_gradient": ends})}


def _by_layer(tree: Params) -> Measured:
    """The norm of each parameter array, with its path as coordinate."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [format_path(tuple(entry.key for entry in path)) for path, _ in leaves]
    return Measured(jnp.stack([jnp.linalg.norm(leaf.ravel()) for _, leaf in leaves]), {"layer": names})
