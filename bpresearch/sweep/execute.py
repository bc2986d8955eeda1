"""Runs a sweep: axes to groups, groups to compiled programs, programs' results to disk."""

import dataclasses
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
import xarray as xr
import zarr
from jaxtyping import PyTree

from bpresearch.distribution import Uniform
from bpresearch.platform import available_cores, with_these_settings
from bpresearch.sweep import checkpoint, functions, slices, store
from bpresearch.sweep import prune as pruning
from bpresearch.sweep.axes import Axes, expand, group_of, groups
from bpresearch.sweep.blocks import Block, Interrupted, Job, blocks_of
from bpresearch.sweep.checks import axes_of, check, check_size
from bpresearch.sweep.choosing import Choice, choice_of
from bpresearch.sweep.chunks import Pace
from bpresearch.sweep.description import coordinates, describe, label
from bpresearch.sweep.experiment import Experiment, as_experiment
from bpresearch.sweep.layout import LAYOUTS, SHARDS, memory, planned
from bpresearch.sweep.options import Settings
from bpresearch.sweep.population import Population, measured_variables
from bpresearch.sweep.processes import leads, least
from bpresearch.sweep.progress import progress
from bpresearch.sweep.stream import Stream
from bpresearch.sweep.task import Task
from bpresearch.train import Measured


