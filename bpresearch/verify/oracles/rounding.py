"""Is the arithmetic sound in the working precision?

A gradient in float32 or bfloat16 is never right to the last digit, and how far off it may be depends on
the function, its data and its size. So the yardstick is autodiff's own rounding error in the same precision:

    ratio = |derivative - g| / max(|autodiff - g|, spread of autodiff, eps |g| / 4),

where g is the float64 gradient at the same (rounded) point and |.| the norm over a leaf. The spread, measured
by random rounding where the first and third do not suffice, is what autodiff's error might have been: the one
error that is seen may be small by luck. A derivative written with care stays within a few times that; one
that cancels catastrophically does not.

A function is asked with several cotangents, whose errors are taken together, so that luck is rare. In types
narrower than float32 that is all: XLA adds up in float32 there and rounds once (measured: sums of 3,000
numbers are off by less than one last place), so that the spread of a sum of its length is no excuse.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from bpresearch.verify.precision import random_like
from bpresearch.verify.question import NotAskedError, Question, first_line
from bpresearch.verify.report import Row
from bpresearch.verify.spread import Spreads

name = "rounding"

LARGEST_RATIO = 8.0
"""Correct hand-written gradients of 60 random networks (482 leaves) stayed below 2.1 in float32 and 3.5 in
bfloat16."""

Gradients = Sequence[np.ndarray]


def ratio_rows(
    names: Sequence[str],
    found: Gradients,
    autodiff: Gradients,
    exact: Gradients,
    spreads: Callable[[], Gradients],
    dtypes: Sequence[jax.typing.DTypeLike],
) -> list[Row]:
    """A row for each leaf; undecided where autodiff itself is not finite.

    Args:
        names: of the leaves.
        found: the derivative in question, computed in the working precision.
        autodiff: the same by autodiff.
        exact: in float64.
        spreads: measures the spread of autodiff's, element by element.
        dtypes: the working precision of each leaf.
    """
    rows, measured = [], None
    for index, (path, dtype) in enumerate(zip(names, dtypes, strict=True)):
        f, a, g = (np.asarray(leaf[index]).astype(np.float64) for leaf in (found, autodiff, exact))
        detail = f"times autodiff's own error in {jnp.dtype(dtype)}"
        if not (np.isfinite(a).all() and np.isfinite(g).all()):
            detail = f"autodiff is not finite in {jnp.dtype(dtype)}"
            rows.append(Row(path, g.shape, name, np.nan, LARGEST_RATIO, None, detail))
            continue
        error = float(np.linalg.norm(f - g)) if np.isfinite(f).all() else np.inf
        least = 0.25 * float(jnp.finfo(dtype).eps) * float(np.linalg.norm(g))
        yardstick = max(float(np.linalg.norm(a - g)), least)
        if error > LARGEST_RATIO * yardstick:
            measured = spreads() if measured is None else measured
            size = np.where(np.isfinite(measured[index]), measured[index], 0.0)
            yardstick = max(yardstick, float(np.linalg.norm(size)))
        ratio = error / yardstick if yardstick > 0 else 0.0 if error == 0 else np.inf
        rows.append(Row(path, g.shape, name, ratio, LARGEST_RATIO, bool(ratio <= LARGEST_RATIO), detail))
    return rows


def undecided_at_kinks(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """Autodiff's error is no yardstick for a leaf that rightly takes another derivative at a kink."""
    at_kinks = {row.path for row in others if row.oracle == "kinks" and row.passed}
    why = "at a kink another derivative than autodiff's is right"
    return [
        replace(row, passed=None, detail=why) if row.passed is False and row.path in at_kinks else row
        for row in rows
    ]


COTANGENTS = 8
"""How many a function is asked with."""


def of_function(question: Question, dtypes: Sequence[jax.typing.DTypeLike]) -> list[Row]:
    """The rows of a function that was checked in float64, in the precision in which its arguments came.

    Raises:
        NotAskedError: they are float64, there is no twin, or the function cannot be computed so.
    """
    derivative = question.derivative
    if all(jnp.finfo(dtype).bits > 32 for dtype in dtypes):
        raise NotAskedError("the arguments are float64")
    derivative.independent()
    point = [np.asarray(x).astype(dtype) for x, dtype in zip(question.point, dtypes, strict=True)]
    wide = [jnp.asarray(x, jnp.float64) for x in point]  # rounded first, so that both see the same numbers

    def both(point, y_bar):
        outputs = jax.eval_shape(lambda point: derivative.apply(point, question.others), point)
        bar = [b.astype(o.dtype) for b, o in zip(y_bar, outputs, strict=True)]
        return (
            derivative.gradient(point, question.others, bar),
            derivative.expected(point, question.others, bar),
        )

    # Exact in every precision.
    y_bars = [
        [bar.astype(jnp.bfloat16).astype(np.float32) for bar in map(np.asarray, cotangent)]
        for cotangent in (
            question.y_bars[0],
            *(random_like(question.y_bars[0], 2 * question.seed + i) for i in range(2, COTANGENTS + 1)),
        )
    ]
    try:
        in_float64 = derivative.program("rounding in float64", lambda: both)
        exact = [jax.device_get(in_float64(wide, y_bar))[1] for y_bar in y_bars]
        # As users run it: a stray 64-bit constant would raise the precision, and is cut down in silence.
        with jax.enable_x64(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            in_own = derivative.program("rounding", lambda: both)
            gradients, own = zip(*(jax.device_get(in_own(point, y_bar)) for y_bar in y_bars), strict=True)
    except Exception as error:  # any reason of the function's own
        raise NotAskedError(first_line(error)) from error

    def spreads():
        if all(jnp.finfo(dtype).bits < 32 for dtype in dtypes):
            return [np.zeros(x.shape) for x in point]
        with jax.enable_x64(False):
            measure = Spreads(lambda point, y_bar: both(point, y_bar)[1])
            sizes = [measure((point, y_bar), 2).sizes for y_bar in y_bars]
        return [
            size * (jnp.finfo(dtype).bits >= 32) for size, dtype in zip(_stacked(sizes), dtypes, strict=True)
        ]

    rows = ratio_rows(question.names, _stacked(gradients), _stacked(own), _stacked(exact), spreads, dtypes)
    return [replace(row, shape=question.shape(leaf)) for leaf, row in enumerate(rows)]


def _stacked(gradients: Sequence[Gradients]) -> Gradients:
    """Leaf by leaf, those of all cotangents."""
    return [
        np.stack([np.asarray(leaf).astype(np.float64) for leaf in leaves])
        for leaves in zip(*gradients, strict=True)
    ]
