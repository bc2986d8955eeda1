"""Runs a sweep: axes to groups, groups to compiled programs, programs' results to disk."""

import functools
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
import zarr

from bpresearch.optim import hyperparameters
from bpresearch.platform import available_cores
from bpresearch.sweep import checkpoint, store
from bpresearch.sweep.chunks import NO_PART, Pace, batches, chunks, tables, window
from bpresearch.sweep.description import describe, label
from bpresearch.sweep.distribution import Uniform
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.grid import (
    OWN_AXES,
    Axes,
    Settings,
    constants,
    expand,
    group_of,
    groups,
    model_options,
)
from bpresearch.sweep.population import Common, Inputs, Population, measured_variables, population
from bpresearch.sweep.progress import progress
from bpresearch.sweep.stream import Call, Stream
from bpresearch.train import Measured

RUNS_IN_A_BLOCK = 128
"""Runs that are trained together."""
SECONDS_BETWEEN_CHECKPOINTS = 20.0


class Interrupted(KeyboardInterrupt):
    """The sweep was stopped by a signal; the message says what is saved and how to go on."""


def run(
    experiment: Experiment,
    axes: Axes | list[Settings],
    workdir: str | Path | None = None,
    *,
    source: dict[str, Any] | None = None,
    quiet: bool = False,
) -> xr.Dataset:
    """Trains every combination of the axes' values, in compiled programs that each train many runs.

    Args:
        experiment: what the runs have in common.
        axes: as `grid` gives them; `optimizer`, `schedule`, `lr`, `batch_size` and `seed` must be there.
            Or a list of runs, each with one value on every axis; in a workdir they are appended to the
            runs that are there.
        workdir: folder for `results.zarr` and `config.json`. Runs that are finished there are not done
            again, so the same call resumes a sweep that was stopped. None keeps the results in memory.
        source: where a list of runs comes from, in JSON, for `config.json`; a workdir with another source
            is refused.
        quiet: show no progress.

    Returns:
        A dataset with dimensions `run`, `step` and `eval_step`, every axis a coordinate on `run`, and
        variables `train_loss` (mini-batch loss before each update), `valid_loss`, `valid_accuracy`,
        `test_loss`, `test_accuracy`, those of the diagnostics, and `diverged_at` (-1, or the first step
        with a NaN or infinite loss). Of a list of runs, those runs in the order of the list. With a
        workdir, variables are read from there when they are used.

    Raises:
        ValueError: an axis is missing or holds a value that does not fit, or the workdir is in use, holds
            another sweep, or cannot be read or written.
        Interrupted: a signal stopped the sweep.
    """
    listed = isinstance(axes, list)
    _check(experiment, axes_of(axes) if isinstance(axes, list) else axes)
    runs = axes if isinstance(axes, list) else expand(axes, experiment.model)
    path = None if workdir is None else Path(workdir)
    data = experiment.examples()
    metrics: dict[str, Measured] = {}
    for group in groups(runs):
        metrics |= measured_variables(experiment, group[0], data)
    with locked(path) if path else nullcontext():
        if path:
            store.check_config(path, describe(experiment, (source or {}) if isinstance(axes, list) else axes))
        group, rows = store.open_store(path, experiment, runs, metrics)
        finished = group["finished"][:]
        blocks = [block for block in blocks_of(runs, rows) if not finished[block.rows].all()]
        if blocks:
            try:
                _train(experiment, blocks, data, group, path, quiet)
            except OSError as error:
                raise ValueError(
                    f"--workdir={path}: cannot write there ({error.strerror or error}); what is saved is "
                    f"whole, the same command goes on from there"
                ) from error
    results = store.dataset(group)
    return results if len(rows) == len(finished) and not listed else results.isel(run=rows)


def locked(path: Path) -> Any:
    return store.locked(path)


class Block(NamedTuple):
    """Runs that are trained together."""

    settings: list[Settings]
    rows: np.ndarray  # in the store
    size: int  # of every block of this group: they share their programs
    seeds: int


