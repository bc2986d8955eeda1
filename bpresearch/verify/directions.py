"""Directions in which a gradient is checked: every coordinate of a leaf, or random signs all over it.

An oracle that gives the derivative along one direction d at a time sees the error e of a gradient as
<e, d>. If d is random signs (Rademacher) on the whole leaf, every element takes part with the same weight.
Let some element of e be a or more. Whatever the others are, the two signs of that element give sums that
differ by 2a, so at least one of them is a or more: one direction misses the error with probability at most
1/2, and n independent ones with at most 2^-n. (A single wrong element among right ones shows in each of
them.) The number of directions follows from the probability that is to be borne; leaves of few elements
are taken in every coordinate, where nothing is left to chance.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from bpresearch.verify.precision import Seed, random_signs

MISSED = 1e-6
"""The probability of missing a wrong element that is borne unless another is asked for."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Directions:
    """Which directions are taken: `leaf` of each, and its coordinate, or -1 for random signs."""

    leaf: PyTree
    coordinate: PyTree

    def of(self, leaf: int) -> np.ndarray:
        """Which of the directions belong to a leaf."""
        return self.leaf == leaf

    def in_every_coordinate(self, leaf: int) -> bool:
        """Whether a leaf is taken coordinate by coordinate."""
        return bool((self.coordinate[self.of(leaf)] >= 0).all())

    def describe(self, leaf: int) -> str:
        """How thoroughly a leaf is looked at, in words."""
        count = int(self.of(leaf).sum())
        if self.in_every_coordinate(leaf):
            return f"every coordinate ({count})"
        return f"{count} random directions, a wrong element missed with probability {0.5**count:.0e}"


def choose_directions(
    sizes: Sequence[int], missed: float = MISSED, every_coordinate_up_to: int = 64
) -> Directions:
    """Every coordinate of leaves with few elements; of others, random directions.

    Args:
        sizes: number of elements of each leaf.
        missed: largest probability, for each leaf, that a wrong element is not seen.
        every_coordinate_up_to: leaves of at most so many elements are taken in every coordinate.

    >>> directions = choose_directions([3, 1000], missed=1e-3)
    >>> directions.describe(0), directions.describe(1)[:20]
    ('every coordinate (3)', '10 random directions')
    """
    random = max(1, math.ceil(-math.log2(missed)))
    leaf: list[int] = []
    coordinate: list[int] = []
    for index, size in enumerate(sizes):
        chosen = list(range(size)) if size <= max(every_coordinate_up_to, random) else [-1] * random
        leaf += [index] * len(chosen)
        coordinate += chosen
    return Directions(np.asarray(leaf, np.int32), np.asarray(coordinate, np.int32))


def along(
    directions: Directions,
    point: list[Array],
    seed: Seed,
    one: Callable[[list[Array], Array, Array], PyTree],
) -> PyTree:
    """`one(d, leaf, number)` for each direction: d is a list of arrays like `point`, zero but in one leaf.

    A loop in one program, so that its size does not depend on the number of directions; the results are
    stacked along a first axis. `number` is another one for each direction, to draw more from.
    """
    sizes = np.array([leaf.size for leaf in point])
    ends = np.cumsum(sizes)
    starts = jnp.asarray(ends - sizes)
    position = jnp.arange(ends[-1])

    def at(direction):
        leaf, coordinate, number = direction
        start = starts[leaf]
        inside = (position >= start) & (position < jnp.asarray(ends)[leaf])
        signs = random_signs(position.shape, number)
        flat = jnp.where(coordinate < 0, inside * signs, position == start + coordinate)
        parts = jnp.split(flat, ends[:-1])
        d = [p.reshape(x.shape).astype(x.dtype) for p, x in zip(parts, point, strict=True)]
        return one(d, leaf, number)

    numbers = jnp.arange(directions.leaf.shape[0], dtype=jnp.uint32)
    numbers = numbers + jnp.uint32(1_000_003) * jnp.asarray(seed, jnp.uint32)
    return jax.lax.map(at, (jnp.asarray(directions.leaf), jnp.asarray(directions.coordinate), numbers))
