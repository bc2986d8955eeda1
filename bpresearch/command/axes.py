"""How a flag's text becomes values: one, many, or a distribution to draw them from."""

import math
from typing import Any

import numpy as np
from absl import flags

from bpresearch.distribution import NoDistributionError, Uniform

FLAGS = flags.FLAGS

DISTRIBUTIONS = ("uniform:", "loguniform:")
MOST_VALUES = 1_000_000
"""Of a range."""


class TooManyError(ValueError):
    """A range has more values than a sweep can have runs."""


def _few(flag: str, text: str, count: int) -> None:
    if count > MOST_VALUES:
        raise TooManyError(
            f"--{flag}={text}: has {count:,} values, each a run or more: takes at most {MOST_VALUES:,}"
        )


def values(flag: str, text: str, kind: type = float) -> list[Any]:
    """The values of an axis, from what the user wrote.

    `0.01,0.1` is a list, `linspace:0:1:5` and `logspace:1e-3:1:7` are ranges with both ends, `0:5` is the
    integers 0 to 4 (`2:10:2` with a step). To draw from: `uniform:0:1`, `loguniform:1e-4:1` (the logarithm
    is uniform; both of integers where the flag takes integers), and `choice:0.1,1`, any of the forms above.

    Raises:
        ValueError: the text is empty or not of these forms, or a value occurs twice, or there are more than
            `MOST_VALUES`; names the flag.
    """
    text = text.strip()
    example = {int: "3, 0,1,2 or 0:5", float: "0.1, 0.01,0.1 or logspace:1e-3:1:7"}.get(kind, "a,b")
    if not text:
        raise ValueError(f"--{flag}= is empty: give one value or many, such as {example}")
    text = text.removeprefix("choice:")
    try:
        if kind is not str and text.startswith(DISTRIBUTIONS):
            name, low, high = text.split(":")
            axis: list[Any] = [Uniform(kind(low), kind(high), log=name == "loguniform")]
        elif kind is not str and text.startswith(("linspace:", "logspace:")):
            name, low, high, count = text.split(":")
            _few(flag, text, int(count))
            space = np.linspace if name == "linspace" else np.geomspace
            axis = [
                kind(round(v, 12) if kind is int else v) for v in space(float(low), float(high), int(count))
            ]
            axis = [float(f"{v:.12g}") for v in axis] if kind is float else axis
        elif kind is int and ":" in text:
            first, last, *step = (int(part) for part in text.split(":"))
            _few(flag, text, (last - first) // (step[0] if step else 1))
            axis = list(range(first, last, *step))
        else:
            axis = [kind(part.strip()) for part in text.split(",")]
    except TooManyError:
        raise
    except NoDistributionError as error:
        raise ValueError(f"--{flag}={text}: {error}") from error
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(
            f"--{flag}={text}: cannot read it; give one value or many, such as {example}"
        ) from error
    if not axis or (kind is str and "" in axis):
        raise ValueError(f"--{flag}={text} holds no value or an empty one: give {example}")
    if len(set(axis)) < len(axis):
        raise ValueError(f"--{flag}={text} holds a value twice")
    return axis


def numbers(
    flag: str, text: str, kind: type = float, *, low: float | int, high: float | int = math.inf
) -> list[Any]:
    """`values` that are numbers with low <= value < high; a zero has no sign."""
    axis = values(flag, text, kind)
    for value in axis:
        for end in value.ends if isinstance(value, Uniform) else [value]:
            if end == 0 and math.copysign(1, end) < 0:
                raise ValueError(f"--{flag}={end}: a zero has no sign: write 0")
            if not (math.isfinite(end) and low <= end < high):
                below = "" if high == math.inf else f" and below {high:g}"
                least = "finite values" if low == -math.inf else f"values of at least {low:g}{below}"
                raise ValueError(f"--{flag}={end}: takes {least}")
    return axis


def sizes(flag: str) -> list[int]:
    """The positive integers that a flag lists."""
    try:
        integers = [int(part) for part in getattr(FLAGS, flag).split(",")]
    except ValueError:
        integers = [0]
    if min(integers) < 1:
        raise ValueError(f"--{flag}={getattr(FLAGS, flag)}: takes positive integers, such as 100,100")
    return integers


def positive(flag: str, low: int = 1) -> int:
    """The integer of a flag, at least `low`."""
    if getattr(FLAGS, flag) < low:
        raise ValueError(f"--{flag}={getattr(FLAGS, flag)}: takes an integer of at least {low}")
    return getattr(FLAGS, flag)
