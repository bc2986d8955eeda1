"""Optimizers and learning-rate schedules."""

from bpresearch.optim import adaptive, optimizers, parameter_free, schedules
from bpresearch.optim.adaptive import *  # noqa: F403
from bpresearch.optim.optimizers import *  # noqa: F403
from bpresearch.optim.optimizers import Optimizer, clipped, decayed, hyperparameters
from bpresearch.optim.parameter_free import *  # noqa: F403

BY_NAME: dict[str, Optimizer] = {
    name: getattr(module, name)
    for module in (optimizers, adaptive, parameter_free)
    for name in module.__all__
}
"""Every optimizer by its name; adding a function to its file's `__all__` adds it everywhere."""

__all__ = [*BY_NAME, "BY_NAME", "Optimizer", "clipped", "decayed", "hyperparameters", "schedules"]
