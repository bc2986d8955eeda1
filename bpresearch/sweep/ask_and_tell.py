"""Searches: sweeps whose settings a sampler draws, batch by batch."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bpresearch.distribution import Uniform
from bpresearch.sweep import sample, store
from bpresearch.sweep.axes import Axes, Every
from bpresearch.sweep.choosing import choice_before
from bpresearch.sweep.description import describe, label
from bpresearch.sweep.execute import lasting, run
from bpresearch.sweep.experiment import Experiment, as_experiment
from bpresearch.sweep.options import Settings
from bpresearch.sweep.processes import leads, told
from bpresearch.sweep.prune import check_pruner, numbers_of, rungs_of
from bpresearch.sweep.task import Task

BATCH = 16
"""Trials that are drawn together by a sampler that learns from trials."""


def search(
    experiment: Task,
    axes: Axes,
    *,
    trials: int,
    sampler: str = "tpe",
    batch: int | None = None,
    sampler_seed: int = 0,
    prune: str | None = None,
    workdir: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Trains trials that a sampler of Optuna's draws, each with every seed.

    What a trial is judged by is the mean over its seeds of what settings are chosen by, at the end
    (`Experiment.choose`). A trial with a run that diverged counts as pruned. Of an axis that is `Every`, a
    trial has all values, and is judged by the best of them.

    Args:
        experiment: what the runs have in common; a `Task` is trained as `Experiment` does by default.
        axes: as `grid` gives them; a value is drawn from each list, or from a `Uniform`. All seeds are
            trained.
        trials: how many, those in the workdir included; a larger number makes a search longer.
        sampler: `random`, `qmc` (a Sobol sequence) or `tpe` (tree-structured Parzen estimator).
        batch: trials that are drawn, and trained, together. By default 16 or an eighth of them for `tpe`,
            which learns from a batch before it draws the next, and all of them for the others.
        sampler_seed: another one draws other trials.
        prune: as in `run`, among the trials of a batch.
        workdir: as in `run`; `study.journal` in there is Optuna's: `optuna-dashboard study.journal` shows
            it, and the same call resumes a search that was stopped.
        quiet: show no progress.
        **options: how `run` is to train them, such as `layout`.

    Returns:
        As `run`, with the runs of all trials, in the order of the trials. With a workdir and several
        processes, only the first has the values.

    Raises:
        ValueError: as in `run`, or Optuna is not installed.
    """
    if sampler not in sample.SAMPLERS:
        raise ValueError(f"sampler={sampler}: takes {', '.join(sample.SAMPLERS)}")
    for name, value in (("trials", trials), ("batch", 1 if batch is None else batch)):
        if value < 1:
            raise ValueError(f"{name}={value}: takes at least 1")
    check_pruner(prune, axes)
    experiment = lasting(as_experiment(experiment), axes, prune)
    source = source_of(axes, sampler, sampler_seed)
    path = Path(workdir).expanduser() if workdir is not None and leads() else None
    study = Study(experiment, axes, sampler, sampler_seed, path)
    results_depend_on = {name: options[name] for name in ("layout", "shard") if name in options}
    with ExitStack() as held:

        def begin() -> None:
            if path:
                held.enter_context(store.locked(path))
            study.open(source, prune=prune, **results_depend_on)

        told(begin)
        return _searched(study, trials, batch, workdir, source, prune=prune, quiet=quiet, **options)


