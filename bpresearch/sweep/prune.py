"""Stops poor runs early: at a few rungs the runs that are behind end, and the others close ranks.

A setting, with all its seeds, is judged by the validation metric at the rung, its mean or seed by seed;
Optuna's pruners decide. The runs that go on are packed into full blocks of the same programs, so no place
is left empty.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, PyTree

from bpresearch.sweep.axes import Axes
from bpresearch.sweep.checkpoint import as_before, plain
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.options import Settings
from bpresearch.sweep.processes import place, told
from bpresearch.sweep.sample import optuna
from bpresearch.sweep.stream import Stream

BY_MEAN = ("halving", "hyperband", "median")
PRUNERS = (*BY_MEAN, "wilcoxon")
RUNGS = (0.125, 0.25, 0.5)
"""Parts of a training after which runs are judged."""


P_VALUE, FEWEST_SEEDS = 0.1, 4
"""Of Wilcoxon's test, and the seeds from which on it can fall below: the least p of n pairs is 2^-n."""


def check_pruner(name: str | None, axes: Axes) -> None:
    """Whether this pruner can judge such runs.

    Raises:
        ValueError: for paired seeds there are too few.
    """
    seeds = len(set(axes.get("seed", [])))
    if name == "wilcoxon" and seeds < FEWEST_SEEDS:
        raise ValueError(
            f"prune=wilcoxon: {seeds} seeds never tell two settings apart at p < {P_VALUE}: take at least "
            f"{FEWEST_SEEDS}"
        )


def rungs_of(experiment: Experiment) -> list[int]:
    """The steps after which runs are judged: the first evaluations after an eighth, a quarter and a half."""
    steps, every = experiment.steps, experiment.eval_every
    rungs = [-(-round(part * steps) // every) * every for part in RUNGS]
    return sorted({step for step in rungs if 0 < step < steps})


def pruner(name: str, steps: int) -> Any:
    """Optuna's pruner for runs of `steps` steps.

    `halving` lets the better half go on at each rung (Jamieson and Talwalkar 2016; Li et al. 2020),
    `hyperband` does so in brackets that begin at different rungs (Li et al. 2018), `median` stops what is
    behind the median of the others. `wilcoxon` compares seed by seed (`paired_survivors`).
    """
    first = max(1, round(RUNGS[0] * steps))
    pruners = optuna().pruners
    if name == "halving":
        return pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=2)
    if name == "hyperband":
        return pruners.HyperbandPruner(min_resource=first, max_resource=steps, reduction_factor=2)
    return pruners.MedianPruner(n_startup_trials=0, n_warmup_steps=0)


def survivors(
    name: str,
    steps: int,
    rungs: list[int],
    values: Float[np.ndarray, "settings rungs"],
    *,
    maximize: bool,
) -> Bool[np.ndarray, " settings"]:
    """Which settings go on after the last of these rungs.

    Optuna's pruners judge a trial against those that came to the rung before it. Runs of a population come
    together; so all put down what they reached first, and then each is judged as if it were the last.

    Args:
        name: the pruner.
        steps: length of a training.
        rungs: the rungs so far.
        values: the metric at each rung; NaN for a setting that diverged or ended before.
        maximize: whether larger is better.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna().exceptions.ExperimentalWarning)
        study = optuna().create_study(
            study_name="rungs", pruner=pruner(name, steps), direction="maximize" if maximize else "minimize"
        )
    going_on = np.isfinite(values[:, -1])
    trials = [study.ask() for _ in values]
    for trial, reached in zip(trials, values, strict=True):
        for rung, value in zip(rungs, reached, strict=True):
            if np.isfinite(value):
                trial.report(float(value), rung)
                if rung != rungs[-1]:
                    trial.should_prune()
    arriving = study.get_trials()  # as they come to the last rung
    for trial in np.array(trials)[going_on]:
        trial.should_prune()
        if name == "median":  # which compares with trials that are complete
            study.tell(trial, values[trial.number, -1])
    for number in np.flatnonzero(going_on):
        going_on[number] = not study.pruner.prune(study, arriving[number])
    if not going_on.any() and np.isfinite(values[:, -1]).any():
        best = np.nanargmax if maximize else np.nanargmin
        going_on[best(values[:, -1])] = True
    return going_on


def paired_survivors(
    values: Float[np.ndarray, "settings seeds"], *, maximize: bool
) -> Bool[np.ndarray, " settings"]:
    """Which settings go on: all that a signed-rank test over seeds does not find worse than the best mean.

    (Wilcoxon 1945, one-sided, p < 0.1.) What a seed does to every setting cancels in the pairs, so that fewer
    seeds tell settings apart; and where seeds do not, no setting ends, unlike with the other pruners.

    Args:
        values: the metric of every run at a rung; NaN for runs that diverged or ended before.
        maximize: whether larger is better.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna().exceptions.ExperimentalWarning)
        test = optuna().pruners.WilcoxonPruner(p_threshold=P_VALUE, n_startup_steps=0)
    study = optuna().create_study(pruner=test, direction="maximize" if maximize else "minimize")
    going_on = np.isfinite(values).all(axis=1)
    if not going_on.any():
        return going_on
    trials = [study.ask() for _ in values]
    for number in np.flatnonzero(going_on):
        for pair, value in enumerate(values[number]):
            trials[number].report(float(value), pair)
    means = np.where(going_on, values.mean(axis=1), -np.inf if maximize else np.inf)
    best = int(np.argmax(means) if maximize else np.argmin(means))
    reported = study.get_trials()
    study.tell(trials[best], float(means[best]))
    for number in np.flatnonzero(going_on):
        going_on[number] = number == best or not test.prune(study, reported[number])
    return going_on


