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

from bpresearch.platform import available_cores
from bpresearch.sweep import checkpoint, store
from bpresearch.sweep import prune as pruning
from bpresearch.sweep.checks import axes_of, check
from bpresearch.sweep.chunks import NO_PART, Pace, batches, chunks, tables, window
from bpresearch.sweep.description import describe
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.grid import Axes, Settings, constants, expand, groups
from bpresearch.sweep.layout import LAYOUTS, planned
from bpresearch.sweep.population import Common, Inputs, Population, measured_variables
from bpresearch.sweep.progress import progress
from bpresearch.sweep.stream import Call, Stream
from bpresearch.train import Measured


class Interrupted(KeyboardInterrupt):
    """The sweep was stopped by a signal; the message says what is saved and how to go on."""


def run(
    experiment: Experiment,
    axes: Axes | list[Settings],
    workdir: str | Path | None = None,
    *,
    source: dict[str, Any] | None = None,
    quiet: bool = False,
    layout: str = "auto",
    memory_fraction: float = 0.6,
    checkpoint_every: float | int = 20,
    prune: str | None = None,
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
        layout: "map" takes runs one after another on each device, "vmap" several at a time; "auto" takes
            what is faster.
        memory_fraction: fraction of the memory of the devices, or of what the host has left, for runs
            that are trained together.
        checkpoint_every: seconds between two checkpoints of the state of unfinished runs; more where
            saving it would take more than 2 % of the time.
        prune: `halving`, `hyperband` or `median`: end poor runs early; see `prune.pruner`.

    Returns:
        A dataset with dimensions `run`, `step` and `eval_step`, every axis a coordinate on `run`, and
        variables `train_loss` (mini-batch loss before each update), `valid_loss`, `valid_accuracy`,
        `test_loss`, `test_accuracy`, those of the diagnostics, `diverged_at` (-1, or the first step with a
        NaN or infinite loss) and `pruned_at` (-1, or the step after which a poor run was ended). Of a list
        of runs, those runs in the order of the list. With a workdir, variables are read from there when
        they are used.

    Raises:
        ValueError: an axis is missing or holds a value that does not fit, or the workdir is in use, holds
            another sweep, or cannot be read or written.
        Interrupted: a signal stopped the sweep.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout} is not one of {', '.join(LAYOUTS)}")
    if prune is not None and prune not in pruning.PRUNERS:
        raise ValueError(f"prune={prune} is not one of {', '.join(pruning.PRUNERS)}")
    options = {"layout": layout, "memory_fraction": memory_fraction}
    listed = isinstance(axes, list)
    check(experiment, axes_of(axes) if isinstance(axes, list) else axes)
    runs = axes if isinstance(axes, list) else expand(axes, experiment.model)
    path = None if workdir is None else Path(workdir)
    data = experiment.examples()
    metrics: dict[str, Measured] = {}
    for group in groups(runs):
        metrics |= measured_variables(experiment, group[0], data)
    with store.locked(path) if path else nullcontext():
        if path:
            asked = (source or {}) if isinstance(axes, list) else axes
            store.check_config(path, describe(experiment, asked | ({"prune": prune} if prune else {})))
        group, rows = store.open_store(path, experiment, runs, metrics)
        finished = group["finished"][:]
        todo = [block for block in _groups(runs, rows) if prune or not finished[block.rows].all()]
        if not finished[rows].all():
            try:
                _train(experiment, todo, data, group, path, checkpoint_every, quiet, options, prune)
            except OSError as error:
                raise ValueError(
                    f"--workdir={path}: cannot write there ({error.strerror or error}); what is saved is "
                    f"whole, the same command goes on from there"
                ) from error
    results = store.dataset(group)
    return results if len(rows) == len(finished) and not listed else results.isel(run=rows)


def _groups(runs: list[Settings], rows: np.ndarray) -> list["Block"]:
    """The runs of each group, each run once."""
    found: dict[int, Settings] = dict(zip(rows.tolist()[::-1], runs[::-1], strict=True))
    row = {id(settings): number for number, settings in found.items()}
    ordered = [found[number] for number in dict.fromkeys(rows.tolist())]
    return [Block(group, np.array([row[id(s)] for s in group])) for group in groups(ordered)]


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


