"""Convolutional digit classifier, after the Flax MNIST tutorial.

Source: google/flax, docs_nnx/mnist_tutorial.md (class CNN). The page passes `rngs` at each call; here, as in
its earlier revision, Dropout holds them. Glue: attribute calls in an own __call__,
functools.partial(nnx.avg_pool) as an attribute, reshape to (batch, -1), BatchNorm in training mode, Dropout
with a stream.
"""

from functools import partial

import numpy as np
import optax
from flax import nnx


class DigitNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.first_bn = nnx.BatchNorm(4, rngs=rngs)
        self.drop_a = nnx.Dropout(0.1, rngs=rngs)
        self.second = nnx.Conv(4, 6, (3, 3), rngs=rngs)
        self.second_bn = nnx.BatchNorm(6, rngs=rngs)
        self.shrink = partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        self.dense = nnx.Linear(3 * 3 * 6, 16, rngs=rngs)
        self.drop_b = nnx.Dropout(0.1, rngs=rngs)
        self.logits = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        x = self.shrink(nnx.relu(self.first_bn(self.drop_a(self.first(x)))))
        x = self.shrink(nnx.relu(self.second_bn(self.second(x))))
        x = x.reshape(x.shape[0], -1)
        x = nnx.relu(self.drop_b(self.dense(x)))
        return self.logits(x)


def make():
    data = np.random.default_rng(0)
    x = data.normal(size=(6, 12, 12, 1)).astype("float32")
    y = data.integers(0, 10, 6)
    return DigitNet(nnx.Rngs(0)), optax.softmax_cross_entropy_with_integer_labels, x, y
