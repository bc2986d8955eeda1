"""What a sweep will take, before it is run."""

import contextlib
import threading
import time
from typing import Any, NamedTuple

import numpy as np

from bpresearch.sweep import store
from bpresearch.sweep.axes import Axes, expand, groups
from bpresearch.sweep.blocks import Block, Interrupted, Job, blocks_of
from bpresearch.sweep.checks import axes_of, check
from bpresearch.sweep.choosing import choice_of
from bpresearch.sweep.chunks import Pace, segments_of
from bpresearch.sweep.description import coordinate, coordinates
from bpresearch.sweep.experiment import Experiment, as_experiment
from bpresearch.sweep.layout import memory_of, planned
from bpresearch.sweep.options import Settings, inputs_of
from bpresearch.sweep.population import measured_variables
from bpresearch.sweep.stream import Stream
from bpresearch.sweep.task import Task


class Estimate(NamedTuple):
    """What one program of a sweep will take."""

    program: str
    """The settings that it is compiled for."""
    runs: int
    together: int
    """Runs that it has room for."""
    width: int
    """Runs that a device takes at a time."""
    memory: int
    """Bytes, by XLA's account."""
    seconds: float
    """Of training, by the time that a few steps took."""


def estimate(experiment: Task, axes: Axes | list[Settings], **options: Any) -> list[Estimate]:
    """Compiles every program of a sweep and times a few steps of each; trains nothing to the end.

    Args:
        experiment, axes: as `run` takes them.
        **options: `layout`, `memory_fraction` and `shard`, as `run` takes them.
    """
    experiment = as_experiment(experiment)
    check(experiment, axes_of(axes) if isinstance(axes, list) else axes)
    runs = axes if isinstance(axes, list) else expand(axes, experiment.model)
    return [_one(experiment.of(group[0]), group, options) for group in groups(runs)]


class Rehearsal:
    """Runs that are trained in memory, from the beginning each time: what their program takes.

    Args:
        experiment: what the runs have in common.
        runs: of one group.
        **options: `layout`, `memory_fraction` and `shard`, as `run` takes them.
    """

    def __init__(self, experiment: Experiment, runs: list[Settings], **options: Any):
        self.experiment, self.data = experiment, experiment.examples()
        self.program = planned(experiment, runs, self.data, **options)
        metrics = measured_variables(experiment, runs[0], self.data)
        self.choice = choice_of(experiment, metrics)
        layout = store.layout_of(experiment, metrics, self.choice)
        self.group, rows = store.open_store(None, layout, coordinates(experiment, runs))
        self.blocks = list(blocks_of(Block(runs, rows), self.program.size))

    def seconds(self, first_segment_only: bool = False) -> float:
        """Trains all runs to the end, or the first block of them for one segment of their steps."""
        most, stop = 1 if first_segment_only else self.experiment.segments_in_a_chunk, threading.Event()
        if first_segment_only:
            stop.set()  # after the first chunk, which is one segment
        begun = time.perf_counter()
        stream = Stream(self.experiment, self.choice, self.group, lambda **_: None)
        job = Job(self.experiment, self.program, self.data, Pace(most), stream, stop)
        with contextlib.suppress(Interrupted):
            for block in self.blocks[:1] if first_segment_only else self.blocks:
                job.train(block)
        stream.flush()
        return time.perf_counter() - begun

    def steps_per_second(self) -> float:
        """Trains the runs to the end; steps of all of them together in each second."""
        return sum(len(block.rows) for block in self.blocks) * self.experiment.steps / self.seconds()


def _one(experiment: Experiment, runs: list[Settings], options: dict[str, Any]) -> Estimate:
    rehearsal = Rehearsal(experiment, runs, **options)
    program = rehearsal.program
    rehearsal.seconds(first_segment_only=True)  # the first call warms up
    seconds = rehearsal.seconds(first_segment_only=True)
    inputs = inputs_of(runs[0])
    names = [name for name, value in runs[0].items() if name not in inputs and value == value]
    label = ", ".join(f"{name}={coordinate(runs[0][name])}" for name in names)
    segments = len(segments_of(experiment)) - 1
    seconds *= segments * len(rehearsal.blocks)
    return Estimate(label, len(runs), program.size, program.width, memory_of(program), seconds)


def seconds_in_words(seconds: float) -> str:
    """A time as people say it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{np.ceil(seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
