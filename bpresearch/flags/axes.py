"""How a flag's text becomes values: one or many."""

import math
from typing import Any

import numpy as np
from absl import flags

FLAGS = flags.FLAGS


def values(flag: str, text: str, kind: type = float) -> list[Any]:
    """The values of an axis, from what the user wrote.

    `0.01,0.1` is a list, `linspace:0:1:5` and `logspace:1e-3:1:7` are ranges with both ends, `0:5` is the
    integers 0 to 4 (`2:10:2` with a step).

    Raises:
        ValueError: the text is empty or not of these forms, or a value occurs twice; names the flag.
    """
    text = text.strip()
    example = {int: "3, 0,1,2 or 0:5", float: "0.1, 0.01,0.1 or logspace:1e-3:1:7"}.get(kind, "a,b")
    if not text:
        raise ValueError(f"--{flag}= is empty: give one value or many, such as {example}")
    try:
        if kind is not str and text.startswith(("linspace:", "logspace:")):
            name, low, high, count = text.split(":")
            space = np.linspace if name == "linspace" else np.geomspace
            found = [
                kind(round(v, 12) if kind is int else v) for v in space(float(low), float(high), int(count))
            ]
            found = [float(f"{v:.12g}") for v in found] if kind is float else found
        elif kind is int and ":" in text:
            found = list(range(*(int(part) for part in text.split(":"))))
        else:
            found = [kind(part.strip()) for part in text.split(",")]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"--{flag}={text}: cannot read it; give one value or many, such as {example}"
        ) from error
    if not found or (kind is str and "" in found):
        raise ValueError(f"--{flag}={text} holds no value or an empty one: give {example}")
    if len(set(found)) < len(found):
        raise ValueError(f"--{flag}={text} holds a value twice")
    return found


def numbers(
    flag: str, text: str, kind: type = float, *, low: float | int, high: float | int = math.inf
) -> list[Any]:
    """`values` that are numbers with low <= value < high."""
    found = values(flag, text, kind)
    for value in found:
        if not (math.isfinite(value) and low <= value < high):
            below = "" if high == math.inf else f" and below {high:g}"
            raise ValueError(f"--{flag}={value}: takes values of at least {low:g}{below}")
    return found


def sizes(flag: str) -> list[int]:
    """The positive integers that a flag lists."""
    try:
        found = [int(part) for part in getattr(FLAGS, flag).split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise ValueError(f"--{flag}={getattr(FLAGS, flag)}: takes positive integers, such as 100,100")
    return found


def positive(flag: str, low: int = 1) -> int:
    """The integer of a flag, at least `low`."""
    if getattr(FLAGS, flag) < low:
        raise ValueError(f"--{flag}={getattr(FLAGS, flag)}: takes an integer of at least {low}")
    return getattr(FLAGS, flag)
