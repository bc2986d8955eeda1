"""Comparing arrays that should be equal, in relative terms, with regard to what rounding can do."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from bpresearch.verify.precision import is_floating

MATHEMATICS = 1e-10
"""Largest relative error, in float64, between two correct ways to compute the same derivative."""


def tolerance_in(eps: float) -> float:
    """The same in a precision with machine epsilon `eps`: 1e-10 in float64, 1e4 eps in shorter formats."""
    return MATHEMATICS if eps <= np.finfo(np.float64).eps else min(1e4 * eps, 0.05)


SAFETY = 10.0
"""A difference from the estimate is an error when it is this many times the estimate's uncertainty."""

SHARPEST = 1e-7
"""The smallest relative error that this oracle is asked to see, in float64."""

BLUNTEST = 1e-4
"""The largest relative uncertainty with which it still gives a verdict, in float64."""


def resolution(eps: float) -> tuple[float, float]:
    """The smallest error asked for and the largest uncertainty borne, in a precision, as eps^(2/3)."""
    coarser = (eps / np.finfo(np.float64).eps) ** (2 / 3)
    return min(SHARPEST * coarser, 1e-2), min(BLUNTEST * coarser, 3e-2)


@dataclass(frozen=True)
class Comparison:
    """A relative error, and the element where it is largest with its two values."""

    error: float
    worst: tuple[tuple[int, ...], float, float] | None = None


def compare(
    found: Float[np.ndarray, "*shape"],
    expected: Float[np.ndarray, "*shape"],
    noise: float = 0.0,
    largest: float = 0.0,
    tolerance: float = MATHEMATICS,
) -> Comparison:
    """max |found - expected| relative to max |expected|.

    A derivative that is zero in exact arithmetic (of a bias in front of a normalisation, say) is pure
    rounding noise in both, and relative to itself it is all wrong. So the error is relative to at least
    what makes ten times `noise` an error of `tolerance`, as long as that is not above `largest`:

        scale = max(max |expected|, min(10 noise / tolerance, largest))

    Args:
        found: the values in question.
        expected: the reference.
        noise: how far rounding the arguments moves the reference, see `precision.rounding_noise`.
        largest: magnitude of the largest related derivative; noise can be no excuse beyond it.
        tolerance: the relative error that will be allowed.
    """
    if found.size == 0:
        return Comparison(0.0)
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    difference = np.where(same, 0.0, np.abs(found - expected))
    difference = np.where(np.isnan(difference), np.inf, difference)
    index = tuple(int(i) for i in np.unravel_index(np.argmax(difference), found.shape))
    worst = (index, float(found[index]), float(expected[index]))
    finite = np.abs(expected[np.isfinite(expected)])
    scale = max(np.max(finite, initial=0.0), min(10 * noise / tolerance, largest))
    if difference[index] == 0:
        return Comparison(0.0, worst)
    return Comparison(float(difference[index] / scale) if scale > 0 else float("inf"), worst)


def largest_error(
    found: Any, expected: Any, noise: Any = 0.0, tolerance: float = MATHEMATICS, largest: float = 0.0
) -> float:
    """The largest relative error, as `compare` gives it, of any floating-point leaf of two trees.

    Args:
        found: the values in question.
        expected: a tree of the same structure.
        noise: how far rounding moves each leaf: a tree of numbers of that structure, or one number for all.
            No leaf is excused by it beyond the largest leaf.
        tolerance: the relative error that will be allowed.
        largest: magnitude of the largest related derivative, if it is not a leaf of these.
    """
    structure = jax.tree.structure(expected)
    noises = [noise] * structure.num_leaves if np.isscalar(noise) else structure.flatten_up_to(noise)
    rows = [
        (np.asarray(f), np.asarray(e), float(n))
        for f, e, n in zip(structure.flatten_up_to(found), jax.tree.leaves(expected), noises, strict=True)
        if is_floating(e)
    ]
    largest = max(largest, *(magnitude(e) for _, e, _ in rows), 0.0)
    return max((compare(f, e, n, largest, tolerance).error for f, e, n in rows), default=0.0)


def magnitude(leaf: Any) -> float:
    """The largest finite magnitude of a floating-point array; 0 of anything else."""
    if leaf is None or not is_floating(leaf):
        return 0.0
    values = np.abs(np.asarray(leaf, np.float64))
    return float(np.max(values[np.isfinite(values)], initial=0.0))
