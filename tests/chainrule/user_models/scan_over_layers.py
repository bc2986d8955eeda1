"""Layers stacked with nnx.vmap and applied with nnx.scan, after Flax's toy example.

Source: google/flax, examples/nnx_toy_examples/06_scan_over_layers.py (Block, ScanMLP).
Glue: nnx.split_rngs and nnx.vmap in the constructor, nnx.scan over a stacked module in __call__ with
BatchNorm (training) and Dropout whose states move inside the scan; jax.nn.gelu; loss written out (squares,
mean).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Piece(nnx.Module):
    def __init__(self, width, rngs):
        self.dense = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return jax.nn.gelu(self.drop(self.norm(self.dense(x))))


class Scanned(nnx.Module):
    def __init__(self, width, depth, rngs):
        @nnx.split_rngs(splits=depth)
        @nnx.vmap(axis_size=depth)
        def build(rngs):
            return Piece(width, rngs)

        self.stack = build(rngs)

    def __call__(self, x):
        @nnx.scan
        def step(h, piece):
            return piece(h), None

        return step(x, self.stack)[0]


def loss_fn(predicted, y):
    return jnp.mean((y - predicted) ** 2)


def make():
    data = np.random.default_rng(0)
    x, y = (data.normal(size=(7, 6)).astype("float32") for _ in range(2))
    return Scanned(6, 3, nnx.Rngs(0)), loss_fn, x, y