def run(
    experiment: Task | functions.Function,
    axes: Axes | list[Settings],
    workdir: str | Path | None = None,
    *,
    source: Mapping[str, object] | None = None,
    slice: str | None = None,
    quiet: bool = False,
    layout: str = "auto",
    memory_fraction: float = 0.6,
    shard: str = "runs",
    checkpoint_every: float | int = 20,
    prune: str | None = None,
    beside: Sequence[Settings] = (),
    programs: dict[tuple[object, ...], Population] | None = None,
) -> xr.Dataset:
    """Trains every combination of the axes' values, in compiled programs that each train many runs.

    Args:
        experiment: what the runs have in common; a `Task` is trained as `Experiment` does by default. Or a
            function `(key, hyperparameters) -> metrics`, which takes a run's place: see
            `bpresearch.sweep.functions.run`; `prune` and `source` are refused then, and `layout`,
            `memory_fraction`, `shard` and `checkpoint_every`, which are of trainings, change nothing.
        axes: as `grid` gives them; `optimizer`, `schedule`, `lr`, `batch_size` and `seed` must be there.
            Or a list of runs, each with one value on every axis; in a workdir they are appended to the
            runs that are there.
        workdir: folder for `results.zarr` and `config.json`. Runs that are finished there are not done
            again, so the same call resumes a sweep that was stopped. None keeps the results in memory.
        source: where a list of runs comes from, in JSON, for `config.json`; a workdir with another source
            is refused.
        slice: `3/16` trains the third of sixteen parts of the runs, with the axes of the whole sweep;
            `merge` makes one workdir of the parts'.
        quiet: show no progress.
        layout: "map" takes runs one after another on each device, "vmap" several at a time; "auto" takes
            what is faster.
        memory_fraction: fraction of the memory of the devices, or of what the host has left, for runs
            that are trained together.
        shard: what is spread over the devices: "runs", or the "data" of each batch, all devices training the
            same runs, for models of which few fit into memory.
        checkpoint_every: seconds between two checkpoints of the state of unfinished runs; more where
            saving it would take more than 2 % of the time.
        prune: `halving`, `hyperband`, `median` or `wilcoxon`: end poor runs early; see `prune.pruner`.
        beside: runs of another sweep, for which the programs are to have room as well, so that the two
            sweeps have the same programs in JAX's compilation cache.
        programs: a dict that keeps the compiled programs for the next sweep of the same experiment.

    Returns:
        A dataset with dimensions `run`, `step` and `eval_step`, every axis a coordinate on `run`, and
        variables `train_loss` (mini-batch loss before each update), `valid_loss`, `valid_accuracy`,
        `test_loss`, `test_accuracy`, and so on for other metrics, the same of training examples, as many as
        are held out, as evaluations have them (`train_eval_loss`), those of the diagnostics, `diverged_at`
        (-1, or the first step with a NaN or infinite loss) and `pruned_at` (-1, or the step after which a
        poor run was ended). What a run has reached at its end it has at later evaluations of longer runs.
        The attribute `chosen_by` names the variable that settings are chosen by. Of a list
        of runs, those runs in the order of the list. With a workdir, variables are read from there when
        they are used. Of several processes the first has all values; the others lack (NaN) those of runs
        that were finished before.

    Raises:
        ValueError: an axis is missing or holds a value that does not fit, or the workdir is in use, holds
            another sweep, or cannot be read or written.
        Interrupted: a signal stopped the sweep.

    >>> walk = lambda key, h: {"end": h["scale"] * jax.random.normal(key)}
    >>> walks = bp.sweep.run(walk, bp.sweep.grid(scale=[0.1, 1.0], seed=range(3)), quiet=True)
    >>> dict(walks.sizes), sorted(walks.data_vars)
    ({'run': 6}, ['end', 'finished'])
    """
    for name, value, known in (("layout", layout, LAYOUTS), ("shard", shard, SHARDS)):
        if value not in known:
            raise ValueError(f"{name}={value} is not one of {', '.join(known)}")
    if prune is not None and prune not in pruning.PRUNERS:
        raise ValueError(f"prune={prune} is not one of {', '.join(pruning.PRUNERS)}")
    if not isinstance(experiment, Task):
        for name, unused in (("prune", prune), ("source", source)):
            if unused is not None:
                raise ValueError(f"{name}={unused}: takes trainings, and {label(experiment)} is a function")
        return functions.run(experiment, axes, workdir, slice=slice, quiet=quiet)
    experiment = as_experiment(experiment)
    options = {"layout": layout, "memory_fraction": memory_fraction, "shard": shard}
    listed = isinstance(axes, list)
    values = axes_of(axes) if isinstance(axes, list) else axes
    check(experiment, values)
    check_size(experiment, values)
    pruning.check_pruner(prune, values)
    experiment = lasting(experiment, values, prune)
    runs = axes if isinstance(axes, list) else expand(axes, experiment.model)
    path = None if workdir is None or not leads() else Path(workdir).expanduser()
    metrics: dict[str, Measured] = {}
    data = Examples(experiment)
    for group in groups(runs):
        metrics |= measured_variables(experiment.of(group[0]), group[0], data.of(group[0]))
    choice, columns = choice_of(experiment, metrics), coordinates(experiment, runs)
    runs, first = slices.part_of(runs, slice)  # the results have one form, whichever runs are in the slice
    asked = (source or {}) if isinstance(axes, list) else axes
    config = describe(experiment, asked, layout=layout, shard=shard, prune=prune, slice=slice)
    columns = {axis: values[first : first + len(runs)] for axis, values in columns.items()}
    with store.opened(path, store.layout_of(experiment, metrics, choice), columns, first, config) as opened:
        group, rows = opened
        finished = group["finished"][:]
        todo = [block for block in _groups(runs, rows) if prune or not finished[block.rows].all()]
        if not finished[rows].all():
            saving = {"path": path, "checkpoint_every": checkpoint_every}
            try:
                how: dict[str, Any] = {"prune": prune, "beside": beside, "programs": programs}
                _train(experiment, choice, todo, data, group, saving, quiet, options, **how)
            except OSError as error:
                raise store.unwritable(path, error) from error
        if path and group["finished"][:].all():
            checkpoint.discard(path)  # that of a sweep that was killed as it ended, too
        results = store.dataset(group)
    return results if len(rows) == len(finished) and not listed else results.isel(run=rows)


def lasting(experiment: Experiment, axes: Axes, prune: str | None = None) -> Experiment:
    """The experiment, as long as its longest run and evaluated where any of them ends, those of a whole
    sweep or search included of which these are only some."""
    if "steps" not in axes:
        return experiment
    if prune:
        raise ValueError(f"prune={prune}: takes runs of one length; steps is an axis")
    if any(isinstance(steps, Uniform) for steps in axes["steps"]):
        raise ValueError("axis steps is a distribution: takes a list, for evaluations where runs end")
    ends = tuple(sorted({*experiment.ends, *axes["steps"]}))
    return dataclasses.replace(experiment, steps=ends[-1], ends=ends)


