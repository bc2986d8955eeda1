"""From axes to runs."""

import inspect
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bpresearch.optim import hyperparameters

Axes = dict[str, list[Any]]
Settings = dict[str, Any]
"""One run's value on every axis; NaN on the axes that its optimizer or model does not take."""

OWN_AXES = ("optimizer", "schedule", "lr", "batch_size", "seed")
"""What every run has; any other axis is `model`, an option of a model, a hyper-parameter of an optimizer, the
schedule of one, such as `momentum_schedule`, or `warmup`, the part of a run in which the learning rate rises
before its schedule begins."""


def grid(**axes: Any) -> Axes:
    """The axes of a sweep: each keyword is a hyper-parameter with one value or many.

    >>> grid(lr=[0.1, 0.01], seed=range(2))
    {'lr': [0.1, 0.01], 'seed': [0, 1]}

    Args:
        **axes: `optimizer` (functions as in `bpresearch.optim`), `schedule` (functions as in
            `bpresearch.optim.schedules`), `lr`, `batch_size`, `seed` and any hyper-parameter of the
            optimizers, such as `momentum`, or its schedule, such as `momentum_schedule`; `model` (functions
            as in `bpresearch.models`) and any option of the models, such as `width`. A tuple is one value,
            as in `widths=[(50,), (100, 100)]`.

    Raises:
        ValueError: an axis has no value, or one twice.
    """
    listed = {}
    for name, found in axes.items():
        many = isinstance(found, Iterable) and not isinstance(found, str | tuple)
        listed[name] = list(found) if many else [found]
        if not listed[name]:
            raise ValueError(f"axis {name} has no value")
        if any(listed[name].count(value) > 1 for value in listed[name]):
            raise ValueError(f"axis {name} holds a value twice: {listed[name]}")
    return listed


def model_options(model: Callable[..., Any]) -> tuple[str, ...]:
    """The options of a model's function: what it takes beside the shapes and the source of its weights."""
    names = inspect.signature(model).parameters
    return tuple(name for name in names if name not in ("input_shape", "outputs", "rngs"))


def expand(axes: Axes, model: Callable[..., Any]) -> list[Settings]:
    """Every combination of the axes' values, each combination once.

    What an optimizer or a model does not take is NaN in its runs, and does not multiply them.
    Runs that one program can train together stand together.

    Args:
        axes: as `grid` gives them.
        model: the model of the runs, unless `model` is an axis.
    """
    names = list(axes)
    runs: dict[tuple[str, ...], Settings] = {}
    for combination in itertools.product(*axes.values()):
        settings = dict(zip(names, combination, strict=True))
        concerned = taken(settings, model, names)
        settings = {name: value if name in concerned else math.nan for name, value in settings.items()}
        runs.setdefault(tuple(repr(value) for value in settings.values()), settings)
    return [settings for group in groups(list(runs.values())) for settings in group]


def taken(settings: Settings, model: Callable[..., Any], axes: Iterable[str]) -> set[str]:
    """Those of the axes that concern a run with these settings: its own, its optimizer's and its model's."""
    known = {*OWN_AXES, "model", "warmup", *hyperparameters(settings["optimizer"])}
    known |= {*model_options(settings.get("model", model))}
    return {name for name in axes if name in known or name.removesuffix("_schedule") in known}


def groups(runs: list[Settings]) -> list[list[Settings]]:
    """The runs in groups that one program can train, in the order of each group's first run."""
    found: dict[tuple[Any, ...], list[Settings]] = {}
    for settings in runs:
        found.setdefault(group_of(settings), []).append(settings)
    return list(found.values())


def group_of(settings: Settings) -> tuple[Any, ...]:
    """What splits a sweep into programs: all settings but those that are a program's inputs."""
    inputs = {"lr", "schedule", "warmup", "seed", *constants(settings)}
    for name in scheduled(settings):
        inputs |= {name, f"{name}_schedule"}
    left = {name: value for name, value in settings.items() if name not in inputs}
    return (*scheduled(settings), *((name, repr(value)) for name, value in sorted(left.items())))


def scheduled(settings: Settings) -> list[str]:
    """The hyper-parameters that have a value for each step: `learning_rate`, and any `x` whose settings
    hold an `x_schedule`, a function as in `bpresearch.optim.schedules`."""
    names = hyperparameters(settings["optimizer"])
    return ["learning_rate", *(name for name in names if callable(settings.get(f"{name}_schedule")))]


def constants(settings: Settings) -> list[str]:
    """The optimizer's other hyper-parameters that are inputs of a program: those that are real numbers,
    and the seed if it takes one."""
    names = hyperparameters(settings["optimizer"])
    real = [n for n in names if n == "seed" or isinstance(settings.get(n), float | np.floating)]
    return [name for name in real if name not in scheduled(settings)]


def structural(settings: Settings) -> Settings:
    """The optimizer's hyper-parameters that a program is compiled for: integers, flags, text, functions."""
    names = hyperparameters(settings["optimizer"])
    inputs = {*scheduled(settings), *constants(settings)}
    return {name: settings[name] for name in names if name in settings and name not in inputs}
