"""Inverted bottlenecks with squeeze-and-excitation, after Bonsai's EfficientNet.

Source: jax-ml/bonsai, bonsai/models/efficientnet/modeling.py (SqueezeAndExcitation, MBConv, EfficientNet).
Glue: mean with keepdims, product of a branch with its gate, `+=` of the identity where shapes allow,
BatchNorm called with use_running_average=False by keyword, layers that may be None,
functools.partial(jnp.mean) as an attribute, Dropout called with deterministic=, python loop over nnx.List,
default argument `training`.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx


class Squeeze(nnx.Module):
    def __init__(self, width, inner, rngs):
        self.reduce = nnx.Conv(width, inner, (1, 1), padding="VALID", rngs=rngs)
        self.expand = nnx.Conv(inner, width, (1, 1), padding="VALID", rngs=rngs)

    def __call__(self, x):
        gate = jnp.mean(x, axis=(1, 2), keepdims=True)
        gate = nnx.sigmoid(self.expand(nnx.silu(self.reduce(gate))))
        return x * gate


class Bottleneck(nnx.Module):
    def __init__(self, before, after, stride, ratio, rngs):
        inner = before * ratio
        self.skip = stride == 1 and before == after
        self.grow = nnx.Conv(before, inner, (1, 1), use_bias=False, rngs=rngs) if ratio != 1 else None
        self.grow_bn = nnx.BatchNorm(inner, use_running_average=True, rngs=rngs) if ratio != 1 else None
        self.depth = nnx.Conv(
            inner,
            inner,
            (3, 3),
            strides=(stride, stride),
            feature_group_count=inner,
            padding=1,
            use_bias=False,
            rngs=rngs,
        )
        self.depth_bn = nnx.BatchNorm(inner, use_running_average=True, rngs=rngs)
        self.gate = Squeeze(inner, max(1, before // 2), rngs)
        self.shrink = nnx.Conv(inner, after, (1, 1), use_bias=False, rngs=rngs)
        self.shrink_bn = nnx.BatchNorm(after, use_running_average=True, rngs=rngs)

    def __call__(self, x, training):
        start, still = x, not training
        if self.grow is not None:
            x = nnx.silu(self.grow_bn(self.grow(x), use_running_average=still))
        x = nnx.silu(self.depth_bn(self.depth(x), use_running_average=still))
        x = self.gate(x)
        x = self.shrink_bn(self.shrink(x), use_running_average=still)
        if self.skip:
            x += start
        return x


class MobileNet(nnx.Module):
    def __init__(self, classes, rngs):
        self.stem = nnx.Conv(3, 4, (3, 3), strides=(2, 2), padding=1, use_bias=False, rngs=rngs)
        self.stem_bn = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.blocks = nnx.List([Bottleneck(4, 4, 1, 1, rngs), Bottleneck(4, 6, 2, 2, rngs)])
        self.pool = partial(jnp.mean, axis=(1, 2))
        self.drop = nnx.Dropout(0.2, deterministic=False, rngs=rngs)
        self.head = nnx.Linear(6, classes, rngs=rngs)

    def __call__(self, x, training=True):
        x = nnx.silu(self.stem_bn(self.stem(x), use_running_average=not training))
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(self.drop(self.pool(x), deterministic=not training))


def make():
    data = np.random.default_rng(0)
    x = data.normal(size=(4, 12, 12, 3)).astype("float32")
    return (
        MobileNet(5, nnx.Rngs(0)),
        optax.softmax_cross_entropy_with_integer_labels,
        x,
        data.integers(0, 5, 4),
    )
