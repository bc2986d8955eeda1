"""Runs a sweep: axes to groups, groups to compiled programs, programs' results to disk."""

import functools
import hashlib
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr

from bpresearch.optim import hyperparameters
from bpresearch.optim.schedules import table
from bpresearch.platform import available_cores
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.grid import OWN_AXES, Axes, Settings, expand, group_of
from bpresearch.sweep.population import Population, hyperparameter_names, population
from bpresearch.sweep.progress import Report, progress
from bpresearch.sweep.store import empty, locked, open_store, provenance, write_runs
from bpresearch.train import shuffled_batches

RUNS_IN_A_BLOCK = 128
"""Runs that are trained together, and saved together when they have finished."""


class Interrupted(KeyboardInterrupt):
    """The sweep was stopped by a signal; the message says what is saved and how to go on."""


def run(
    experiment: Experiment, axes: Axes, workdir: str | Path | None = None, *, quiet: bool = False
) -> xr.Dataset:
    """Trains every combination of the axes' values, in compiled programs that each train many runs.

    Args:
        experiment: what the runs have in common.
        axes: as `grid` gives them; `optimizer`, `schedule`, `lr`, `batch_size` and `seed` must be there.
        workdir: folder for `results.zarr` and `config.json`. Runs that are finished there are not done
            again, so the same call resumes a sweep that was stopped. None keeps the results in memory.
        quiet: show no progress.

    Returns:
        A dataset with dimensions `run`, `step` and `eval_step`, every axis a coordinate on `run`, and
        variables `train_loss` (mini-batch loss before each update), `valid_loss`, `valid_accuracy`,
        `test_loss`, `test_accuracy`, `diverged_at` (-1, or the first step with a NaN or infinite loss).

    Raises:
        ValueError: an axis is missing or holds a value that does not fit, or the workdir is in use, holds
            another sweep, or cannot be read or written.
        Interrupted: a signal stopped the sweep.
    """
    _check(experiment, axes)
    runs = expand(axes)
    results = empty_results(experiment, runs)
    path = None if workdir is None else Path(workdir)
    with locked(path) if path else nullcontext():
        if path:
            results = open_store(path, describe(experiment, axes), results)
        blocks = [block for block in blocks_of(runs) if not results.finished[block.runs].all()]
        if blocks:
            _train(experiment, runs, blocks, results, path, quiet)
    return results


class Block(NamedTuple):
    runs: slice
    size: int  # of every block of this group: they share their programs
    seeds: int


