"""From axes to runs."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

from bpresearch.optim import hyperparameters

Axes = dict[str, list[Any]]
Settings = dict[str, Any]
"""One run's value on every axis."""

OWN_AXES = ("optimizer", "schedule", "lr", "batch_size", "seed")
"""What every run has; any other axis is a hyper-parameter of the optimizers that take it."""


def grid(**axes: Any) -> Axes:
    """The axes of a sweep: each keyword is a hyper-parameter with one value or many.

    >>> grid(lr=[0.1, 0.01], seed=range(2))
    {'lr': [0.1, 0.01], 'seed': [0, 1]}

    Args:
        **axes: `optimizer` (functions as in `bpresearch.optim`), `schedule` (functions as in
            `bpresearch.optim.schedules`), `lr`, `batch_size`, `seed` and any hyper-parameter of the
            optimizers, such as `momentum`.

    Raises:
        ValueError: an axis has no value, or one twice.
    """
    listed = {}
    for name, found in axes.items():
        many = isinstance(found, Iterable) and not isinstance(found, str)
        listed[name] = list(found) if many else [found]
        if not listed[name]:
            raise ValueError(f"axis {name} has no value")
        if any(listed[name].count(value) > 1 for value in listed[name]):
            raise ValueError(f"axis {name} holds a value twice: {listed[name]}")
    return listed


def expand(axes: Axes) -> list[Settings]:
    """Every combination of the axes' values, each combination once.

    A hyper-parameter that an optimizer does not take is NaN in its runs, and does not multiply them.
    Runs that one program can train together, those of one optimizer and batch size, stand together.
    """
    names = list(axes)
    runs: dict[tuple[str, ...], Settings] = {}
    for combination in itertools.product(*axes.values()):
        settings = dict(zip(names, combination, strict=True))
        taken = hyperparameters(settings["optimizer"])
        settings = {
            name: value if name in OWN_AXES or name in taken else math.nan for name, value in settings.items()
        }
        runs.setdefault(tuple(repr(value) for value in settings.values()), settings)
    groups: dict[tuple[Any, ...], list[Settings]] = {}
    for settings in runs.values():
        groups.setdefault(group_of(settings), []).append(settings)
    return [settings for group in groups.values() for settings in group]


def group_of(settings: Settings) -> tuple[Any, ...]:
    """What splits a sweep into programs: the optimizer's structure and the shapes."""
    return settings["optimizer"], settings["batch_size"]
