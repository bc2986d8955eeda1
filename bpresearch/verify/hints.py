"""What a wrong gradient looks like: mistakes that leave a shape in the error.

Each hint is one sentence, given only where it explains the error to the last digits. Several mistakes can
leave the same shape; a hint says what to look at first, not what is proven.
"""

import numpy as np

TOLERANCE = 1e-6


def hint(found: np.ndarray, expected: np.ndarray, batch: int | None = None) -> str:
    """One sentence on the shape of the error, or an empty string where it has none that is known.

    Args:
        found: the gradient in question.
        expected: the right one.
        batch: number of examples, to tell a factor that is the batch size from any other.
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    largest = np.max(np.abs(expected), initial=0.0)
    if found.shape != expected.shape or found.size == 0 or largest == 0:
        return ""
    if not np.isfinite(found).all():
        return f"{int((~np.isfinite(found)).sum())} of {found.size} elements are not finite"
    if not found.any():
        return "it is zero everywhere"

    def close(a, b):
        return a.shape == b.shape and np.max(np.abs(a - b), initial=0.0) <= TOLERANCE * largest

    wrong = np.abs(found - expected) > TOLERANCE * largest
    if not wrong.any():
        return ""
    ratio = float(np.vdot(expected, found) / np.vdot(expected, expected))
    if abs(ratio) > TOLERANCE and close(found, ratio * expected):
        return _factor(ratio, batch)
    if found.ndim == 2 and found.shape[0] == found.shape[1] and close(found, expected.T):
        return "it equals the transpose of the right one"
    for axis in range(found.ndim):
        if found.shape[axis] > 1 and close(found, np.flip(expected, axis)):
            return f"it is the right one reversed along axis {axis}"
    return _which_elements(found, expected, wrong)


def is_conjugate(found: np.ndarray, expected: np.ndarray) -> bool:
    """Of complex arrays as pairs of real numbers."""
    size = TOLERANCE * np.max(np.abs(expected), initial=0.0)
    conjugate = expected * np.array([1.0, -1.0])
    return bool(np.max(np.abs(found - conjugate), initial=0.0) <= size < np.max(np.abs(found - expected)))


def _factor(ratio: float, batch: int | None) -> str:
    if abs(ratio + 1) <= TOLERANCE:
        return "its sign is wrong at every element"
    for factor, relation in ((ratio, "multiplied"), (1 / ratio, "divided")):
        whole = round(factor)
        if abs(factor - whole) <= TOLERANCE * abs(factor) and abs(whole) > 1:
            of = ", the batch size: a sum where a mean belongs, or the reverse" if whole == batch else ""
            return f"every element is the right one {relation} by {whole}{of}"
    return f"every element is {ratio:.6g} times the right one"


def _which_elements(gradient: np.ndarray, expected: np.ndarray, wrong: np.ndarray) -> str:
    count = int(wrong.sum())
    where = np.argwhere(wrong)
    if count == 1:
        index = tuple(int(i) for i in where[0])
        return f"only the element at {index} is wrong"
    if not gradient[wrong].any() and count < gradient.size:
        return f"{count} of {gradient.size} elements are zero and should not be"
    if np.max(np.abs(gradient[wrong] + expected[wrong])) <= TOLERANCE * np.max(np.abs(expected)):
        return f"the sign of {count} of {gradient.size} elements is wrong"
    for axis in range(gradient.ndim):
        slices = np.unique(where[:, axis])
        if gradient.shape[axis] > 1 and slices.size == 1:
            return f"only what has index {int(slices[0])} along axis {axis} is wrong"
    rows = np.unique(where[:, 0]) if gradient.ndim > 1 else np.zeros(0, int)
    if 0 < rows.size <= min(8, gradient.shape[0] // 2) and wrong[rows].mean() > 0.9:
        return f"only rows {', '.join(map(str, rows))} of {gradient.shape[0]} are wrong"
    if count <= gradient.size // 2:
        return f"{count} of {gradient.size} elements are wrong"
    return ""


def cotangent_hint(found: np.ndarray, expected: np.ndarray, y_bar: np.ndarray) -> str:
    """What to say of a layer's x_bar beyond `hint`: y_bar handed on unchanged."""
    same = found.shape == y_bar.shape
    if same and np.allclose(found, y_bar, TOLERANCE, 0) and not np.allclose(expected, y_bar, TOLERANCE, 0):
        return "it equals y_bar: the layer's own derivative is missing"
    return ""
