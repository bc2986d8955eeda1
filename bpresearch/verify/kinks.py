"""Kinks: points such as ReLU's zero, where the derivatives to the right and to the left differ.

There is no derivative there, and any value between the two is one that a rule may choose (an element of
Clarke's generalised gradient, 1975). So both are measured, and a value between them is right. Autodiff itself
can be wrong at single points, where a function is written with a condition (the derivative of
`logsumexp(a, b=b)` with respect to b where b is 0); then the differences side with the rule.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpresearch.verify.comparison import SAFETY, resolution
from bpresearch.verify.directions import Directions
from bpresearch.verify.finite_differences import directional_derivatives
from bpresearch.verify.plain import HeldInLoopError
from bpresearch.verify.precision import compiled


def at_kinks(found: dict[str, np.ndarray], scale: float, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """In which directions the point is at a kink, and how far outside of both sides the prediction lies.

    Args:
        found: what `directional_derivatives` returns.
        scale: what the second answer, zero between the sides, is relative to.
        eps: machine precision of the values.
    """
    sharpest, _ = resolution(eps)
    right, left, predicted = (found[name] / scale for name in ("right", "left", "predicted"))
    doubt = np.maximum(found["side_uncertainty"], found["uncertainty"]) / scale
    kink = np.abs(right - left) > np.maximum(sharpest, SAFETY * doubt)
    outside = np.maximum(predicted - np.maximum(left, right), np.minimum(left, right) - predicted)
    return kink, np.maximum(outside, 0.0)


@lru_cache(maxsize=64)
def _differences(function: Callable[..., Array]) -> Any:
    def program(point, found, directions, others):
        return directional_derivatives(
            lambda point: function(point, *others), point, found, directions, together=False
        )

    return compiled(program)


BETWEEN, AUTODIFF_WRONG = "between both sides of a kink", "autodiff is wrong"


def excuse(
    function: Callable[..., Array],
    point: list[Array],
    found: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    tolerance: float,
    others: tuple[Any, ...] = (),
    at_most: int = 256,
) -> str:
    """Why a gradient that differs from autodiff's may be right all the same, by finite differences.

    Args:
        function: a scalar function of a list of arrays, and of `others`; compiled for the first time only.
        point: where the gradients were taken.
        found: the gradient in question.
        expected: autodiff's.
        tolerance: relative to the norm of the leaf, from which on an element counts as different.
        others: further arguments.
        at_most: how many elements are looked at; if more differ, there is no excuse.

    Returns:
        `BETWEEN` where the function has a kink at every element that differs, and `found` lies between both
        sides; `AUTODIFF_WRONG` where at some of them, and without a kink, the differences agree with `found`
        and exclude `expected`; else "".
    """
    leaf, coordinate, right = [], [], []
    for index, (f, e) in enumerate(zip(found, expected, strict=True)):
        different = np.flatnonzero(~(np.abs(f - e) <= tolerance * max(np.linalg.norm(e), np.linalg.norm(f))))
        leaf += [index] * different.size
        coordinate += different.tolist()
        right += np.ravel(e)[different].tolist()
    if not 0 < len(leaf) <= at_most or not all(np.isfinite(f).all() for f in found):
        return ""
    # Rounded up to a power of two, so that one program serves many.
    count = 2 ** max(4, math.ceil(math.log2(len(leaf))))
    directions = Directions(
        np.resize(np.asarray(leaf, np.int32), count), np.resize(np.asarray(coordinate, np.int32), count)
    )
    arguments = (point, [jnp.asarray(f) for f in found], directions, others)
    try:
        answer = jax.device_get(_differences(function)(*arguments))
    except HeldInLoopError:  # what the two sides are cannot be measured
        return ""
    norm = max(np.linalg.norm(np.nan_to_num(f)) for f in (*found, *expected))
    eps = float(jnp.finfo(point[0].dtype).eps)
    kink, outside = at_kinks(answer, float(norm), eps)
    between = kink & (outside <= SAFETY * resolution(eps)[0])
    doubt = np.maximum(resolution(eps)[0] * norm, SAFETY * answer["uncertainty"])
    agrees = np.abs(answer["estimate"] - answer["predicted"]) <= doubt
    excludes = ~(np.abs(answer["estimate"] - np.resize(right, count)) <= SAFETY * doubt)
    if between.all():
        return BETWEEN
    return AUTODIFF_WRONG if (between | (~kink & agrees & excludes)).all() else ""
