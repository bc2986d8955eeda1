"""Embeddings: rows of a table, and the table as an output layer."""

import jax.numpy as jnp
from flax import nnx

from bpresearch.chainrule.engine import location
from bpresearch.chainrule.linear import sum_over_rows
from bpresearch.chainrule.registry import rule
from bpresearch.models.combinators import LearnedPositions, Unembed


@rule(nnx.Embed)
class EmbedRule:
    """y = E[x].      E_bar[i] = sum of y_bar over the places where x = i;   x, an integer, has no cotangent

    x: (...), E: (num_embeddings, features), y: (..., features). An index past the end gives NaN, and its
    y_bar is dropped; an index below zero counts from the end. A table of one row is the answer to any index.
    """

    def forward(layer, x):
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"nnx.Embed at {location()}: the input must be integers, not {x.dtype}")
        return layer(x), x

    def backward(layer, x, y_bar):
        table = layer.embedding[...]
        rows = y_bar.reshape(-1, y_bar.shape[-1]).astype(table.dtype)
        if layer.num_embeddings == 1:
            return {"embedding": jnp.sum(rows, axis=0, keepdims=True)}, None
        return {"embedding": jnp.zeros_like(table).at[x.ravel()].add(rows, mode="drop")}, None


@rule(Unembed)
class UnembedRule:
    """y = x E^T.      E_bar = y_bar^T x,   x_bar = y_bar E

    x: (..., features), E: (num_embeddings, features), y: (..., num_embeddings).
    """

    def forward(layer, x):
        return layer(x), x

    def backward(layer, x, y_bar):
        table = layer.embed.embedding[...]
        x_cast, table_cast = layer.embed.promote_dtype((x, table), dtype=layer.embed.dtype)
        y_bar = y_bar.astype(x_cast.dtype)
        return {"embed": {"embedding": sum_over_rows(y_bar, x_cast)}}, (y_bar @ table_cast).astype(x.dtype)


@rule(LearnedPositions)
class LearnedPositionsRule:
    """y[n, t] = x[n, t] + p[t].      p_bar[t] = sum_n y_bar[n, t],   x_bar = y_bar

    x and y: (batch, length, features); positions past the length of the sequences have p_bar = 0.
    """

    def forward(layer, x):
        return layer(x), x[:0]

    def backward(layer, nothing, y_bar):
        position = layer.position[...]
        unused = position.shape[0] - y_bar.shape[1]
        position_bar = jnp.pad(jnp.sum(y_bar, axis=0), ((0, unused), (0, 0)))
        return {"position": position_bar.astype(position.dtype)}, y_bar.astype(nothing.dtype)
