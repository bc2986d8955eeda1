"""Optimizers and learning-rate schedules."""

from bpresearch.optim import schedules
from bpresearch.optim.optimizers import Optimizer, hyperparameters, momentum, nesterov, sgd

__all__ = ["Optimizer", "hyperparameters", "momentum", "nesterov", "schedules", "sgd"]