def _searched(
    study: "Study",
    trials: int,
    batch: int | None,
    workdir: str | Path | None,
    source: Mapping[str, object],
    **how: Any,
) -> xr.Dataset:
    """Draws and trains what is left of a search's trials; returns the runs of all."""
    experiment, prune, sampler = study.experiment, how["prune"], study.sampler
    size = batch or (max(BATCH, trials // 8) if sampler == "tpe" else trials)
    everything: set[str] = set()
    results = []
    while asked := told(lambda: study.ask(size, trials)):
        runs = [study.runs_of(sample.optuna().trial.FixedTrial(params)) for params in asked]
        listed = _different(runs)
        outcomes = run(experiment, listed, workdir, source=source, **how)
        told(partial(study.tell, runs, outcomes, rungs_of(experiment) if prune else []))
        results.append(outcomes.isel(run=[repr(settings) not in everything for settings in listed]))
        everything |= {repr(settings) for settings in listed}
    if workdir is None:
        return xr.concat(
            results, "run", data_vars="minimal", coords="minimal", compat="override", join="override"
        )
    of_all = [sample.optuna().trial.FixedTrial(params) for params in told(study.values)]
    runs_of_all = _different([study.runs_of(trial) for trial in of_all])
    return run(experiment, runs_of_all, workdir, source=source, **(how | {"quiet": True}))


class Study:
    """The trials of a search. The first process keeps them, and alone calls what reads or changes them; every
    process makes runs of them, `runs_of`.

    Args:
        experiment, axes, sampler, sampler_seed: as `search` takes them.
        path: the workdir; None keeps the trials in memory.
    """

    def __init__(
        self, experiment: Experiment, axes: Axes, sampler: str, sampler_seed: int, path: Path | None
    ):
        self.experiment, self.axes, self.sampler, self.seed = experiment, axes, sampler, sampler_seed
        self.path = path
        self.asked: list[Any] = []

    def open(self, source: Mapping[str, object], **how: Any) -> None:
        """Makes the workdir the folder of this search, and reads its trials; arguments as `claim`'s."""
        if self.path:
            claim(self.path, self.experiment, source, **how)
        self.read()

    def read(self) -> None:
        """Reads the trials in the workdir."""
        self.journal = sample.Journal(self.path / "study.journal" if self.path else None)
        self.choice = choice_before(self.experiment, self.axes)
        self.study = sample.study(self.journal, maximize=self.choice.maximize)

    def ask(self, size: int, trials: int) -> list[Settings]:
        """The values of the next batch of trials, of `size` at most; none when there are `trials`."""
        self.asked = sample.next_batch(self.study, self.sampler, self.seed, size, trials)
        for trial in self.asked:
            self.runs_of(trial)
        self.journal.save()
        return [trial.params for trial in self.asked]

    def tell(self, runs: list[list[Settings]], results: xr.Dataset, rungs: list[int]) -> None:
        """Judges each trial of the batch by the results of its runs; they were judged at these rungs, too."""
        different = _different(runs)
        reached = judged(results, self.choice.variable)
        curves = {repr(settings): curve for settings, curve in zip(different, reached, strict=True)}
        steps = results.eval_step.values.tolist()
        for trial, its_runs in zip(self.asked, runs, strict=True):
            curve = self.best_of([curves[repr(settings)] for settings in its_runs], its_runs)
            sample.tell(self.study, trial, curve[-1], {step: curve[steps.index(step)] for step in rungs})
        self.journal.save()

    def best_of(self, curves: list[np.ndarray], runs: list[Settings]) -> np.ndarray:
        """What a trial reached at each evaluation: the mean over seeds, of its best setting if of many."""
        table, number = np.array(curves), numbers_of(runs)
        means = [table[number == setting].mean(axis=0) for setting in range(number.max() + 1)]
        ends = np.array([mean[-1] if self.choice.maximize else -mean[-1] for mean in means])
        return means[int(np.argmax(np.where(np.isfinite(ends), ends, -np.inf)))]

    def values(self) -> list[Settings]:
        """What all trials so far have on the axes that were drawn."""
        return [trial.params for trial in sample.handles(self.study)]

    def runs_of(self, trial: Any) -> list[Settings]:
        """A trial's runs; what a trial of the study's has no value for yet is drawn."""
        fill = self.sampler == "qmc"
        return sample.runs_of(trial, self.axes, self.experiment.model, all_axes=fill)


def drawn(experiment: Experiment, axes: Axes, sampler: str, workdir: Path) -> list[Settings]:
    """The runs of the trials that a search has drawn so far, as they are numbered in its workdir."""
    study = Study(experiment, axes, sampler, 0, workdir)

    def values() -> list[Settings]:
        study.read()
        return study.values()

    return _different([study.runs_of(sample.optuna().trial.FixedTrial(params)) for params in told(values)])


def _different(trials: list[list[Settings]]) -> list[Settings]:
    """The runs of these trials, each once, in the order of the trials."""
    return list({repr(settings): settings for runs in trials for settings in runs}.values())


def pretended(experiment: Experiment, axes: Axes, trials: int) -> list[Settings]:
    """Runs like those of a search with so many trials, drawn at random and kept nowhere."""
    study = sample.study(sample.Journal(None), maximize=True)
    asked = sample.next_batch(study, "random", 0, trials, trials)
    runs = [sample.runs_of(trial, axes, experiment.model, all_axes=False) for trial in asked]
    return _different(runs)


def judged(results: xr.Dataset, chosen_by: str) -> np.ndarray:
    """What runs are judged by at each evaluation; NaN at the end of those that diverged or were pruned."""
    values = results[chosen_by].values.astype(np.float64)
    values[results.diverged_at.values >= 0, -1] = np.nan
    return values


def claim(workdir: Path, experiment: Experiment, source: Axes | Mapping[str, object], **how: Any) -> None:
    """Makes a workdir the folder of these results, before there are any; all arguments as `describe`'s.

    Raises:
        ValueError: it holds others, is in use, or cannot be written.
    """
    with store.locked(workdir):
        store.check_config(workdir, describe(experiment, source, **how))


def source_of(axes: Axes, sampler: str, sampler_seed: int) -> dict[str, object]:
    """In JSON, what the trials of a search depend on beside the experiment and their number."""
    drawn = {name: str(v[0]) if isinstance(v[0], Uniform) else label(v) for name, v in axes.items()}
    every = [name for name, values in axes.items() if isinstance(values, Every)]
    factored_out = {"factor_out": every} if every else {}
    return {**drawn, "sampler": sampler, "sampler_seed": sampler_seed, **factored_out}
