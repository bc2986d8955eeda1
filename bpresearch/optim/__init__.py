"""Optimizers and learning-rate schedules."""

from collections.abc import Collection

from bpresearch.optim import adaptive, optimizers, parameter_free, schedules
from bpresearch.optim.adaptive import *  # noqa: F403
from bpresearch.optim.evaluation import evaluation_params
from bpresearch.optim.optimizers import *  # noqa: F403
from bpresearch.optim.optimizers import Optimizer, clipped, decayed, hyperparameters
from bpresearch.optim.parameter_free import *  # noqa: F403
from bpresearch.optim.quotient import (
    quotient_element,
    quotient_global,
    quotient_layer,
    quotient_update,
)

BY_NAME: dict[str, Optimizer] = {
    name: getattr(module, name)
    for module in (optimizers, adaptive, parameter_free)
    for name in module.__all__
}
"""Every optimizer by its name; adding a function to its file's `__all__` adds it everywhere."""

OPTIONS = {"weight_decay": decayed, "clip_norm": clipped}
"""What any optimizer can be given: hyper-parameters by name, and what gives an optimizer each, from the
innermost to the outermost."""


def with_options(optimizer: Optimizer, names: Collection[str]) -> Optimizer:
    """The optimizer with more hyper-parameters in its signature, of those in `OPTIONS`."""
    for option in dict.fromkeys(OPTIONS[name] for name in OPTIONS if name in names):
        optimizer = option(optimizer)
    return optimizer


__all__ = [
    *BY_NAME,
    "BY_NAME",
    "OPTIONS",
    "Optimizer",
    "clipped",
    "decayed",
    "evaluation_params",
    "hyperparameters",
    "quotient_element",
    "quotient_global",
    "quotient_layer",
    "quotient_update",
    "schedules",
    "with_options",
]
