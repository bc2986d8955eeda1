"""Embeddings: rows of a table."""

import jax.numpy as jnp
from flax import nnx

from bpresearch.chainrule.registry import DoesNotApply, rule


@rule(nnx.Embed)
class EmbedRule:
    """y = E[x].      E_bar[i] = sum of y_bar over the places where x = i;   x, an integer, has no cotangent

    x: (...), E: (num_embeddings, features), y: (..., features). An index past the end gives NaN, and its
    y_bar is dropped; an index below zero counts from the end. A table of one row is the answer to any index.
    """

    def forward(layer, x):
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise DoesNotApply(f"indices are integers, not {x.dtype}")
        return layer(x), x

    def backward(layer, x, y_bar):
        table = layer.embedding[...]
        rows = y_bar.reshape(-1, y_bar.shape[-1]).astype(table.dtype)
        if layer.num_embeddings == 1:
            return {"embedding": jnp.sum(rows, axis=0, keepdims=True)}, None
        return {"embedding": jnp.zeros_like(table).at[x.ravel()].add(rows, mode="drop")}, None
