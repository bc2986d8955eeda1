"""Taylor remainder: how fast the error of the linear approximation vanishes.

    T(h) = |f(t + h d) - f(t) - h <g, d>|      is O(h^2) if g is the gradient, and only O(h) if it is not.

The observed order is log(T(h) / T(h / 4)) / log 4 at the smallest steps whose remainder still stands out of
the rounding of f (Farrell, Ham, Funke and Rognes 2013 verify adjoints this way). A correct gradient shows 2
or more, a wrong one falls to 1.
"""

import numpy as np

ENOUGH = 1.9
"""The observed order that a correct gradient reaches."""


def observed_order(
    above: np.ndarray, here: float, steps: np.ndarray, predicted: float, scale: float, eps: float
) -> tuple[float, bool | None]:
    """The order of the remainder, infinite where none is left, and whether it is that of a gradient.

    Args:
        above: f(t + h d) at each step, the largest step first, each a quarter of the one before.
        here: f(t).
        steps: h.
        predicted: <g, d>.
        scale: how large a directional derivative typically is; an error of a millionth of it is wrong.
        eps: machine precision of the values.
    """
    remainder = np.abs(above - here - steps * predicted)
    rounding = 3000 * eps * np.maximum(np.abs(above), abs(here))
    visible = remainder > rounding
    if not np.isfinite(remainder).all():
        return float("nan"), False if not np.isfinite(predicted) else None
    first_hidden = int(np.argmin(visible)) if not visible.all() else visible.size
    if first_hidden < 3:  # the function is as good as linear, and the gradient its slope
        return float("inf"), True if rounding[first_hidden] <= 1e-6 * scale * steps[first_hidden] else None
    orders = np.log(remainder[: first_hidden - 1] / remainder[1:first_hidden]) / np.log(4)
    order = float(orders[-1])
    if order >= ENOUGH:
        return order, True
    return order, False if abs(order - 1) <= 0.1 and abs(orders[-2] - 1) <= 0.3 else None
