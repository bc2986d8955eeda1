"""Sweeps: many runs in a few compiled programs, with their results on disk."""

from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.grid import Axes, grid
from bpresearch.sweep.execute import Interrupted, describe, run

__all__ = ["Axes", "Experiment", "Interrupted", "describe", "grid", "run"]
