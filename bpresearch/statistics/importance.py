"""How much each hyper-parameter matters: shares of the variance over the settings that were tried."""

import math
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import xarray as xr

from bpresearch.imports import extra
from bpresearch.statistics.settings import Setting, axes_of, chosen_by, grouped, tuning

FEWEST = 40
"""Drawn settings of an optimizer from which on its importances are told."""
TREES = 64


def importance(results: xr.Dataset, by: str = "optimizer") -> dict[str, dict[str, float]]:
    """For each optimizer the share of the variance between its settings that each hyper-parameter explains.

    Functional analysis of variance (Hutter, Hoos and Leyton-Brown 2014) of the metric that settings are
    chosen by, its mean over tuning seeds: the part of the variance that a hyper-parameter explains alone,
    averaged over all others. What is missing to 1 lies in interactions. It is of the ranges that were swept:
    one that goes far into bad rates makes the rate important. A setting that diverged counts as the worst
    that did not; one that was ended early is left out.

    Of a whole grid the averages are those of the settings themselves, and exact. Where settings were drawn
    they are of a random forest that is fitted to them, by Optuna. Of simulated sums of two hyper-parameters
    it is right within 0.15 with 60 settings, but takes part of an interaction for importance: of a product of
    two centred ones, which has none, 0.5 with 60 settings and 0.2 with 150.

    Args:
        results: of a sweep or a search.
        by: what has importances of its own, "optimizer" or "schedule".

    Returns:
        The names of hyper-parameters with their shares, the most important first; without optimizers of
        which fewer than two hyper-parameters, or fewer than 40 settings that are no grid, were tried.

    Raises:
        MissingExtraError: settings were drawn, and Optuna is not installed.
    """
    results = tuning(results)
    names = [name for name in axes_of(results) if name != by]
    importances = {}
    for (name,), group in grouped(results, (by,)).items():
        scored = _scored(results, group)
        axes = [axis for axis in names if _varies(axis, [setting for setting, _ in scored])]
        places = [[setting.values[axis] for axis in axes] for setting, _ in scored]
        scores = np.array([score for _, score in scored])
        if len(axes) < 2 or np.ptp(scores) == 0:
            continue
        if _is_grid(places):
            shares = _of_grid(places, scores)
        elif len(places) >= FEWEST:
            shares = _of_forest(places, scores)
        else:
            continue
        order = np.argsort(-np.array(shares), kind="stable")
        importances[name] = {axes[k]: float(shares[k]) for k in order}
    return importances


def _is_grid(places: list[list[object]]) -> bool:
    """Whether these are all combinations of their values, each once."""
    different = {tuple(map(repr, place)) for place in places}
    counts = [len(set(map(repr, column))) for column in zip(*places, strict=True)]
    return len(different) == len(places) == math.prod(counts)


def _of_grid(places: list[list[object]], scores: np.ndarray) -> list[float]:
    """The variance of the means at each value of an axis, over that of all scores."""
    shares = []
    for column in zip(*places, strict=True):
        value = np.unique(list(map(repr, column)), return_inverse=True)[1]
        means = [scores[value == k].mean() for k in range(value.max() + 1)]
        shares.append(float(np.var(means) / np.var(scores)))
    return shares


def _scored(results: xr.Dataset, group: list[Setting]) -> list[tuple[Setting, float]]:
    """The settings that came to their ends, or diverged, with what they reached, the larger the better."""
    sign = 1 if chosen_by(results).higher_is_better else -1
    ended = [setting for setting in group if not setting.pruned]
    means = np.array([sign * setting.chosen_by.mean() for setting in ended], np.float64)
    finite = np.isfinite(means)
    worst = means[finite].min() if finite.any() else 0.0
    return list(zip(ended, np.where(finite, means, worst).tolist(), strict=True))


def _varies(axis: str, settings: list[Setting]) -> bool:
    """Whether all of these settings have a value on the axis, and not all the same."""
    values = [setting.values.get(axis) for setting in settings]
    return None not in values and len(set(values)) > 1


def _of_forest(places: list[list[object]], scores: np.ndarray) -> list[float]:
    """The same of a random forest, by Optuna, in which axes have their numbers for names."""
    optuna = extra("optuna", "the importance of drawn hyper-parameters")
    columns = [_scale(optuna, list(column)) for column in zip(*places, strict=True)]
    distributions = {str(k): distribution for k, (_, distribution) in enumerate(columns)}
    trials = [
        optuna.trial.create_trial(
            params={str(k): values[row] for k, (values, _) in enumerate(columns)},
            distributions=distributions,
            value=score,
        )
        for row, score in enumerate(scores.tolist())
    ]
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # normalize is young
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=False)
    optuna.logging.set_verbosity(verbosity)
    return [float(shares[name]) for name in distributions]


def _scale(optuna: ModuleType, values: list[object]) -> tuple[list[object], Any]:
    """The values of an axis and where they lie, in the logarithm if they span a decade.

    Optuna's own logarithmic distribution would be averaged over as if it were uniform.
    """
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return values, optuna.distributions.CategoricalDistribution(list(dict.fromkeys(values)))
    numbers = np.array(values, np.float64)
    if numbers.min() > 0 and numbers.max() / numbers.min() >= 10:
        numbers = np.log10(numbers)
    distribution = optuna.distributions.FloatDistribution(float(numbers.min()), float(numbers.max()))
    return numbers.tolist(), distribution