def blocks_of(runs: list[Settings]) -> list[Block]:
    """Consecutive runs of one group, at most RUNS_IN_A_BLOCK together."""
    blocks, begin = [], 0
    while begin < len(runs):
        group = [s for s in runs[begin:] if group_of(s) == group_of(runs[begin])]
        count = -(-len(group) // RUNS_IN_A_BLOCK)
        size = -(-len(group) // count)
        seeds = min(size, len({s["seed"] for s in group}))
        end = begin + len(group)
        blocks += [Block(slice(i, min(i + size, end)), size, seeds) for i in range(begin, end, size)]
        begin = end
    return blocks


def _train(
    experiment: Experiment,
    runs: list[Settings],
    blocks: list[Block],
    results: xr.Dataset,
    path: Path | None,
    quiet: bool,
) -> None:
    parts = experiment.examples()
    groups = {group_of(runs[block.runs.start]): block for block in blocks}
    todo = sum(block.runs.stop - block.runs.start for block in blocks)
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        progress(todo, todo * experiment.steps, quiet) as report,
        _stopping() as stop,
    ):
        report(note=f"compiling {len(groups)} program{'s' if len(groups) > 1 else ''} for {todo} runs")
        programs = {
            key: pool.submit(population, experiment, runs[b.runs], parts, b.size, b.seeds)
            for key, b in groups.items()
        }
        try:
            for block in blocks:
                program = programs[group_of(runs[block.runs.start])].result()
                train_block(experiment, program, runs[block.runs], block, parts, results, report, stop)
                if path:
                    write_runs(path, results, block.runs)
                diverged = int((results.diverged_at[block.runs] > 0).sum())
                report(runs=block.runs.stop - block.runs.start, diverged=diverged)
        except Interrupted as error:
            pool.shutdown(wait=False, cancel_futures=True)
            saved = int(results.finished.sum())
            kept = f"saved in {path}; the same command goes on from there" if path else "not saved"
            raise Interrupted(f"stopped: {saved} of {len(runs)} runs are done, {kept}") from error


def train_block(
    experiment: Experiment,
    program: Population,
    settings: list[Settings],
    block: Block,
    parts: dict[str, Any],
    results: xr.Dataset,
    report: Report,
    stop: threading.Event,
) -> None:
    """Trains a block's runs and puts their results into `results`."""
    rows = settings + settings[-1:] * (program.size - len(settings))  # padding repeats the last run
    common = functools.partial(jax.device_put, device=program.everywhere)
    per_run = functools.partial(jax.device_put, device=program.runs)
    seeds = sorted({s["seed"] for s in settings})
    seeds += seeds[-1:] * (block.seeds - len(seeds))
    slots = per_run(np.array([seeds.index(s["seed"]) for s in rows], np.int32))
    hyper = {
        name: per_run(np.array([s[name] for s in rows], np.float32))
        for name in hyperparameter_names(settings)
    }
    rates = learning_rates(experiment, rows)
    every, count = experiment.eval_every, len(settings)
    examples, batch = experiment.training_examples, settings[0]["batch_size"]
    parts = common(parts)
    state, metrics = program.start(per_run(np.array([s["seed"] for s in rows], np.uint32)), hyper, parts)
    outputs = [(0, None, metrics)]
    for number in range(experiment.evaluations):
        first = number * every + 1
        orders = common(np.stack([shuffled_batches(seed, examples, batch, first, every) for seed in seeds]))
        window = per_run(rates[:, first - 1 : first - 1 + every])
        state, losses, metrics = program.advance(
            state,
            slots,
            window,
            hyper,
            orders,
            parts,
            common(np.int32(first)),
            common(np.int32(experiment.steps)),
        )
        outputs.append((first, losses, metrics))
        _collect(results, block.runs, *outputs.pop(0))  # while the devices work on the next
        if number:
            report(steps=count * every)
        if stop.is_set():
            raise Interrupted
    _collect(results, block.runs, *outputs.pop())
    results["diverged_at"][block.runs] = np.asarray(state.diverged_at)[:count]
    results["finished"][block.runs] = True
    report(steps=count * (experiment.steps - (experiment.evaluations - 1) * every))


def _collect(results: xr.Dataset, runs: slice, first: int, losses: Any, metrics: dict[str, Any]) -> None:
    count = runs.stop - runs.start
    every = 0
    if losses is not None:
        every = losses.shape[1]
        train_loss = results["train_loss"].values[runs, first - 1 : first - 1 + every]
        train_loss[:] = np.asarray(losses)[:count, : train_loss.shape[1]]
    for name, values in metrics.items():
        results[name].values[runs, (first - 1 + every) // every if every else 0] = np.asarray(values)[:count]


def learning_rates(experiment: Experiment, settings: list[Settings]) -> np.ndarray:
    """Every run's learning rate at each step, with zeros up to the end of the last evaluation interval."""
    steps = experiment.steps
    tables = {s["schedule"]: table(s["schedule"](steps), steps) for s in settings}
    rates = np.stack([np.float32(s["lr"]) * tables[s["schedule"]] for s in settings])
    return np.pad(rates, ((0, 0), (0, experiment.evaluations * experiment.eval_every - steps)))


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


def empty_results(experiment: Experiment, runs: list[Settings]) -> xr.Dataset:
    """The results with NaN for what is to come."""
    names = [part for part in experiment.examples() if part != "train"]
    kinds = ["loss"] if experiment.dataset.classes is None else ["loss", "accuracy"]
    metrics = [f"{part}_{kind}" for part in names for kind in kinds]
    every, steps = experiment.eval_every, experiment.steps
    eval_steps = np.minimum(np.arange(experiment.evaluations + 1) * every, steps)
    coordinates: dict[str, Any] = {}
    for axis in runs[0]:
        values = [getattr(s[axis], "__name__", s[axis]) for s in runs]
        text = isinstance(values[0], str)  # of any length: zarr has no stable format for a fixed one
        coordinates[axis] = ("run", np.array(values, object if text else None))
    description = describe(experiment, {})
    coordinates |= {
        key: ("run", np.full(len(runs), description[key], object)) for key in ("model", "dataset", "loss")
    }
    coordinates |= {
        "run": np.arange(len(runs)),
        "step": np.arange(1, steps + 1),
        "eval_step": eval_steps,
    }
    found = {key: str(value) for key, value in provenance().items()}
    return xr.Dataset(empty(len(runs), steps, eval_steps, metrics), coordinates, attrs=found)


def _check(experiment: Experiment, axes: Axes) -> None:
    for name in OWN_AXES:
        if name not in axes:
            raise ValueError(f"the axes lack {name}: give it one value or many")
    taken = {name for optimizer in axes["optimizer"] for name in hyperparameters(optimizer)}
    for name in set(axes) - set(OWN_AXES) - taken:
        names = ", ".join(o.__name__ for o in axes["optimizer"])
        raise ValueError(f"axis {name} is not a hyper-parameter of {names}")
    for optimizer in axes["optimizer"]:
        for name in set(hyperparameters(optimizer, required=True)) - set(axes):
            raise ValueError(f"the axes lack {name}, which {optimizer.__name__} takes")
    for batch_size in axes["batch_size"]:
        if not 1 <= batch_size <= experiment.training_examples:
            raise ValueError(
                f"batch_size={batch_size}: takes 1 to {experiment.training_examples}, "
                f"the number of training examples"
            )
    for seed in axes["seed"]:
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed}: takes an integer from 0 to 2^32 - 1")


def describe(experiment: Experiment, axes: Axes) -> dict[str, Any]:
    """What the results depend on, in JSON: two sweeps with the same description have the same results."""

    def name(value: Any) -> Any:
        if isinstance(value, functools.partial):
            return f"{name(value.func)}({', '.join(f'{k}={v}' for k, v in value.keywords.items())})"
        if isinstance(value, np.generic):
            return value.item()
        return getattr(value, "__name__", value)

    data = experiment.dataset
    digest = hashlib.sha256()
    for array in (data.x, data.y, data.x_test, data.y_test):
        digest.update(np.ascontiguousarray(array).tobytes())
    return {
        "model": name(experiment.model),
        "model_options": {key: name(value) for key, value in experiment.model_options.items()},
        "dataset": data.name,
        "dataset_sha256": digest.hexdigest(),
        "loss": name(experiment.loss_fn),
        "gradient": experiment.gradient.__module__.rsplit(".", 1)[-1],
        "steps": experiment.steps,
        "eval_every": experiment.eval_every,
        "validation": experiment.validation,
        "dtype": np.dtype(experiment.dtype).name,
        "axes": {axis: [name(value) for value in found] for axis, found in axes.items()},
    }
