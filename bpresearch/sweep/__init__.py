"""Sweeps: many runs in a few compiled programs, with their results on disk."""

from bpresearch.sweep.execute import Interrupted, describe, run
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.grid import Axes, grid
from bpresearch.sweep.store import write_text

__all__ = ["Axes", "Experiment", "Interrupted", "describe", "grid", "run", "write_text"]