def _train(
    experiment: Experiment,
    todo: list[Block],
    data: dict[str, Any],
    group: zarr.Group,
    path: Path | None,
    checkpoint_every: float | int,
    quiet: bool,
    options: dict[str, Any],
    prune: str | None = None,
) -> None:
    finished = group["finished"][:]
    runs = int((~finished[np.concatenate([block.rows for block in todo])]).sum())
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        progress(runs, runs * experiment.steps, quiet) as report,
        _stopping() as stop,
    ):
        report(note=f"compiling {len(todo)} program{'s' if len(todo) > 1 else ''} for {runs} runs")
        programs = [pool.submit(planned, experiment, block.settings, data, **options) for block in todo]
        stream = Stream(experiment, group, report)
        saves = None if prune else path  # a pruned sweep starts its unfinished runs again
        paces = [Pace(experiment.parts_in_a_chunk) for _ in todo]

        def train(number: int, runs: Block, **stage: Any) -> None:
            program = programs[number].result()
            for block in blocks_of(runs, program.size):
                if not finished[block.rows].all():
                    arguments = (experiment, program, block, data, paces[number], stream, stop)
                    train_block(*arguments, saves, checkpoint_every, **stage)

        try:
            if prune:
                pruning.train_in_rungs(prune, experiment, todo, train, stream)
            else:
                for number, one in enumerate(todo):
                    train(number, one)
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
    checkpoint_every: float | int = 20,
    *,
    kept: pruning.Kept | None = None,
    until: int | None = None,
) -> None:
    """Trains a block's runs and gives their results to the stream.

    With `kept` the runs go on from where it has them, until `until` steps, and it keeps them there.
    """
    settings = block.settings
    places, counts = program.places(len(settings))
    common = functools.partial(jax.device_put, device=program.everywhere)

    def per_run(values: Any) -> Any:
        """One value for each run, each put into its place."""
        values = np.asarray(values)
        placed = np.zeros((program.size, *values.shape[1:]), values.dtype)
        placed[places] = values
        return jax.device_put(placed, program.runs)

    seeds = sorted({s["seed"] for s in settings})
    slots = per_run(np.array([seeds.index(s["seed"]) for s in settings], np.int32))
    seeds += seeds[-1:] * (program.seeds - len(seeds))
    keys = per_run(np.array([s["seed"] for s in settings], np.uint32))
    fixed = {
        name: per_run(np.array([s[name] for s in settings], np.float32)) for name in constants(settings[0])
    }
    values = tables(experiment, settings)
    data = common(data)
    counts = jax.device_put(np.int32(counts), program.runs)
    state = program.start(
        counts, keys, fixed | {name: per_run(found[:, 0]) for name, found in values.items()}
    )
    step = 0
    if kept:
        state, step = kept.put(block.rows, places, state), kept.step
    if path and (found := checkpoint.restore(path, state, block.rows)):
        state, step = jax.device_put(found[0], program.runs), found[1]
    before, pause = 0, checkpoint_every
    saved = begun = time.monotonic()
    for chunk in chunks(experiment, step, pace, until):
        filled = chunk + [NO_PART] * (experiment.parts_in_a_chunk - len(chunk))
        first, last, evaluation = (np.array(column) for column in zip(*filled, strict=True))
        orders = batches(experiment, seeds, settings[0]["batch_size"], filled)
        now = {name: per_run(window(experiment, found, filled)) for name, found in values.items()}
        state, losses, measured = program.advance(
            counts,
            state,
            Inputs(keys, slots, now, fixed),
            common(Common(np.int32(first), np.int32(last), evaluation, orders, data)),
        )
        over = chunk[-1].first > experiment.steps
        diverged_at = state.diverged_at if over else None
        stream.add(Call(block.rows, places, chunk, losses, measured, diverged_at))
        if before:  # its results have just been collected
            pace.took(before, time.monotonic() - begun)
        before, begun = len(chunk), time.monotonic()
        if stop.is_set() or (begun - saved > pause and not over):
            stream.flush()  # the results are never behind the checkpoint
            if path and not over:
                saved = time.monotonic()
                checkpoint.save(path, state, block.rows, chunk[-1].last)
                pause = max(checkpoint_every, 50 * (time.monotonic() - saved))
            before, saved = 0, time.monotonic()
        if stop.is_set():
            raise Interrupted
    if kept:
        kept.keep(block.rows, places, state)


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