def blocks_of(runs: list[Settings], rows: np.ndarray) -> list[Block]:
    """The runs of each group, at most RUNS_IN_A_BLOCK together."""
    row = dict(zip(map(id, runs), rows.tolist(), strict=True))
    blocks = []
    for group in groups(runs):
        count = -(-len(group) // RUNS_IN_A_BLOCK)
        size = -(-len(group) // count)
        seeds = min(size, len({s["seed"] for s in group}))
        for begin in range(0, len(group), size):
            part = group[begin : begin + size]
            blocks.append(Block(part, np.array([row[id(settings)] for settings in part]), size, seeds))
    return blocks


def _train(
    experiment: Experiment,
    blocks: list[Block],
    data: dict[str, Any],
    group: zarr.Group,
    path: Path | None,
    quiet: bool,
) -> None:
    different = {group_of(block.settings[0]): block for block in blocks}
    todo = sum(len(block.rows) for block in blocks)
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        progress(todo, todo * experiment.steps, quiet) as report,
        _stopping() as stop,
    ):
        plural = "s" if len(different) > 1 else ""
        report(note=f"compiling {len(different)} program{plural} for {todo} runs")
        programs = {
            key: pool.submit(population, experiment, block.settings, data, block.size, block.seeds)
            for key, block in different.items()
        }
        paces = {key: Pace(experiment.parts_in_a_chunk) for key in different}
        stream = Stream(experiment, group, report)
        try:
            for block in blocks:
                key = group_of(block.settings[0])
                train_block(experiment, programs[key].result(), block, data, paces[key], stream, stop, path)
            stream.flush()
        except Interrupted as error:
            pool.shutdown(wait=False, cancel_futures=True)
            stream.flush()
            finished = group["finished"][:]
            kept = f"saved in {path}; the same command goes on from there" if path else "not saved"
            raise Interrupted(
                f"stopped: {int(finished.sum())} of {len(finished)} runs are done, {kept}"
            ) from error
    if path:
        checkpoint.discard(path)


def train_block(
    experiment: Experiment,
    program: Population,
    block: Block,
    data: dict[str, Any],
    pace: Pace,
    stream: Stream,
    stop: threading.Event,
    path: Path | None = None,
) -> None:
    """Trains a block's runs and gives their results to the stream."""
    settings = block.settings
    rows = settings + settings[-1:] * (program.size - len(settings))  # padding repeats the last run
    common = functools.partial(jax.device_put, device=program.everywhere)
    per_run = functools.partial(jax.device_put, device=program.runs)
    seeds = sorted({s["seed"] for s in settings})
    seeds += seeds[-1:] * (block.seeds - len(seeds))
    fixed = {name: np.array([s[name] for s in rows], np.float32) for name in constants(settings[0])}
    values = tables(experiment, rows)
    keys = np.array([s["seed"] for s in rows], np.uint32)
    slots = np.array([seeds.index(s["seed"]) for s in rows], np.int32)
    data = common(data)
    keys, slots, fixed = per_run((keys, slots, fixed))
    state = program.start(keys, fixed | per_run({name: table[:, 0] for name, table in values.items()}))
    step = 0
    if path and (found := checkpoint.restore(path, state, block.rows)):
        state, step = per_run(found[0]), found[1]
    before = 0
    saved = begun = time.monotonic()
    pause = SECONDS_BETWEEN_CHECKPOINTS
    for chunk in chunks(experiment, step, pace):
        filled = chunk + [NO_PART] * (experiment.parts_in_a_chunk - len(chunk))
        first, last, evaluation = (np.array(column) for column in zip(*filled, strict=True))
        orders = batches(experiment, seeds, settings[0]["batch_size"], filled)
        now = per_run({name: window(experiment, table, filled) for name, table in values.items()})
        state, losses, measured = program.advance(
            state,
            Inputs(keys, slots, now, fixed),
            common(Common(np.int32(first), np.int32(last), evaluation, orders, data)),
        )
        over = chunk[-1].first > experiment.steps
        stream.add(Call(block.rows, chunk, losses, measured, state.diverged_at if over else None))
        if before:  # its results have just been collected
            pace.took(before, time.monotonic() - begun)
        before, begun = len(chunk), time.monotonic()
        if stop.is_set() or (begun - saved > pause and not over):
            stream.flush()  # the results are never behind the checkpoint
            if path and not over:
                saved = time.monotonic()
                checkpoint.save(path, state, block.rows, chunk[-1].last)
                pause = max(SECONDS_BETWEEN_CHECKPOINTS, 50 * (time.monotonic() - saved))
            before, saved = 0, time.monotonic()
        if stop.is_set():
            raise Interrupted


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def on_signal(kind: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    for kind in kinds:
        signal.signal(kind, on_signal)
    try:
        yield event
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def axes_of(runs: list[Settings]) -> Axes:
    """Every value that some run has on each axis."""
    if not runs:
        raise ValueError("there are no runs to train")
    axes: Axes = {}
    for name in runs[0]:
        if any(name not in settings for settings in runs):
            raise ValueError(f"some runs lack {name}: give every run a value on every axis")
        axes[name] = list({repr(settings[name]): settings[name] for settings in runs}.values())
    return axes


def _check(experiment: Experiment, axes: Axes) -> None:
    for name in OWN_AXES:
        if name not in axes:
            raise ValueError(f"the axes lack {name}: give it one value or many")
    for name, values in axes.items():
        if any(isinstance(value, Uniform) for value in values):
            raise ValueError(f"axis {name} is a distribution: sweep.search draws from it")
    found = axes.get("model", [experiment.model])
    options = {name for model in found for name in model_options(model)}
    taken = {name for optimizer in axes["optimizer"] for name in hyperparameters(optimizer)}
    known = {*OWN_AXES, "model", "warmup", *options, *taken, *(f"{name}_schedule" for name in taken)}
    for name, values in axes.items():
        if name not in known and any(value == value for value in values):  # NaN: of runs like others' runs
            names = ", ".join(label(function) for function in (*axes["optimizer"], *found))
            raise ValueError(f"axis {name} is not a hyper-parameter of {names}")
    for optimizer in axes["optimizer"]:
        for name in set(hyperparameters(optimizer, required=True)) - set(axes):
            raise ValueError(f"the axes lack {name}, which {optimizer.__name__} takes")
    for name, values in axes.items():
        labels = [repr(label(value)) for value in values]
        if len(set(labels)) < len(labels):
            raise ValueError(f"axis {name} holds two values with one name: {', '.join(labels)}")
    for batch_size in axes["batch_size"]:
        if not 1 <= batch_size <= experiment.training_examples:
            raise ValueError(
                f"batch_size={batch_size}: takes 1 to {experiment.training_examples}, "
                f"the number of training examples"
            )
    for seed in axes["seed"]:
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed}: takes an integer from 0 to 2^32 - 1")