class Examples:
    """The parts of the data in each of the formats that runs are trained in."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.parts: dict[str, dict[str, PyTree]] = {}

    def of(self, settings: Settings) -> dict[str, PyTree]:
        """The parts for runs with these settings."""
        of_group = self.experiment.of(settings)
        name = np.dtype(of_group.dtype).name
        if name not in self.parts:
            self.parts[name] = of_group.examples()
        return self.parts[name]


def _groups(runs: list[Settings], rows: np.ndarray) -> list[Block]:
    """The runs of each group, each run once."""
    by_row: dict[int, Settings] = dict(zip(rows.tolist()[::-1], runs[::-1], strict=True))
    row = {id(settings): number for number, settings in by_row.items()}
    ordered = [by_row[number] for number in dict.fromkeys(rows.tolist())]
    return [Block(group, np.array([row[id(s)] for s in group])) for group in groups(ordered)]


def _train(
    experiment: Experiment,
    choice: Choice,
    todo: list[Block],
    data: Examples,
    group: zarr.Group,
    saving: dict[str, Any],
    quiet: bool,
    options: dict[str, Any],
    prune: str | None = None,
    beside: Sequence[Settings] = (),
    programs: dict[tuple[object, ...], Population] | None = None,
) -> None:
    finished, path = group["finished"][:], saving["path"]
    experiments = [experiment.of(block.settings[0]) for block in todo]
    missing = [int((~finished[block.rows]).sum()) for block in todo]
    runs = sum(missing)
    steps = sum(count * of_group.steps for count, of_group in zip(missing, experiments, strict=True))
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        progress(runs, steps, quiet) as report,
        _stopping() as stop,
    ):
        report(note=f"compiling {len(todo)} program{'s' if len(todo) > 1 else ''} for {runs} runs")
        options = options | {"available": least(memory())}  # the same programs in every process
        parts = [data.of(block.settings[0]) for block in todo]
        known = {} if programs is None else programs
        others: dict[tuple[object, ...], list[Settings]] = {}
        for settings in beside:
            others.setdefault(group_of(settings), []).append(settings)

        def program_of(of_group: Experiment, block: Block, of_part: dict[str, PyTree]) -> Population:
            name = group_of(block.settings[0])
            if name not in known or not known[name].has_room_for(block.settings):
                other = others.get(name, [])
                known[name] = planned(of_group, block.settings, of_part, beside=other, **options)
            return known[name]

        made = with_these_settings(program_of)
        ready = [pool.submit(made, *what) for what in zip(experiments, todo, parts, strict=True)]
        stream = Stream(experiment, choice, group, report)
        paces = [
            Pace(of_block.segments_in_a_chunk, steady=jax.process_count() > 1) for of_block in experiments
        ]

        def train(number: int, runs: Block, **rung: Any) -> None:
            program = ready[number].result()
            job = Job(experiments[number], program, parts[number], paces[number], stream, stop, **saving)
            for block in blocks_of(runs, program.size):
                if not finished[block.rows].all():
                    job.train(block, **rung)

        try:
            if prune:
                pruning.train_in_rungs(prune, experiment, todo, train, stream)
            else:
                for number, members in enumerate(todo):
                    train(number, members)
            stream.flush()
        except Interrupted as error:
            pool.shutdown(wait=False, cancel_futures=True)
            stream.flush()
            finished = group["finished"][:]
            whereabouts = f"saved in {path}; the same command goes on from there" if path else "not saved"
            whereabouts = whereabouts if leads() else "the first process says where"
            raise Interrupted(
                f"stopped: {int(finished.sum())} of {len(finished)} runs are done, {whereabouts}"
            ) from error


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def on_signal(kind: int, frame: FrameType | None) -> None:
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
