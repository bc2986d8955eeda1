"""From axes to runs."""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

from bpresearch.distribution import Uniform
from bpresearch.sweep.options import Settings, inputs_of, scheduled, taken

Axes = dict[str, list[Any]]


class Every(list[Any]):
    """Values of an axis that a search trains all of in each trial, which is judged by the best of them.

    So a sampler searches the other axes with this one factored out: a schedule's shape, say, at the base
    learning rate that is best for it.
    """


def grid(**axes: Any) -> Axes:
    """The axes of a sweep: each keyword is a hyper-parameter with one value or many.

    >>> grid(lr=[0.1, 0.01], seed=range(2))
    {'lr': [0.1, 0.01], 'seed': [0, 1]}

    Args:
        **axes: `optimizer` (functions as in `bpresearch.optim`), `schedule` (functions as in
            `bpresearch.optim.schedules`), `lr`, `batch_size`, `seed` and any hyper-parameter of the
            optimizers, such as `momentum`, or its schedule, such as `momentum_schedule`; `model` (functions
            as in `bpresearch.models`) and any option of the models, such as `width`, or of the schedules,
            such as `factor`; `steps`, `warmup`, `precision`, `gradient`. A tuple is one value, as in
            `widths=[(50,), (100, 100)]`. Options with a name that two of them have, or that is one of the
            axes above, are written with what they belong to: `**{"model.steps": 3}`.

    Raises:
        ValueError: an axis has no value, or one twice.
    """
    listed = {}
    for name, values in axes.items():
        many = isinstance(values, Iterable) and not isinstance(values, str | tuple)
        listed[name] = values if isinstance(values, Every) else list(values) if many else [values]
        if not listed[name]:
            raise ValueError(f"axis {name} has no value")
        if len({repr(value) for value in listed[name]}) < len(listed[name]):
            raise ValueError(f"axis {name} holds a value twice: {listed[name]}")
    return listed


def expand(axes: Axes, model: Callable[..., object]) -> list[Settings]:
    """Every combination of the axes' values, each combination once.

    What an optimizer or a model does not take is NaN in its runs, and does not multiply them.
    Runs that one program can train together stand together.

    Args:
        axes: as `grid` gives them.
        model: the model of the runs, unless `model` is an axis.
    """
    names = list(axes)
    runs: dict[tuple[str, ...], Settings] = {}
    for settings in product(axes):
        concerned = taken(settings, model, names)
        settings = {name: value if name in concerned else math.nan for name, value in settings.items()}
        runs.setdefault(tuple(repr(value) for value in settings.values()), settings)
    return [settings for group in groups(list(runs.values())) for settings in group]


def first_values(axes: Axes) -> Settings:
    """The first value on each axis, of a distribution its lower end: a run as the sweep's runs are.

    >>> first_values({"lr": [0.1, 0.01], "width": [bp.sweep.Uniform(8, 64)]})
    {'lr': 0.1, 'width': 8}
    """
    first = {name: values[0] for name, values in axes.items()}
    return {name: value.low if isinstance(value, Uniform) else value for name, value in first.items()}


def product(axes: Axes) -> list[Settings]:
    """Every combination of the axes' values."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def groups(runs: list[Settings]) -> list[list[Settings]]:
    """The runs in groups that one program can train, in the order of each group's first run."""
    members: dict[tuple[object, ...], list[Settings]] = {}
    for settings in runs:
        members.setdefault(group_of(settings), []).append(settings)
    return list(members.values())


def group_of(settings: Settings) -> tuple[object, ...]:
    """What splits a sweep into programs: all settings but those that are a program's inputs."""
    inputs = inputs_of(settings)
    left = {name: value for name, value in settings.items() if name not in inputs}
    return (*scheduled(settings), *((name, repr(value)) for name, value in sorted(left.items())))
