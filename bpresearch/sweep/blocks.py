"""Trains a block of runs: chunk after chunk of one program's calls."""

import functools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bpresearch.sweep import checkpoint
from bpresearch.sweep.chunks import NO_PART, Pace, batches, chunks, tables, window
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.options import Settings, constants
from bpresearch.sweep.population import Common, Inputs, Population
from bpresearch.sweep.processes import anywhere, leads, place
from bpresearch.sweep.prune import Kept
from bpresearch.sweep.stream import Call, Stream


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


def train_block(experiment: Experiment, *what: Any, **how: Any) -> None:
    """Trains a block's runs, as `_train_block` does, in the experiment's format."""
    with experiment.in_format():
        _train_block(experiment, *what, **how)


def _train_block(
    experiment: Experiment,
    program: Population,
    block: Block,
    data: dict[str, Any],
    pace: Pace,
    stream: Stream,
    stop: threading.Event,
    *,
    path: Path | None = None,
    checkpoint_every: float | int = 20,
    kept: Kept | None = None,
    until: int | None = None,
) -> None:
    """Trains a block's runs and gives their results to the stream.

    With `kept` the runs go on from where it has them, until `until` steps, and it keeps them there.
    """
    settings = block.settings
    places, counts = program.places(len(settings))
    common = functools.partial(place, sharding=program.everywhere)

    def per_run(values: Any) -> Any:
        """One value for each run, each put into its place."""
        values = np.asarray(values)
        placed = np.zeros((program.size, *values.shape[1:]), values.dtype)
        placed[places] = values
        return place(placed, program.runs)

    seeds = sorted({s["seed"] for s in settings})
    slots = per_run(np.array([seeds.index(s["seed"]) for s in settings], np.int32))
    seeds += seeds[-1:] * (program.seeds - len(seeds))
    keys = per_run(np.array([s["seed"] for s in settings], np.uint32))
    values_of = [constants(s) for s in settings]
    fixed = {n: per_run(np.array([v[n] for v in values_of], np.float32)) for n in values_of[0]}
    values = tables(experiment, settings)
    data = common(data)
    counts = place(np.int32(counts), program.runs)
    first_values = {name: per_run(found[:, 0]) for name, found in values.items()}
    state = program.start(counts, keys, fixed | first_values)
    step = 0
    if kept:
        state, step = kept.put(block.rows, places, state), kept.step
    else:
        state, step = checkpoint.resumed(path, state, block.rows)
    before, pause = 0, checkpoint_every
    saved = begun = time.monotonic()
    for chunk in chunks(experiment, step, pace, until):
        filled = chunk + [NO_PART] * (experiment.parts_in_a_chunk - len(chunk))
        first, last, evaluation = (np.array(column) for column in zip(*filled, strict=True))
        orders = batches(experiment, seeds, settings[0]["batch_size"], filled)
        now = {name: per_run(window(experiment, found, filled)) for name, found in values.items()}
        numbers = common((np.int32(first), np.int32(last), evaluation))
        state, losses, measured = program.advance(
            counts,
            state,
            Inputs(keys, slots, now, fixed),
            Common(numbers[0], numbers[1], numbers[2], place(orders, program.orders), data),
        )
        over = chunk[-1].first > experiment.steps
        diverged_at = state.diverged_at if over else None
        stream.add(Call(block.rows, places, chunk, losses, measured, diverged_at))
        if before:  # its results have just been collected
            pace.took(before, time.monotonic() - begun)
        before, begun = len(chunk), time.monotonic()
        stopped, due = anywhere(stop.is_set(), leads() and begun - saved > pause)
        if stopped or (due and not over):
            stream.flush()  # the results are never behind the checkpoint
            if not kept and not over:
                saved = time.monotonic()
                checkpoint.save(path, state, block.rows, chunk[-1].last)
                pause = max(checkpoint_every, 50 * (time.monotonic() - saved))
            before, saved = 0, time.monotonic()
        if stopped:
            raise Interrupted
    if kept:
        kept.keep(block.rows, places, state)
