"""Sweeps: many runs in a few compiled programs, with their results on disk."""

from bpresearch.sweep.ask_and_tell import claim, search, source_of
from bpresearch.sweep.description import describe
from bpresearch.sweep.distribution import Uniform
from bpresearch.sweep.execute import Interrupted, run
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.grid import Axes, Settings, expand, grid
from bpresearch.sweep.store import write_text

__all__ = [
    "Axes",
    "Experiment",
    "Interrupted",
    "Settings",
    "Uniform",
    "claim",
    "describe",
    "expand",
    "grid",
    "run",
    "search",
    "source_of",
    "write_text",
]
