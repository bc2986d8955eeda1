"""How layers are put together, for what Flax has no layer of its own."""

from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Shaped


def flatten(x: Shaped[Array, "batch *features"]) -> Shaped[Array, "batch flat"]:
    """All axes but the first in one, in row-major order."""
    return x.reshape(x.shape[0], -1)


class Residual(nnx.Module):
    """A residual branch: `y = x + branch(x)` (He et al. 2016).

    Args:
        branch: a layer whose output has the shape of its input.
    """

    def __init__(self, branch: nnx.Module | Callable[[Any], Any]):
        self.branch = branch

    def __call__(self, x: Array) -> Array:
        return x + self.branch(x)


class Unembed(nnx.Module):
    """Logits by comparing with each embedding: `y = embed.attend(x) = x E^T` (Press and Wolf 2017).

    The parameters are those of `embed`, which the model also uses at its input (tied weights).

    Args:
        embed: the embedding layer, `nnx.Embed`.
    """

    def __init__(self, embed: nnx.Embed):
        self.embed = embed

    def __call__(self, x: Array) -> Array:
        return self.embed.attend(x)


class Masked(nnx.Module):
    """A normalization with the mask as a second input: `y = norm(x, mask=mask)`.

    Args:
        norm: a layer that takes a `mask`, such as `nnx.BatchNorm` or `nnx.LayerNorm`. Mean and variance are
            those of the elements where the mask, which must broadcast to `x`, is True.
    """

    def __init__(self, norm: nnx.Module):
        self.norm = norm

    def __call__(self, x: Array, mask: Array) -> Array:
        return self.norm(x, mask=mask)


def add_channel(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape 1"]:
    """Feature vectors as signals with one channel."""
    return x[..., None]
