"""Which axes give which options: of the model, the optimizer and the schedules of a run.

An option is an axis of its own name, `width`, or of its full name, `model.width`, where others have one of
the same name, or where the name is an axis of every run.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from bpresearch.optim import hyperparameters

Settings = dict[str, Any]
"""One run's value on every axis; NaN on the axes that its optimizer, model or schedule does not take."""

OWN_AXES = ("optimizer", "schedule", "lr", "batch_size", "seed")
"""What every run has."""
OTHER_AXES = ("model", "warmup", "steps", "precision", "gradient")
"""What any run can have: `warmup` is the part of a run in which the learning rate rises before its schedule
begins, `precision` the name of a format, `gradient` an engine's gradient function."""
COMMON = (*OWN_AXES, *OTHER_AXES)
GIVEN = ("input_shape", "outputs", "rngs")
"""What a model's function is given if it takes it; its other parameters are its options."""
SETTLED = ("seed", "steps")
"""Hyper-parameters of optimizers that a run settles: its seed, and how long it is."""


def arguments(function: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function, or of what makes an object of a class: Flax's classes hide those."""
    if not isinstance(function, type):
        return inspect.signature(function).parameters
    return dict(list(inspect.signature(function.__init__).parameters.items())[1:])  # type: ignore[misc]


@functools.cache
def parameters(kind: str, function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """The options of a model's, optimizer's or schedule's function, by name.

    >>> list(parameters("model", bp.models.residual_mlp))
    ['width', 'depth', 'activation', 'initialization']
    >>> list(parameters("schedule", bp.optim.schedules.step))
    ['factor']

    Args:
        kind: "model", "optimizer", or "schedule", or the schedule of something.
        function: as in `bpresearch.models`, `bpresearch.optim` and `bpresearch.optim.schedules`.
    """
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {name: p for name, p in arguments(function).items() if p.kind not in several}
    if kind == "model":
        return {name: p for name, p in named.items() if name not in GIVEN}
    if kind == "optimizer":
        return {name: named[name] for name in hyperparameters(function) if name in named}
    return dict(list(named.items())[1:])


def kinds(axes: Iterable[str]) -> list[str]:
    """What has options: the model, the optimizer, the schedule, and the schedules of hyper-parameters."""
    scheduled = [axis for axis in axes if axis.endswith("_schedule") and "." not in axis]
    return ["model", "optimizer", "schedule", *scheduled]


def axis_of(kind: str, option: str, axes: Iterable[str]) -> str | None:
    """The axis that gives an option, or None."""
    full = f"{kind}.{option}"
    if full in axes:
        return full
    short = option in axes and option not in COMMON and not kind.endswith("_schedule")
    return option if short else None


def chosen(kind: str, settings: Settings, function: Callable[..., object]) -> Settings:
    """A run's options of its model, optimizer or schedule, but for those that are left at their defaults."""
    options = {}
    for option in parameters(kind, function):
        axis = axis_of(kind, option, settings)
        if axis and not _missing(settings[axis]):
            options[option] = settings[axis]
    return options


def owners(axis: str, axes: dict[str, list[Any]], model: Callable[..., object]) -> list[str]:
    """The kinds whose functions, of those on the axes, take an axis as an option."""
    takers = []
    for kind in kinds(axes):
        functions = axes.get(kind, [model] if kind == "model" else [])
        callables = [function for function in functions if callable(function)]
        if any(axis_of(kind, o, [axis]) == axis for f in callables for o in parameters(kind, f)):
            takers.append(kind)
    return takers


def taken(settings: Settings, model: Callable[..., object], axes: Iterable[str]) -> set[str]:
    """Those of the axes that concern a run with these settings: its own, its optimizer's and its model's."""
    axes = list(axes)
    names = {*COMMON}
    names |= {f"{name}_schedule" for name in parameters("optimizer", settings["optimizer"])}
    for kind in kinds(axes):
        function = settings.get(kind, model if kind == "model" else None)
        if callable(function) and kind in names | {"model"}:
            names |= {axis for option in parameters(kind, function) if (axis := axis_of(kind, option, axes))}
    return {name for name in axes if name in names}


def scheduled(settings: Settings) -> list[str]:
    """The hyper-parameters that have a value for each step: `learning_rate`, and any `x` whose settings
    hold an `x_schedule`, a function as in `bpresearch.optim.schedules`."""
    names = hyperparameters(settings["optimizer"])
    return ["learning_rate", *(name for name in names if callable(settings.get(f"{name}_schedule")))]


def constants(settings: Settings) -> Settings:
    """The optimizer's other hyper-parameters that are inputs of a program: those that are real numbers,
    and the seed if it takes one."""
    real = chosen("optimizer", settings, settings["optimizer"])
    inputs: Settings = {name: value for name, value in real.items() if isinstance(value, float | np.floating)}
    if "seed" in hyperparameters(settings["optimizer"]):
        inputs.setdefault("seed", settings["seed"])
    return {name: value for name, value in inputs.items() if name not in scheduled(settings)}


def structural(settings: Settings) -> Settings:
    """The optimizer's hyper-parameters that a program is compiled for: integers, flags, text, functions."""
    inputs = {*scheduled(settings), *constants(settings)}
    every = chosen("optimizer", settings, settings["optimizer"])
    return {name: value for name, value in every.items() if name not in inputs}


def inputs_of(settings: Settings) -> set[str]:
    """The axes whose values are inputs of a program, and do not split a sweep into several."""
    inputs = {"lr", "schedule", "warmup", "seed"}
    for name in (*constants(settings), *scheduled(settings)):
        inputs |= {axis_of("optimizer", name, settings) or name, f"{name}_schedule"}
    for kind in kinds(settings):
        if kind.endswith("schedule") and callable(settings.get(kind)):
            options = parameters(kind, settings[kind])
            inputs |= {axis for option in options if (axis := axis_of(kind, option, settings))}
    return inputs


def _missing(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
