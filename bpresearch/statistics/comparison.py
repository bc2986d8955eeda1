"""Optimizers or schedules compared under equal conditions: tuned alike, over several strata."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from bpresearch.statistics.intervals import (
    Interval,
    difference,
    mean_and_interval,
    paired_difference,
    unpaired_difference,
)
from bpresearch.statistics.resampling import Range, expected_best, probability_of_improvement_interval
from bpresearch.statistics.settings import (
    Setting,
    best_settings,
    chosen_by,
    describe,
    metric_of,
    ranking,
    settings_of,
    tuning,
)
from bpresearch.statistics.verdict import pairs


def edges(results: xr.Dataset, setting: Setting) -> dict[str, str]:
    """The numbers of a setting that lie at an end of their swept range: name to "lowest" or "highest".

    The range is that of the setting's own optimizer and schedule. Zero is no edge: nothing lies beyond it.
    A setting of which no run came to its end is best of nothing, and at no edge.
    """
    if not setting.scored:
        return {}
    names = ("optimizer", "schedule")
    group = [s for s in settings_of(results) if all(s.values.get(n) == setting.values.get(n) for n in names)]
    ends = {}
    for name, value in setting.values.items():
        if not _is_number(value) or value == 0:
            continue
        swept = [s.values[name] for s in group if name in s.values]
        if min(swept) < max(swept) and value in (min(swept), max(swept)):
            ends[name] = "lowest" if value == min(swept) else "highest"
    return ends


def edge_warnings(results: xr.Dataset, settings: Sequence[Setting]) -> list[str]:
    """A sentence for each setting at an edge of its swept range, where a better one may lie beyond."""
    warnings = []
    for setting in settings:
        at = [f"{name} {setting.values[name]:g} ({which})" for name, which in edges(results, setting).items()]
        if at:
            key = ", ".join(str(setting.values[name]) for name in ("optimizer", "schedule"))
            warnings.append(f"{key}: its best {' and '.join(at)} is at the edge of the range; sweep further.")
    return warnings


def effective_learning_rate(values: dict[str, Any]) -> float:
    """lr / (1 - beta): the step along a constant gradient that momentum settles at; lr itself for SGD.

    NaN for other optimizers, whose step does not scale so.
    """
    if values["optimizer"] not in ("sgd", "momentum", "nesterov"):
        return math.nan
    rate = values.get("lr", math.nan) / (1 - values.get("momentum", 0.0))
    return float(f"{rate:.12g}")  # 0.03 / (1 - 0.9) and 0.3 / 1 are one place on an axis


def untrained(results: xr.Dataset) -> float:
    """The median of the test metric before the first step; what a diverged run is worth (0: unknown)."""
    start = results[metric_of(results).variable].isel(eval_step=0).values
    finite = start[np.isfinite(start)]
    return float(np.median(finite)) if len(finite) else 0.0


def normalised_scores(
    results: xr.Dataset, by: str = "optimizer", stratum: str = "schedule"
) -> dict[str, list[Float[np.ndarray, " _"]]]:
    """For each value of `by`, the scores of its tuned runs in each stratum that all values have.

    A score is 0 for the test metric of an untrained model and 1 for the best mean that any tuned setting
    reaches, so that accuracies and losses of several tasks go together; a run that diverged is worth 0, no
    matter how. A stratum in which all of a value's runs were pruned is left out: what they would have reached
    is not known.
    """
    best = {
        key: setting
        for key, setting in best_settings(results, (by, stratum)).items()
        if setting.fresh or setting.pruned < len(setting.runs)
    }
    names = list(dict.fromkeys(name for name, _ in best))
    strata = [s for s in dict.fromkeys(s for _, s in best) if all((name, s) in best for name in names)]
    start = untrained(results)
    gains = {key: _gain(results, setting.test, start) for key, setting in best.items()}
    top = max((float(np.mean(gain)) for gain in gains.values()), default=0.0)
    top = top if top > 0 else 1.0
    return {name: [gains[name, s] / top for s in strata] for name in names}


def _gain(results: xr.Dataset, test: np.ndarray, start: float) -> np.ndarray:
    sign = 1 if metric_of(results).higher_is_better else -1
    return np.where(np.isfinite(test), sign * (test.astype(np.float64) - start), 0.0)


def several(
    sweeps: Sequence[xr.Dataset], by: str = "optimizer", stratum: str = "schedule"
) -> dict[str, list[Float[np.ndarray, " _"]]]:
    """`normalised_scores` of the values of `by` that every sweep has, the strata of all sweeps together."""
    sweep_scores = [normalised_scores(results, by, stratum) for results in sweeps]
    names = [name for name in sweep_scores[0] if all(name in scores for scores in sweep_scores)]
    return {name: [stratum for scores in sweep_scores for stratum in scores[name]] for name in names}


class Budget(NamedTuple):
    """Expected best result of one optimizer against the number of settings tried."""

    trials: np.ndarray
    mean: np.ndarray
    half_width: np.ndarray


def budget_curves(results: xr.Dataset, by: str = "optimizer") -> dict[str, Budget]:
    """For each value of `by`: the expected test metric of the best of n settings, chosen by validation.

    Of the tuning runs: a curve for each seed (see `expected_best`), then their mean and Student's interval.
    A setting that diverged is chosen last, and is worth what an untrained model is.
    """
    groups: dict[str, list[Setting]] = {}
    results = tuning(results)
    for setting in settings_of(results):
        groups.setdefault(str(setting.values[by]), []).append(setting)
    sign, start = (1 if chosen_by(results).higher_is_better else -1), untrained(results)
    curves = {}
    for name, group in groups.items():
        per_seed: dict[int, list[tuple[float, float]]] = {}
        for setting in group:
            for seed, choosing, test in zip(setting.seeds, setting.chosen_by, setting.test, strict=True):
                fine = np.isfinite(choosing) and np.isfinite(test)
                trial = (sign * choosing, test) if fine else (-math.inf, start)
                per_seed.setdefault(int(seed), []).append(trial)
        fewest = min(len(trials) for trials in per_seed.values())
        best = [expected_best(*np.array(trials, np.float64).T)[:fewest] for trials in per_seed.values()]
        columns = [mean_and_interval(column) for column in np.array(best).T]
        curves[name] = Budget(
            np.arange(1, fewest + 1),
            np.array([c.mean for c in columns]),
            np.array([c.half_width for c in columns]),
        )
    return curves


class Difference(NamedTuple):
    """How much better one setting is than another, with the interval that uses the seeds and without."""

    name: str
    paired: Interval
    unpaired: Interval
    improvement: Range
    p: float
    """Corrected for the number of pairs, as in the verdict."""


def differences(results: xr.Dataset, by: str = "optimizer") -> tuple[Setting, list[Difference]]:
    """The best setting of all against the best of every other value of `by`; positive: the first is better.

    `paired` has no interval where the two have other seeds.
    """
    first, *others = ranking(results, by)
    sign, start = (1 if metric_of(results).higher_is_better else -1), untrained(results)
    corrected = {
        describe(pair.second): pair.p for pair in pairs(results, by) if pair.first.values == first.values
    }
    gaps = []
    for other in others:
        same = first.seeds.tolist() == other.seeds.tolist()
        apart = unpaired_difference(sign * first.test, sign * other.test)
        paired = (
            paired_difference(sign * first.test, sign * other.test)
            if same
            else Interval(apart.mean, math.nan, 0)
        )
        scores = [_gain(results, first.test, start)], [_gain(results, other.test, start)]
        chance = probability_of_improvement_interval(*scores)
        name = describe(other)
        gaps.append(Difference(name, paired, apart, chance, corrected.get(name, math.nan)))
    return first, gaps


SPECIAL_CASES = (("momentum", "sgd"), ("nesterov", "sgd"), ("adam", "momentum"))
"""Optimizers that contain another for some of their settings (Choi et al. 2019)."""


def budget_warnings(results: xr.Dataset) -> list[str]:
    """A sentence for each optimizer that came out worse, beyond the interval, than one it contains.

    Tuned well enough it could not: its hyper-parameters have values that make it the other.
    """
    best = {setting.values["optimizer"]: setting for setting in ranking(results)}
    sign = 1 if metric_of(results).higher_is_better else -1
    warnings = []
    for general, special in SPECIAL_CASES:
        if general not in best or special not in best:
            continue
        general_setting, other = best[general], best[special]
        gap = difference(sign * other.test, sign * general_setting.test, other.seeds, general_setting.seeds)
        if gap.mean > gap.half_width:
            count = sum(s.values["optimizer"] == general for s in settings_of(results))
            warnings.append(
                f"{general} came out worse than {special}, which it contains: {count} settings are too few, "
                f"or their ranges miss the best."
            )
    return warnings


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
