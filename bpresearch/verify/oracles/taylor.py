"""Taylor remainder: how fast the error of the linear approximation vanishes.

    T(h) = |f(t + h d) - f(t) - h <g, d>|      is O(h^2) if g is the gradient, and only O(h) if it is not.

The observed order is log(T(h) / T(h / 4)) / log 4 at the smallest steps whose remainder still stands out of
the rounding of f (Farrell, Ham, Funke and Rognes 2013 verify adjoints this way). A correct gradient shows 2
or more, a wrong one falls to 1.
"""

from collections.abc import Iterator

import numpy as np

from bpresearch.verify.ladder import STEPS
from bpresearch.verify.oracles.finite_differences import Measured, kinked, noise, scales
from bpresearch.verify.question import Question
from bpresearch.verify.verdict import Estimates

name = "taylor"

ORDER = 2.0
"""Of the remainder, where the gradient is right."""

SHORT = 0.1
"""By how much the observed order may fall short of it."""


def estimates(question: Question, measured: Measured) -> Iterator[Estimates]:
    """For each leaf the observed orders, which should be 2; silent where none can be seen."""
    kinks, sizes = kinked(question, measured), scales(question, measured)
    for leaf, path in enumerate(question.names):
        chosen = np.flatnonzero(question.directions.of(leaf) & ~kinks)
        orders = _orders(question, measured, chosen, sizes[leaf], 0.0)
        if any(order < ORDER - SHORT for order in orders):  # or is it rounding inside of the function?
            orders = _orders(question, measured, chosen, sizes[leaf], 30 * noise(question, 1)[0])
        known = [order for order in orders if not np.isnan(order)]
        lowest = min(known, default=np.inf)
        yield Estimates(
            name, path, question.shape(leaf), np.full(len(known), ORDER), np.minimum(known, ORDER),
            scale=1.0,
            agreement=SHORT,
            detail=f"order {lowest:.2f}",
            silent="" if known else "no order can be seen",
        )  # fmt: skip


def _orders(
    question: Question, measured: Measured, chosen: np.ndarray, scale: float, size: float
) -> list[float]:
    orders = []
    for k in chosen:
        steps = measured["scale"][k] * np.asarray(STEPS)
        seen = measured["above"][k], measured["here"][k], steps, measured["predicted"][k]
        orders.append(observed_order(*seen, scale, question.eps, size))
    return orders


def observed_order(
    above: np.ndarray,
    here: float,
    steps: np.ndarray,
    predicted: float,
    scale: float,
    eps: float,
    noise: float = 0.0,
) -> float:
    """The order of the remainder: infinite where none is left, NaN where no order can be seen.

    Args:
        above: f(t + h d) at each step, the largest step first, each a quarter of the one before.
        here: f(t).
        steps: h.
        predicted: <g, d>.
        scale: how large a directional derivative typically is; an error of a millionth of it is wrong.
        eps: machine precision of the values.
        noise: what rounding does to the values, if it is more than that says.
    """
    remainder = np.abs(above - here - steps * predicted)
    rounding = np.maximum(3000 * eps * np.maximum(np.abs(above), abs(here)), noise)
    visible = remainder > rounding
    if not np.isfinite(remainder).all():
        return np.nan
    first_hidden = int(np.argmin(visible)) if not visible.all() else visible.size
    if first_hidden < 3:  # the function is as good as linear, and the gradient its slope
        return np.inf if rounding[first_hidden] <= 1e-6 * scale * steps[first_hidden] else np.nan
    orders = np.log(remainder[: first_hidden - 1] / remainder[1:first_hidden]) / np.log(4)
    order = float(orders[-1])
    clear = order >= ORDER - SHORT or (abs(order - 1) <= 0.1 and abs(orders[-2] - 1) <= 0.3)
    return order if clear else np.nan
