"""Tuning apart from reporting: the settings that a sweep chose are trained again with fresh seeds.

The tuning runs stay in the workdir as they are. The fresh runs are a sweep of their own, in `confirm/` there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bpresearch import statistics
from bpresearch.sweep import store
from bpresearch.sweep.checks import axes_of
from bpresearch.sweep.execute import lasting, run
from bpresearch.sweep.experiment import as_experiment
from bpresearch.sweep.options import Settings
from bpresearch.sweep.processes import leads, told
from bpresearch.sweep.task import Task

FOLDER = "confirm"
"""Where the fresh runs are, in the workdir."""
FIRST_FRESH = 10_000
"""The first fresh seed, far from those that settings are tuned with; of the second study twice as far."""


def confirm(
    experiment: Task,
    runs: list[Settings],
    results: xr.Dataset,
    *,
    seeds: int = 10,
    by: str = "optimizer",
    study: int = 1,
    workdir: str | Path | None = None,
    **options: Any,
) -> xr.Dataset:
    """Trains the best setting of each optimizer again, with fresh seeds, the same for all.

    Choosing the best of several settings by a few runs chooses their luck too: of ten equal settings of three
    seeds, the best looks 0.74 standard deviations of a run too good. Fresh runs have no part in that. The
    best setting with each other schedule, which is in tables and no verdict, has half of the fresh seeds.

    Args:
        experiment: as `run` takes it.
        runs: the runs that were tuned with, as their results have them.
        results: theirs, as `run` and `search` return them.
        seeds: how many fresh ones; 0 trains none.
        by: what is compared, "optimizer" or (then the two change places) "schedule"; where each has one
            setting, nothing was chosen, and nothing is trained again.
        study: number of the tuning study, from 1; each has fresh seeds of its own.
        workdir: that of the tuning runs; the same call resumes what was stopped.
        **options: how `run` is to train them, such as `layout`.

    Returns:
        The results with the fresh runs after the others, told apart by the variable `fresh`.

    Raises:
        ValueError: as in `run`.
    """
    if seeds < 0:
        raise ValueError(f"confirm_seeds={seeds}: takes a number of at least 0")
    again = told(lambda: _chosen(results, by)) if seeds else []
    if not again:
        return results
    listed = _fresh_runs([(runs[number], best) for number, best in again], runs, seeds, study)
    experiment = lasting(as_experiment(experiment), axes_of(runs))
    folder = Path(workdir).expanduser() / FOLDER if workdir is not None else None
    source = {"confirms": "the best settings"}
    confirmed = run(experiment, listed, folder, source=source, beside=runs, **options)
    return joined(results, confirmed) if leads() else results


def expected(runs: list[Settings], seeds: int, by: str = "optimizer") -> list[Settings]:
    """As many fresh runs as `confirm` will train, of any settings: for the programs to have room for them."""
    settings_of = {repr(settings | {"seed": 0}): settings[by] for settings in runs}
    if len(set(settings_of.values())) == len(settings_of):
        return []  # there is nothing to choose
    first = {(settings["optimizer"], settings["schedule"]): settings for settings in reversed(runs)}
    ahead = {settings[by]: settings for settings in first.values()}
    return _fresh_runs(
        [(candidate, ahead[candidate[by]] is candidate) for candidate in first.values()], runs, seeds
    )


def tuning_seeds(seeds: Sequence[int], study: int) -> list[int]:
    """The seeds that a study tunes with, in place of those of the first.

    >>> tuning_seeds([0, 1, 2], 2)
    [3, 4, 5]
    """
    return [seed + (study - 1) * (max(seeds) - min(seeds) + 1) for seed in seeds]


def _fresh_runs(
    again: list[tuple[Settings, bool]], runs: list[Settings], count: int, study: int = 1
) -> list[Settings]:
    """The settings with fresh seeds: all of them for those that are marked, half of them for the others."""
    seeds = fresh(sorted({run["seed"] for run in runs}), count, study)
    some = seeds[: -(-count // 2)]
    return [{**settings, "seed": seed} for settings, best in again for seed in (seeds if best else some)]


def fresh(seeds: Sequence[int], count: int, study: int = 1) -> list[int]:
    """So many seeds from FIRST_FRESH on (of the second study from twice that on) that are none of these.

    >>> fresh([0, 1, 10_001], 3)
    [10000, 10002, 10003]
    """
    first = FIRST_FRESH * study
    return [seed for seed in range(first, first + count + len(seeds)) if seed not in seeds][:count]


def _chosen(results: xr.Dataset, by: str) -> list[tuple[int, bool]]:
    """The number of a run of each setting that was chosen, and whether it is the best for its value of `by`;
    none where there was nothing to choose."""
    if not statistics.chosen(results, by):
        return []
    ahead = [setting.values for setting in statistics.best_settings(results, (by,)).values()]
    best = [setting for setting in statistics.best_settings(results).values() if setting.scored]
    return [(int(setting.tuning[0]), setting.values in ahead) for setting in best]


def joined(results: xr.Dataset, confirmed: xr.Dataset) -> xr.Dataset:
    """The results with the fresh runs after them, told apart by the variable `fresh`."""
    columns = {}
    for name in results.coords:
        if results[name].dims == ("run",) and name != "run":
            kind, values = results[name].dtype, confirmed[name].values.tolist()
            if kind == np.dtype(object):  # empty where an axis does not concern a run
                values = ["" if value != value else str(value) for value in values]
            columns[name] = ("run", np.array(values, kind))
    numbers = results.run.values.max() + 1 + np.arange(confirmed.sizes["run"])
    confirmed = confirmed.assign_coords(columns | {"run": numbers})
    parts = [
        part.assign(fresh=("run", np.full(part.sizes["run"], value)))
        for part, value in ((results, False), (confirmed, True))
    ]
    both = xr.concat(parts, "run", data_vars="minimal", coords="minimal", compat="override", join="override")
    return both.assign_attrs(results.attrs)


def read_confirmed(workdir: str | Path) -> xr.Dataset:
    """`read_trainings`, with the fresh runs of the settings that are the best, if all of them are finished.

    Raises:
        ValueError: as in `read_trainings`.
    """
    results = store.read_trainings(workdir)
    folder = Path(workdir).expanduser() / FOLDER
    if not (folder / "results.zarr").exists() or not results.finished.any():
        return results
    confirmed = store.read(folder)
    together = joined(results, confirmed)
    best = statistics.best_settings(together.isel(run=np.flatnonzero(together.finished.values)))
    whole = bool(confirmed.finished.all()) and all(s.fresh for s in best.values() if s.scored)
    return together if whole else results
