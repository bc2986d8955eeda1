"""Results on their way from the devices to the store."""

import time
from typing import Any, NamedTuple

import numpy as np
import zarr
from jaxtyping import PyTree

from bpresearch.sweep.choosing import Choice
from bpresearch.sweep.chunks import Segment
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.processes import fetch
from bpresearch.sweep.progress import ProgressReport
from bpresearch.sweep.soundness import demand_store

SECONDS_BETWEEN_WRITES = 2.0


class ChunkResults(NamedTuple):
    """What a program gave for the segments of a chunk, first axis the place of the run."""

    rows: np.ndarray
    """In the store."""
    places: np.ndarray
    """Of the runs in the arrays."""
    segments: list[Segment]
    losses: PyTree
    metrics: dict[str, PyTree]
    diverged_at: PyTree | None
    """At the end of these runs; None before."""


class Stream:
    """Takes the programs' results and writes them every few seconds, and when runs finish.

    A call's results are collected when the next one has been started, while the devices work on it.
    """

    def __init__(self, experiment: Experiment, choice: Choice, group: zarr.Group, report: ProgressReport):
        self.experiment, self.choice, self.group, self.report = experiment, choice, group, report
        self.calls: list[ChunkResults] = []
        self.collected: list[ChunkResults] = []
        self.written = time.monotonic()
        self.best = -np.inf  # of the finished runs; the negative where lower is better

    def add(self, call: ChunkResults) -> None:
        """Takes a call that has been started."""
        self.calls.append(call)
        if len(self.calls) > 1:
            self._collect()

    def flush(self) -> None:
        """Waits for all calls, and writes."""
        while self.calls:
            self._collect()
        self._write()

    def _collect(self) -> None:
        call = self.calls.pop(0)
        losses = fetch(call.losses)[call.places]
        pieces = [
            losses[:, i, : max(segment.last - segment.first + 1, 0)]
            for i, segment in enumerate(call.segments)
        ]
        evaluated = np.array([segment.evaluation for segment in call.segments])
        metrics = {
            name: fetch(values)[call.places, : len(evaluated)][:, evaluated]
            for name, values in call.metrics.items()
        }
        diverged_at = None if call.diverged_at is None else fetch(call.diverged_at)[call.places]
        self.collected.append(
            call._replace(losses=np.concatenate(pieces, 1), metrics=metrics, diverged_at=diverged_at)
        )
        self.report(steps=self.collected[-1].losses.size)
        if diverged_at is not None or time.monotonic() - self.written > SECONDS_BETWEEN_WRITES:
            self._write()

    def _write(self) -> None:
        if self.collected:
            demand_store(self.group)
        while self.collected:
            rows = self.collected[0].rows
            same = [call for call in self.collected if call.rows is rows]
            self.collected = self.collected[len(same) :]
            segments = [segment for call in same for segment in call.segments]
            losses = np.concatenate([call.losses for call in same], axis=1)
            first = segments[0].first - 1
            self._put("train_loss", rows, slice(first, first + losses.shape[1]), losses)
            before = [segment.first - 1 for segment in segments if segment.evaluation]
            evaluations = np.searchsorted(self.experiment.eval_steps, before).tolist()
            over = same[-1].diverged_at is not None
            for name in same[0].metrics if before else ():
                values = np.concatenate([call.metrics[name] for call in same], axis=1)
                last = evaluations[-1] + 1
                if over:  # what a run has reached is what it has at the end of longer ones
                    longer = len(self.experiment.eval_steps) - last
                    last, values = last + longer, _longer(values, longer)
                self._put(name, rows, slice(evaluations[0], last), values)
            if (diverged_at := same[-1].diverged_at) is not None:
                self._put("diverged_at", rows, None, diverged_at)
                self._put("finished", rows, None, np.ones(len(rows), bool))
                best = self._better(same[-1].metrics[self.choice.variable][:, -1])
                self.report(runs=len(rows), diverged=int((diverged_at > 0).sum()), best=best)
        self.written = time.monotonic()

    def _better(self, reached: np.ndarray) -> str:
        """The best of these results in words, if it is better than all before them, else nothing."""
        sign = 1 if self.choice.maximize else -1
        best = float(np.max(sign * reached, initial=-np.inf, where=np.isfinite(reached)))
        if best <= self.best:
            return ""
        self.best = best
        return self.choice.format(sign * best)

    def _put(self, name: str, rows: np.ndarray, columns: slice | None, values: np.ndarray) -> None:
        """Writes some columns of some runs."""
        together = rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all()
        where: Any = slice(int(rows[0]), int(rows[-1]) + 1) if together else rows
        self.group[name].oindex[where if columns is None else (where, columns)] = values


def _longer(values: np.ndarray, count: int) -> np.ndarray:
    """Values with the last of axis 1 repeated."""
    return np.concatenate([values, np.repeat(values[:, -1:], count, axis=1)], axis=1)
