"""How many steps training takes to a target."""

from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from bpresearch.statistics.settings import Setting, chosen_by, ranking, settings_of


class Speed(NamedTuple):
    """Steps to a target of one optimizer's fastest setting.

    Attributes:
        setting: the setting.
        steps: for each run the first evaluation at which it has reached the target; NaN if it never does.
    """

    setting: Setting
    steps: Float[np.ndarray, " seeds"]


def target_of(results: xr.Dataset, by: str = "optimizer") -> float:
    """A target that all can reach: the worst, over the values of `by`, of what their best settings end with.

    In the metric that settings are chosen by.
    """
    metric = chosen_by(results)
    best = ranking(results, by)
    means = [float(np.nanmean(s.chosen_by)) for s in best if np.isfinite(s.chosen_by).any()]
    if not means:
        return float("nan")
    return min(means) if metric.higher_is_better else max(means)


def steps_to_target(results: xr.Dataset, target: float, by: str = "optimizer") -> dict[str, Speed]:
    """For each value of `by` its fastest setting: the most runs reach the target, then in the fewest steps.

    Args:
        results: the runs.
        target: value of the metric that settings are chosen by, of the validation part if there is one.
        by: what is compared, "optimizer" or "schedule".
    """
    metric = chosen_by(results)
    values, steps = results[metric.variable].values, results.eval_step.values.astype(np.float64)
    reached = values >= target if metric.higher_is_better else values <= target
    first = np.where(reached.any(axis=1), steps[reached.argmax(axis=1)], np.nan)
    found: dict[str, Speed] = {}
    for setting in settings_of(results):
        name, speed = str(setting.values[by]), Speed(setting, first[setting.runs])
        if name not in found or _order(speed) < _order(found[name]):
            found[name] = speed
    return found


def _order(speed: Speed) -> tuple[float, float]:
    return float(np.isnan(speed.steps).mean()), float(np.where(np.isnan(speed.steps), 0, speed.steps).sum())
