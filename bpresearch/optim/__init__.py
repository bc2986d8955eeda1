"""Optimizers and learning-rate schedules."""

from bpresearch.optim import schedules
from bpresearch.optim.optimizers import Optimizer, hyperparameters, momentum, nesterov, sgd
from bpresearch.optim.quotient import (
    quotient_element,
    quotient_global,
    quotient_layer,
    quotient_update,
)

__all__ = [
    "Optimizer",
    "hyperparameters",
    "momentum",
    "nesterov",
    "quotient_element",
    "quotient_global",
    "quotient_layer",
    "quotient_update",
    "schedules",
    "sgd",
]
