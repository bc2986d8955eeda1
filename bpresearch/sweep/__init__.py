"""Sweeps: many runs in a few compiled programs, with their results on disk."""

from typing import TYPE_CHECKING

from bpresearch.imports import on_demand

if TYPE_CHECKING:
    from bpresearch.distribution import Uniform
    from bpresearch.sweep.ask_and_tell import claim, drawn, pretended, search, source_of
    from bpresearch.sweep.axes import Axes, Every, expand, first_values, grid
    from bpresearch.sweep.confirmation import confirm, read_confirmed
    from bpresearch.sweep.cost import estimate
    from bpresearch.sweep.description import coordinate, describe
    from bpresearch.sweep.execute import Interrupted, run
    from bpresearch.sweep.experiment import Experiment, as_experiment
    from bpresearch.sweep.layout import LAYOUTS, SHARDS
    from bpresearch.sweep.options import Settings
    from bpresearch.sweep.processes import leads, told
    from bpresearch.sweep.seconds import StepTime, seconds_per_step, time_best_settings
    from bpresearch.sweep.slices import merge
    from bpresearch.sweep.store import read, read_trainings
    from bpresearch.sweep.task import Task

__all__ = [
    "LAYOUTS",
    "SHARDS",
    "Axes",
    "Every",
    "Experiment",
    "Interrupted",
    "Settings",
    "StepTime",
    "Task",
    "Uniform",
    "as_experiment",
    "claim",
    "confirm",
    "coordinate",
    "describe",
    "drawn",
    "estimate",
    "expand",
    "first_values",
    "grid",
    "leads",
    "merge",
    "pretended",
    "read",
    "read_confirmed",
    "read_trainings",
    "run",
    "search",
    "seconds_per_step",
    "source_of",
    "time_best_settings",
    "told",
]

# Loaded when first used: a task needs nothing of what results on disk need.
__getattr__ = on_demand(__name__, __file__)


def __dir__() -> list[str]:
    return __all__
