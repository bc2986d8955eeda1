"""A job trains the runs of a group: block after block of runs, chunk after chunk of their steps."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from bpresearch.sweep import checkpoint
from bpresearch.sweep.chunks import NO_SEGMENT, Pace, Segment, batches, chunks, tables, window
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.options import Settings, constants
from bpresearch.sweep.population import Common, Inputs, Population
from bpresearch.sweep.processes import anywhere, leads, place
from bpresearch.sweep.prune import RungStates
from bpresearch.sweep.stream import ChunkResults, Stream


class Interrupted(KeyboardInterrupt):
    """The sweep was stopped by a signal; the message says what is saved and how to go on."""


class Block(NamedTuple):
    """Runs that are trained together."""

    settings: list[Settings]
    rows: np.ndarray  # in the store


def blocks_of(group: Block, size: int) -> Iterator[Block]:
    """The runs of a group in blocks of nearly one size, at most `size`."""
    count = -(-len(group.rows) // size)
    size = -(-len(group.rows) // count)
    for begin in range(0, len(group.rows), size):
        part = slice(begin, begin + size)
        yield Block(group.settings[part], group.rows[part])


class Feed:
    """What a program takes for the runs of a block, each in its place.

    Args:
        experiment: what the runs have in common.
        program: theirs.
        block: which runs.
        data: all parts of the data.
    """

    def __init__(self, experiment: Experiment, program: Population, block: Block, data: dict[str, PyTree]):
        settings = block.settings
        self.experiment, self.program, self.batch_size = experiment, program, settings[0]["batch_size"]
        self.places, counts = program.places(len(settings))
        self.counts = place(np.int32(counts), program.runs)
        self.data = place(data, program.everywhere)
        seeds = sorted({run["seed"] for run in settings})
        self.order = self.per_run(np.array([seeds.index(run["seed"]) for run in settings], np.int32))
        self.seeds = seeds + seeds[-1:] * (program.seeds - len(seeds))
        self.keys = self.per_run(np.array([run["seed"] for run in settings], np.uint32))
        values = [constants(run) for run in settings]
        self.fixed = {
            name: self.per_run(np.array([v[name] for v in values], np.float32)) for name in values[0]
        }
        self.tables = tables(experiment, settings)

    def per_run(self, values: np.ndarray) -> jax.Array:
        """One value for each run, each put into its place."""
        values = np.asarray(values)
        placed = np.zeros((self.program.size, *values.shape[1:]), values.dtype)
        placed[self.places] = values
        return place(placed, self.program.runs)

    def start(self) -> PyTree:
        """The runs before their first step."""
        first = {name: self.per_run(table[:, 0]) for name, table in self.tables.items()}
        return self.program.start(self.counts, self.keys, self.fixed | first)

    def advance(self, runs: PyTree, chunk: list[Segment]) -> tuple[PyTree, jax.Array, dict[str, jax.Array]]:
        """The runs after the segments of a chunk, their losses, and what was measured."""
        filled = chunk + [NO_SEGMENT] * (self.experiment.segments_in_a_chunk - len(chunk))
        first, last, evaluation = (np.array(column) for column in zip(*filled, strict=True))
        orders = batches(self.experiment, self.seeds, self.batch_size, filled)
        now = {n: self.per_run(window(self.experiment, table, filled)) for n, table in self.tables.items()}
        first, last, evaluation = place(
            (np.int32(first), np.int32(last), evaluation), self.program.everywhere
        )
        inputs = Inputs(self.keys, self.order, now, self.fixed)
        common = Common(first, last, evaluation, place(orders, self.program.orders), self.data)
        return self.program.advance(self.counts, runs, inputs, common)


@dataclass(frozen=True)
class Job:
    """Trains the runs of a group, block by block.

    Attributes:
        experiment: what the runs have in common.
        program: theirs.
        data: all parts of the data.
        pace: how many segments a call of the program does.
        stream: takes the results.
        stop: set by a signal.
        path: the workdir, for checkpoints; None saves none.
        checkpoint_every: seconds between two checkpoints, at least.
    """

    experiment: Experiment
    program: Population
    data: dict[str, PyTree]
    pace: Pace
    stream: Stream
    stop: threading.Event
    path: Path | None = None
    checkpoint_every: float | int = 20

    def train(self, block: Block, states: RungStates | None = None, until: int | None = None) -> None:
        """Trains a block's runs and gives their results to the stream.

        With `states` the runs go on from there, until `until` steps, and are put there again.

        Raises:
            Interrupted: a signal came; what is done is saved.
        """
        with self.experiment.in_format():
            feed = Feed(self.experiment, self.program, block, self.data)
            runs = feed.start()
            if states:
                runs, step = states.put(block.rows, feed.places, runs), states.step
            else:
                runs, step = checkpoint.resumed(self.path, runs, block.rows)
            runs = self._advance(feed, block, runs, step, until, saves=not states)
            if states:
                states.keep(block.rows, feed.places, runs)

    def _advance(
        self, feed: Feed, block: Block, runs: PyTree, step: int, until: int | None, saves: bool
    ) -> PyTree:
        """The runs after the steps from `step` on; with a checkpoint now and then, if it saves any."""
        before, pause = 0, self.checkpoint_every
        saved = begun = time.monotonic()
        for chunk in chunks(self.experiment, step, self.pace, until):
            runs, losses, measured = feed.advance(runs, chunk)
            over = chunk[-1].first > self.experiment.steps
            diverged_at = runs.diverged_at if over else None
            self.stream.add(ChunkResults(block.rows, feed.places, chunk, losses, measured, diverged_at))
            if before:  # its results have just been collected
                self.pace.took(before, time.monotonic() - begun)
            before, begun = len(chunk), time.monotonic()
            stopped, due = anywhere(self.stop.is_set(), leads() and begun - saved > pause)
            if stopped or (due and not over):
                self.stream.flush()  # the results are never behind the checkpoint
                if saves and not over:
                    saved = time.monotonic()
                    checkpoint.save(self.path, runs, block.rows, chunk[-1].last)
                    pause = max(self.checkpoint_every, 50 * (time.monotonic() - saved))
                before, saved = 0, time.monotonic()
            if stopped:
                raise Interrupted
        return runs
