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


def add_channel(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape 1"]:
    """Feature vectors as signals with one channel."""
    return x[..., None]
