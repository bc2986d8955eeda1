"""What a step of each setting costs in time: one run alone, the settings in turn.

The time that a sweep itself takes says nothing of an optimizer: its runs are evaluated, wait for compilers
and share the machine with others.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from jaxtyping import PyTree

from bpresearch.statistics import best_settings
from bpresearch.sweep.axes import group_of
from bpresearch.sweep.chunks import Segment, batches, tables
from bpresearch.sweep.experiment import Experiment, as_experiment
from bpresearch.sweep.options import Settings, constants
from bpresearch.sweep.population import compile_with_fewer_copies
from bpresearch.sweep.task import Task
from bpresearch.train import Run, start, train

STEPS = 10
"""Steps of a run whose batches a program holds; it takes them again and again."""
SECONDS, ROUNDS = 0.2, 7
"""How long a program is timed in each round, about, and how often."""


class StepTime(NamedTuple):
    """Seconds that a step takes: the median over the rounds, the fastest and the slowest."""

    median: float
    low: float
    high: float


def seconds_per_step(
    experiment: Task, runs: Sequence[Settings], *, rounds: int = ROUNDS, seconds: float = SECONDS
) -> list[StepTime]:
    """Seconds that a step of each of these runs takes, measured so that they can be compared.

    Each is trained alone on one device, by the program that `train.train` is, without evaluations and
    diagnostics; compiling is not counted. They are timed in turn, each once a round and in another order in
    the next, so that a slow moment of the machine meets all of them; runs of one program have one time.

    Args:
        experiment: as `run` takes it.
        runs: each with one value on every axis.
        rounds: how often each is timed.
        seconds: about how long in a round.
    """
    experiment, programs = as_experiment(experiment), dict[Any, Callable[[], float]]()
    for settings in runs:
        if group_of(settings) not in programs:
            programs[group_of(settings)] = _timed(experiment.of(settings), settings, seconds)
    times: dict[tuple[object, ...], list[float]] = {group: [] for group in programs}
    order = list(programs)
    for _ in range(rounds):
        for group in order:
            times[group].append(programs[group]())
        order = order[1:] + order[:1]
    step_times = {group: StepTime(float(np.median(t)), min(t), max(t)) for group, t in times.items()}
    return [step_times[group_of(settings)] for settings in runs]


def _timed(experiment: Experiment, settings: Settings, seconds: float) -> Callable[[], float]:
    """Trains the run for about so long; returns the seconds of one step."""
    with experiment.in_format():
        program, run, inputs = _program(experiment, settings)

    def repeat(count: int) -> float:
        with experiment.in_format():
            begun = time.perf_counter()
            jax.block_until_ready(program(np.int32(count), run, inputs))
            return (time.perf_counter() - begun) / (STEPS * count)

    repeat(1)  # the first call warms up
    return partial(repeat, max(1, round(seconds / (STEPS * repeat(1)))))


def _program(experiment: Experiment, settings: Settings) -> tuple[jax.stages.Compiled, Run, PyTree]:
    """A program that takes the same few steps of a run again and again, the run, and its inputs."""
    training, data = experiment.training(settings), experiment.examples()["train"]
    few = [Segment(1, min(STEPS, experiment.steps), False)]
    order = np.resize(batches(experiment, [settings["seed"]], settings["batch_size"], few)[0, 0],
                      (STEPS, settings["batch_size"]))  # fmt: skip
    scheduled = {name: np.resize(table[0], STEPS) for name, table in tables(experiment, [settings]).items()}
    fixed = {name: np.float32(value) for name, value in constants(settings).items()}
    first = {name: values[0] for name, values in scheduled.items()}

    def again(count: jax.Array, run: Run, inputs: PyTree) -> Run:
        order, scheduled, fixed, data = inputs
        once = lambda _, run: train(training, run, data, order, scheduled, fixed, 1, STEPS)[0]  # noqa: E731
        return jax.lax.fori_loop(0, count, once, run)

    run = jax.jit(partial(start, training))(np.uint32(settings["seed"]), fixed | first)
    inputs = jax.device_put((order, scheduled, fixed, data))
    return compile_with_fewer_copies(jax.jit(again).lower(np.int32(1), run, inputs)), run, inputs


def time_best_settings(
    experiment: Task, runs: Sequence[Settings], results: xr.Dataset, **options: Any
) -> dict[tuple[str, str], StepTime]:
    """Seconds a step of each optimizer's best setting with each schedule, as `seconds_per_step` measures.

    Args:
        experiment: as `run` takes it.
        runs: the runs that were tuned with, as their results have them.
        results: theirs, with or without fresh runs.
        **options: of `seconds_per_step`.
    """
    best = {key: setting for key, setting in best_settings(results).items() if setting.scored}
    chosen = [runs[int(setting.tuning[0])] for setting in best.values()]
    times = seconds_per_step(experiment, chosen, **options)
    return {(str(a), str(b)): time for (a, b), time in zip(best, times, strict=True)}
