"""A run's steps cut into segments, and what a program takes for the segments of a chunk."""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bpresearch.data.batches import shuffled_batches
from bpresearch.optim.schedules import table, warmed
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.options import Settings, axis_of, chosen, parameters, scheduled

SECONDS_IN_A_CHUNK = 2.0
"""A program returns to the host after about this time, or earlier."""


class Segment(NamedTuple):
    """Consecutive steps of a run, first to last, numbered from 1; none if last < first."""

    first: int
    last: int
    evaluation: bool  # before these steps


NO_SEGMENT = Segment(1, 0, False)


def segments_of(experiment: Experiment) -> list[Segment]:
    """The segments of a run; the last one only evaluates."""
    steps, length = experiment.steps, experiment.steps_in_a_segment
    segments = []
    for begin, end in itertools.pairwise(experiment.eval_steps.tolist()):
        for first in range(begin, end, length):
            segments.append(Segment(first + 1, min(first + length, end), first == begin))
    return [*segments, Segment(steps + 1, steps, True)]


class Pace:
    """How many segments make a chunk, by the time that the last ones took.

    Processes that train together must agree: they always do as many as there can be (`steady`).
    """

    def __init__(self, most: int, steady: bool = False):
        self.segments, self.most, self.steady = most if steady else 1, most, steady

    def took(self, segments: int, seconds: float) -> None:
        """Takes note that this many segments took this time."""
        if self.steady:
            return
        self.segments = max(1, min(self.most, int(SECONDS_IN_A_CHUNK * segments / max(seconds, 1e-6))))


def chunks(
    experiment: Experiment, step: int, pace: Pace, until: int | None = None
) -> Iterator[list[Segment]]:
    """The segments after `step` steps in chunks, each as long as the pace allows when it is asked for.

    With `until`, the segments up to the evaluation after `until` steps.
    """
    segments = [segment for segment in segments_of(experiment) if segment.first > step]
    if until is not None and until < experiment.steps:
        segments = [
            *(segment for segment in segments if segment.first <= until),
            Segment(until + 1, until, True),
        ]
    while segments:
        chunk, segments = segments[: pace.segments], segments[pace.segments :]
        yield chunk


def batches(experiment: Experiment, seeds: list[int], batch_size: int, chunk: list[Segment]) -> np.ndarray:
    """The examples that each seed meets in each step: (seeds, segments, steps of a segment, batch)."""
    length, examples = experiment.steps_in_a_segment, experiment.training_examples
    first, last = chunk[0].first, max(segment.first for segment in chunk)
    orders = [shuffled_batches(seed, examples, batch_size, first, last - first + length) for seed in seeds]
    steps = np.array([max(segment.first - first, 0) for segment in chunk])
    return np.stack(orders)[:, steps[:, None] + np.arange(length)]


def tables(experiment: Experiment, settings: list[Settings]) -> dict[str, np.ndarray]:
    """Every run's value at each step, (runs, steps), of the hyper-parameters that are scheduled."""
    steps, schedules = experiment.steps, {}
    multiples: dict[tuple[object, ...], np.ndarray] = {}
    for name in scheduled(settings[0]):
        rates = name == "learning_rate"
        key = "schedule" if rates else f"{name}_schedule"
        rows = []
        for run in settings:
            options = chosen(key, run, run[key])
            shape = run[key], run.get("warmup", 0) if rates else 0, tuple(options.items())
            if shape not in multiples:
                schedule = functools.partial(run[key], **options) if options else run[key]
                schedule = warmed(schedule, shape[1]) if shape[1] else schedule
                multiples[shape] = table(schedule(steps), steps)
            rows.append(np.float32(run["lr"] if rates else peak(run, name)) * multiples[shape])
        schedules[name] = np.stack(rows)
    return schedules


def peak(run: Settings, name: str) -> float:
    """What the schedule of a hyper-parameter multiplies: its value, or its default."""
    axis = axis_of("optimizer", name, run)
    return run[axis] if axis else parameters("optimizer", run["optimizer"])[name].default


def window(experiment: Experiment, values: np.ndarray, chunk: list[Segment]) -> np.ndarray:
    """The columns of a table that a chunk takes, (runs, segments, steps in each); its last is repeated."""
    begin = np.array([segment.first - 1 for segment in chunk])
    steps = begin[:, None] + np.arange(experiment.steps_in_a_segment)
    return values[:, np.minimum(steps, values.shape[1] - 1)]
