"""The trials that Optuna's samplers draw, kept in a journal that Optuna and its dashboard open.

A trial is one value on every axis but the seed, so one run for each seed. Trials are asked for in batches,
each of which is trained as a population. The journal goes to disk once a batch and whole or not at all, so
the bookkeeping of a trial is a few operations in memory.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from flax import nnx

from bpresearch import files
from bpresearch.distribution import Uniform
from bpresearch.imports import extra
from bpresearch.sweep.axes import Axes, Every, expand
from bpresearch.sweep.description import coordinate
from bpresearch.sweep.options import Settings, taken

SAMPLERS = ("random", "qmc", "tpe")
STUDY = "sweep"


def optuna() -> ModuleType:
    """The module, or an error that says how to install it."""
    module = extra("optuna", "a sampler or pruner")
    module.logging.set_verbosity(module.logging.WARNING)
    return module


class Journal:
    """A backend of `optuna.storages.JournalStorage`: operations in memory, on disk when they are saved.

    Args:
        path: the file, one operation in JSON a line, as Optuna's own `JournalFileBackend` has them; None
            keeps the journal in memory.
    """

    def __init__(self, path: Path | None):
        self.path = path
        try:
            self.lines = path.read_text().splitlines() if path and path.exists() else []
            self.saved = len(self.lines)
            self.logs = [json.loads(line) for line in self.lines]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: is not a journal of Optuna's; take another folder") from error

    def read_logs(self, log_number_from: int) -> list[dict[str, object]]:
        """Optuna's name: the operations from one of them on."""
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, object]]) -> None:
        """Optuna's name: more operations."""
        self.lines += [json.dumps(log, separators=(",", ":")) for log in logs]
        self.logs += logs

    def save(self) -> None:
        """Writes the journal, whole or not at all."""
        if self.path and self.saved < len(self.lines):
            files.write(self.path, "\n".join(self.lines) + "\n")
            self.saved = len(self.lines)


def study(journal: Journal, *, maximize: bool) -> Any:
    """The study of a journal, empty in a new one.

    Raises:
        ValueError: the journal cannot be read.
    """
    try:
        return optuna().create_study(
            storage=optuna().storages.JournalStorage(journal),
            study_name=STUDY,
            direction="maximize" if maximize else "minimize",
            load_if_exists=True,
        )
    except (KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{journal.path}: is not a journal of Optuna's; take another folder") from error


def sampler(name: str, seed: int, trials: int) -> Any:
    """Optuna's sampler for a batch that begins after `trials` trials: what it draws depends on these alone.

    `random` draws independently, `qmc` takes the points of a scrambled Sobol sequence, `tpe` is the
    tree-structured Parzen estimator (Bergstra et al. 2011), which spreads the trials of a batch.
    """
    samplers = optuna().samplers
    if name == "qmc":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna().exceptions.ExperimentalWarning)
            return samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    state = (seed * 1_000_003 + trials) % 2**32
    if name == "tpe":
        return samplers.TPESampler(seed=state, constant_liar=True)
    return samplers.RandomSampler(seed=state)


def handles(study: Any, *, open_only: bool = False) -> list[Any]:
    """The study's trials, or those that nothing has been told of, as objects that values are drawn with."""
    trials = study.get_trials(deepcopy=False)
    chosen = [trial for trial in trials if not (open_only and trial.state.is_finished())]
    return [optuna().trial.Trial(study, trial._trial_id) for trial in chosen]


def next_batch(study: Any, name: str, seed: int, size: int, trials: int) -> list[Any]:
    """The trials that an earlier process was at, or else new ones up to `trials` in all; [] at the end."""
    known = len(study.get_trials(deepcopy=False))
    study.sampler = sampler(name, seed, known)
    return handles(study, open_only=True) or [study.ask() for _ in range(min(size, trials - known))]


def tell(study: Any, trial: Any, value: float, at_rungs: dict[int, float]) -> None:
    """Ends a trial: with its value, or as pruned where there is none (NaN)."""
    for step, reached in at_rungs.items():
        if reached == reached:
            trial.report(float(reached), step)
    if value == value:
        study.tell(trial, float(value))
    else:
        study.tell(trial, state=optuna().trial.TrialState.PRUNED)


def runs_of(trial: Any, axes: Axes, model: Callable[..., nnx.Module], *, all_axes: bool) -> list[Settings]:
    """A trial's runs, one for each seed, and for each value of an axis that is `Every`; what the trial has no
    value for yet is drawn.

    Args:
        trial: of Optuna.
        axes: lists of values, or of one `Uniform`.
        model: the model of the runs, unless it is an axis.
        all_axes: draw also what the trial's optimizer and model do not take, for a sampler that fills the
            whole space.
    """
    chosen: Settings = {}
    whole = {name: values for name, values in axes.items() if name == "seed" or isinstance(values, Every)}
    drawn = [name for name in axes if name not in whole]
    for name in sorted(drawn, key=lambda name: name not in ("optimizer", "model")):
        concerned = "optimizer" not in chosen or name in taken(chosen, model, [name])
        if concerned or all_axes:
            chosen[name] = _suggest(trial, name, axes[name])
        else:
            chosen[name] = axes[name][0]  # becomes NaN
    return expand({name: whole[name] if name in whole else [chosen[name]] for name in axes}, model)


def _suggest(trial: Any, name: str, values: list[Any]) -> Any:
    """A value of an axis from the trial, or the only one that there is."""
    if isinstance(values[0], Uniform):
        low, high = values[0].ends
        suggest = trial.suggest_int if isinstance(low, int) and isinstance(high, int) else trial.suggest_float
        return suggest(name, low, high, log=values[0].log)
    if len(values) == 1:
        return values[0]
    labels = [coordinate(value) for value in values]
    return values[labels.index(trial.suggest_categorical(name, labels))]
