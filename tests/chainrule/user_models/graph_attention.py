"""Graph attention network on an edge list, after JraphX.

Source: DBraun/jraphx, src/jraphx/nn/conv/gat_conv.py, nn/models/basic_gnn.py, README quick start.
Glue: gather by node indices (x[row]), raw attention Params, sum over features, jnp.where as leaky ReLU,
softmax over edges by segment_max, exp, segment_sum and gather, Dropout on coefficients, segment_sum of
messages, reshapes, raw bias Param, mean over heads, log_softmax at the end, integer inputs; the loss masks
nodes (where, sum, division).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class EdgeAttention(nnx.Module):
    def __init__(self, before, after, heads, concat, rngs):
        self.heads, self.after, self.concat = heads, after, concat
        self.dense = nnx.Linear(before, heads * after, use_bias=False, rngs=rngs)
        start = nnx.initializers.glorot_uniform()
        self.source = nnx.Param(start(rngs.params(), (heads, after)))
        self.target = nnx.Param(start(rngs.params(), (heads, after)))
        self.bias = nnx.Param(jnp.zeros(heads * after if concat else after))
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x, edges):
        n = x.shape[0]
        loops = jnp.arange(n)
        row, column = jnp.concatenate([edges[0], loops]), jnp.concatenate([edges[1], loops])
        x = self.dense(x).reshape(-1, self.heads, self.after)
        score = jnp.sum(x[row] * self.source[...], axis=-1) + jnp.sum(x[column] * self.target[...], axis=-1)
        score = jnp.where(score > 0, score, 0.2 * score)
        top = jax.ops.segment_max(score, column, num_segments=n)
        weight = jnp.exp(score - top[column])
        weight = weight / (jax.ops.segment_sum(weight, column, num_segments=n)[column] + 1e-16)
        weight = self.drop(weight)
        message = (x[row] * weight.reshape(-1, self.heads, 1)).reshape(-1, self.heads * self.after)
        out = jax.ops.segment_sum(message, column, num_segments=n).reshape(n, self.heads, self.after)
        out = out.reshape(n, -1) if self.concat else out.mean(axis=1)
        return out + self.bias[...]


class GAT(nnx.Module):
    def __init__(self, before, hidden, classes, rngs):
        self.first = EdgeAttention(before, hidden, 2, True, rngs)
        self.second = EdgeAttention(2 * hidden, classes, 2, False, rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x, edges):
        x = self.drop(nnx.elu(self.first(x, edges)))
        return nnx.log_softmax(self.second(x, edges), axis=1)


def loss_fn(log_probabilities, labels, mask):
    picked = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]
    return -jnp.sum(jnp.where(mask, picked, 0.0)) / jnp.sum(mask)


def make():
    data = np.random.default_rng(0)
    x = data.normal(size=(8, 5)).astype("float32")
    edges = np.stack([data.integers(0, 8, 14), data.integers(0, 8, 14)])
    return GAT(5, 4, 3, nnx.Rngs(0)), loss_fn, (x, edges), (data.integers(0, 3, 8), np.arange(8) < 5)
