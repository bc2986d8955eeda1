"""A run's steps cut into parts, and what a program takes for the parts of a chunk."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bpresearch.optim.schedules import table, warmed
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.grid import Settings, scheduled
from bpresearch.train import shuffled_batches

SECONDS_IN_A_CHUNK = 2.0
"""A program returns to the host after about this time, or earlier."""


class Part(NamedTuple):
    """Consecutive steps of a run, first to last, numbered from 1; none if last < first."""

    first: int
    last: int
    evaluation: bool  # before these steps


NO_PART = Part(1, 0, False)


def parts_of(experiment: Experiment) -> list[Part]:
    """The parts of a run; the last one only evaluates."""
    steps, every, length = experiment.steps, experiment.eval_every, experiment.steps_in_a_part
    parts = []
    for begin in range(0, steps, every):
        end = min(begin + every, steps)
        for first in range(begin, end, length):
            parts.append(Part(first + 1, min(first + length, end), first == begin))
    return [*parts, Part(steps + 1, steps, True)]


class Pace:
    """How many parts make a chunk, by the time that the last ones took.

    Processes that train together must agree: they always do as many as there can be (`steady`).
    """

    def __init__(self, most: int, steady: bool = False):
        self.parts, self.most, self.steady = most if steady else 1, most, steady

    def took(self, parts: int, seconds: float) -> None:
        """Takes note that this many parts took this time."""
        if self.steady:
            return
        self.parts = max(1, min(self.most, int(SECONDS_IN_A_CHUNK * parts / max(seconds, 1e-6))))


def chunks(experiment: Experiment, step: int, pace: Pace, until: int | None = None) -> Iterator[list[Part]]:
    """The parts after `step` steps in chunks, each as long as the pace allows when it is asked for.

    With `until`, the parts up to the evaluation after `until` steps.
    """
    parts = [part for part in parts_of(experiment) if part.first > step]
    if until is not None and until < experiment.steps:
        parts = [*(part for part in parts if part.first <= until), Part(until + 1, until, True)]
    while parts:
        chunk, parts = parts[: pace.parts], parts[pace.parts :]
        yield chunk


def batches(experiment: Experiment, seeds: list[int], batch_size: int, chunk: list[Part]) -> np.ndarray:
    """The examples that each seed meets in each step: (seeds, parts, steps of a part, batch)."""
    length, examples = experiment.steps_in_a_part, experiment.training_examples
    first, last = chunk[0].first, max(part.first for part in chunk)
    orders = [shuffled_batches(seed, examples, batch_size, first, last - first + length) for seed in seeds]
    steps = np.array([max(part.first - first, 0) for part in chunk])
    return np.stack(orders)[:, steps[:, None] + np.arange(length)]


def tables(experiment: Experiment, settings: list[Settings]) -> dict[str, np.ndarray]:
    """Every run's value at each step, (runs, steps), of the hyper-parameters that are scheduled."""
    steps, multiples, found = experiment.steps, {}, {}
    for name in scheduled(settings[0]):
        peak, key = ("lr", "schedule") if name == "learning_rate" else (name, f"{name}_schedule")
        rows = []
        for run in settings:
            shape = run[key], run.get("warmup", 0) if name == "learning_rate" else 0
            if shape not in multiples:
                schedule, warmup = shape
                multiples[shape] = table((warmed(schedule, warmup) if warmup else schedule)(steps), steps)
            rows.append(np.float32(run[peak]) * multiples[shape])
        found[name] = np.stack(rows)
    return found


def window(experiment: Experiment, values: np.ndarray, chunk: list[Part]) -> np.ndarray:
    """The columns of a table that a chunk takes, its last one repeated: (runs, parts, steps of a part)."""
    steps = np.array([part.first - 1 for part in chunk])[:, None] + np.arange(experiment.steps_in_a_part)
    return values[:, np.minimum(steps, values.shape[1] - 1)]