class RungStates:
    """The states, on the host, of runs that have come to a rung, by their row in the store."""

    def __init__(self) -> None:
        self.leaves: dict[int, list[np.ndarray]] = {}
        self.diverged_at: dict[int, int] = {}
        self.step = 0

    def keep(self, rows: np.ndarray, places: np.ndarray, run: PyTree) -> None:
        """Takes the states of these runs from their places in a program's arrays."""
        leaves = [plain(leaf)[places] for leaf in jax.tree.leaves(run)]
        self.leaves |= {int(row): [leaf[i] for leaf in leaves] for i, row in enumerate(rows)}
        self.diverged_at |= dict(zip(rows.tolist(), plain(run.diverged_at)[places].tolist(), strict=True))

    def put(self, rows: np.ndarray, places: np.ndarray, run: PyTree) -> PyTree:
        """A program's arrays with these runs' states in their places; as they are before the first rung."""
        if not self.step:
            return run
        leaves, tree = jax.tree.flatten(run)
        filled = []
        for number, leaf in enumerate(leaves):
            array = plain(leaf)
            array[places] = [self.leaves[int(row)][number] for row in rows]
            filled.append(as_before(place(array, leaf.sharding), leaf))
        return jax.tree.unflatten(tree, filled)


def train_in_rungs(
    name: str, experiment: Experiment, todo: list[Any], train: Callable[..., None], stream: Stream
) -> None:
    """Trains groups of runs from rung to rung, and ends those that are behind.

    Args:
        name: the pruner.
        experiment: what the runs have in common.
        todo: the groups, each with the `settings` of its runs and their `rows` in the store. Rows that are
            finished there are judged by what is there.
        train: `(number, runs, states=, until=)` trains some runs of a group.
        stream: takes the results to the store.
    """
    group, steps, rungs = stream.group, experiment.steps, rungs_of(experiment)
    rows = np.concatenate([block.rows for block in todo])
    of_group = np.concatenate([np.full(len(block.rows), i) for i, block in enumerate(todo)])
    runs = [settings for block in todo for settings in block.settings]
    setting = numbers_of(runs)
    pair = np.unique([settings["seed"] for settings in runs], return_inverse=True)[1]
    metric, maximize = group[stream.choice.variable], stream.choice.maximize
    known = group["finished"][:][rows]
    states, going_on = RungStates(), np.ones(len(rows), bool)
    for count, until in enumerate([*rungs, steps], 1):
        for number, block in enumerate(todo):
            active = (going_on & ~known)[of_group == number]
            if active.any():
                chosen = [settings for settings, goes in zip(block.settings, active, strict=True) if goes]
                train(
                    number,
                    block._replace(settings=chosen, rows=block.rows[active]),
                    states=states,
                    until=until,
                )
        stream.flush()
        if until == steps:
            return
        states.step = until

        def judged(so_far: list[int] = rungs[:count]) -> list[bool]:
            values = metric.oindex[rows, [rung // experiment.eval_every for rung in so_far]]
            if name == "wilcoxon":
                table = np.full((setting.max() + 1, pair.max() + 1), np.nan)
                table[setting, pair] = values[:, -1]
                return paired_survivors(table, maximize=maximize).tolist()
            means = np.stack([values[setting == i].mean(axis=0) for i in range(setting.max() + 1)])
            return survivors(name, steps, so_far, means.astype(np.float64), maximize=maximize).tolist()

        goes = np.array(told(judged))[setting]
        _end(rows[going_on & ~goes & ~known], until, states, stream, steps)
        going_on &= goes


def _end(rows: np.ndarray, step: int, states: RungStates, stream: Stream, steps: int) -> None:
    """Marks runs as finished after `step` steps of `steps`."""
    if len(rows):
        diverged_at = np.array([states.diverged_at[row] for row in rows.tolist()])
        stream.group["diverged_at"].oindex[rows] = diverged_at
        stream.group["pruned_at"].oindex[rows] = np.where(diverged_at < 0, step, -1)
        stream.group["finished"].oindex[rows] = True
        stream.report(steps=(steps - step) * len(rows), runs=len(rows), diverged=int((diverged_at > 0).sum()))
        for row in rows.tolist():
            del states.leaves[row]


def numbers_of(settings: list[Settings]) -> np.ndarray:
    """The number of each run's setting: runs that differ in the seed alone have one."""
    numbers: dict[str, int] = {}
    names = [repr({name: value for name, value in run.items() if name != "seed"}) for run in settings]
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])
