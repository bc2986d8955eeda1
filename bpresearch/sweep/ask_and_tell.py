"""Searches: sweeps whose settings a sampler draws, batch by batch."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bpresearch.sweep import sample, store
from bpresearch.sweep.description import describe, label
from bpresearch.sweep.distribution import Uniform
from bpresearch.sweep.execute import run
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.grid import Axes, Settings
from bpresearch.sweep.prune import rungs_of

BATCH = 16
"""Trials that are drawn together by a sampler that learns from trials."""


def search(
    experiment: Experiment,
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

    What a trial is judged by is the mean over its seeds of the last validation accuracy (loss, where there
    are no classes; of the test part, where nothing is held out). A trial with a run that diverged counts as
    pruned.

    Args:
        experiment: what the runs have in common.
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
        As `run`, with the runs of all trials, in the order of the trials.

    Raises:
        ValueError: as in `run`, or Optuna is not installed.
    """
    if sampler not in sample.SAMPLERS:
        raise ValueError(f"sampler={sampler}: takes {', '.join(sample.SAMPLERS)}")
    for name, value in (("trials", trials), ("batch", 1 if batch is None else batch)):
        if value < 1:
            raise ValueError(f"{name}={value}: takes at least 1")
    path = None if workdir is None else Path(workdir)
    source = source_of(axes, sampler, sampler_seed)
    if path:
        results_depend_on = {name: options[name] for name in ("layout", "shard") if name in options}
        claim(path, experiment, source, prune=prune, **results_depend_on)
    journal = sample.Journal(path / "study.journal" if path else None)
    study = sample.study(journal, maximize=experiment.dataset.classes is not None)
    size = batch or (max(BATCH, trials // 8) if sampler == "tpe" else trials)
    fill = sampler == "qmc"
    everything: dict[str, Settings] = {}
    results = []
    while asked := sample.next_batch(study, sampler, sampler_seed, size, trials):
        runs = [sample.runs_of(trial, axes, experiment.model, all_axes=fill) for trial in asked]
        journal.save()
        different = {repr(settings): settings for trial in runs for settings in trial}
        listed = list(different.values())
        found = run(experiment, listed, workdir, source=source, prune=prune, quiet=quiet, **options)
        curves = dict(zip(different, judged(found, experiment.chosen_by), strict=True))
        steps = found.eval_step.values.tolist()
        for trial, its_runs in zip(asked, runs, strict=True):
            curve = np.mean([curves[repr(settings)] for settings in its_runs], axis=0)
            at_rungs = {step: curve[steps.index(step)] for step in (rungs_of(experiment) if prune else ())}
            sample.tell(study, trial, curve[-1], at_rungs)
        journal.save()
        results.append(found.isel(run=[key not in everything for key in different]))
        everything |= different
    if path is None:
        return xr.concat(
            results, "run", data_vars="minimal", coords="minimal", compat="override", join="override"
        )
    runs_of_all = drawn(experiment, axes, sampler, path)
    return run(experiment, runs_of_all, workdir, source=source, prune=prune, quiet=True, **options)


def drawn(experiment: Experiment, axes: Axes, sampler: str, workdir: Path) -> list[Settings]:
    """The runs of the trials that a search has drawn so far, as they are numbered in its workdir."""
    study = sample.study(
        sample.Journal(workdir / "study.journal"), maximize=experiment.dataset.classes is not None
    )
    everything: dict[str, Settings] = {}
    for trial in sample.handles(study):
        runs = sample.runs_of(trial, axes, experiment.model, all_axes=sampler == "qmc")
        everything |= {repr(settings): settings for settings in runs}
    return list(everything.values())


def pretended(experiment: Experiment, axes: Axes, trials: int) -> list[Settings]:
    """Runs like those of a search with so many trials, drawn at random and kept nowhere."""
    study = sample.study(sample.Journal(None), maximize=True)
    asked = sample.next_batch(study, "random", 0, trials, trials)
    runs = [sample.runs_of(trial, axes, experiment.model, all_axes=False) for trial in asked]
    return list({repr(settings): settings for trial in runs for settings in trial}.values())


def judged(results: xr.Dataset, chosen_by: str) -> np.ndarray:
    """What runs are judged by at each evaluation; NaN at the end of those that diverged or were pruned."""
    values = results[chosen_by].values.astype(np.float64)
    values[results.diverged_at.values >= 0, -1] = np.nan
    return values


def claim(workdir: Path, experiment: Experiment, source: Axes | dict[str, Any], **how: Any) -> None:
    """Makes a workdir the folder of these results, before there are any; all arguments as `describe`'s.

    Raises:
        ValueError: it holds others, is in use, or cannot be written.
    """
    with store.locked(workdir):
        store.check_config(workdir, describe(experiment, source, **how))


def source_of(axes: Axes, sampler: str, sampler_seed: int) -> dict[str, Any]:
    """In JSON, what the trials of a search depend on beside the experiment and their number."""
    drawn = {name: str(v[0]) if isinstance(v[0], Uniform) else label(v) for name, v in axes.items()}
    return {**drawn, "sampler": sampler, "sampler_seed": sampler_seed}
