"""Random directions of which each moves one leaf only."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpresearch.verify.precision import random_signs


def along_each_leaf(point: list[Array], count: int) -> list[Array]:
    """`count` directions for each leaf: random signs there, zero elsewhere, stacked along a first axis.

    The directions of the first leaf come first.
    """
    stacked = []
    for index, leaf in enumerate(point):
        signs = random_signs((count, *leaf.shape), index + 1000).astype(leaf.dtype)
        blank = jnp.zeros((len(point) * count, *leaf.shape), leaf.dtype)
        stacked.append(blank.at[index * count : (index + 1) * count].set(signs))
    return stacked


def leaf_scales(point: Sequence[np.ndarray], gradient: Sequence[np.ndarray], value: float) -> list[float]:
    """What errors in the gradient of each leaf are relative to: its norm, or more if it hardly matters.

    A leaf that moves the function a million times less than the most influential one, when all leaves move
    in proportion to their size, has rounding noise for a gradient; so the scale is at least that of a leaf
    with a millionth of the largest influence.
    """
    steps = [float(np.sqrt(np.mean(np.square(leaf)))) if leaf.size else 1.0 for leaf in point]
    steps = [step if step > 0 else 1.0 for step in steps]
    norms = [float(np.nan_to_num(np.linalg.norm(g), posinf=0.0)) for g in gradient]
    influence = max([abs(value), *(n * s for n, s in zip(norms, steps, strict=True))])
    return [max(n, 1e-6 * influence / s) or 1.0 for n, s in zip(norms, steps, strict=True)]
