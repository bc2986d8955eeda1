"""What tuning gives: several independent tuning studies of one comparison."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from bpresearch.statistics.intervals import Interval, holm, mean_and_interval, paired_difference
from bpresearch.statistics.settings import describe, metric_of, ranking
from bpresearch.statistics.verdict import LEVEL, listed, p_value


class Studies(NamedTuple):
    """What one optimizer (or schedule) reached in each tuning study.

    Attributes:
        name: of the optimizer.
        values: the mean of the test metric over the runs that its best setting is reported by, by study.
        settings: the best setting of each study, in words.
    """

    name: str
    values: Float[np.ndarray, " studies"]
    settings: list[str]

    @property
    def median(self) -> float:
        """What a study gives: half of them give less."""
        return float(np.nanmedian(self.values)) if np.isfinite(self.values).any() else np.nan

    @property
    def mean(self) -> Interval:
        """The mean with Student's interval over studies: luck of tuning is in it, and that of fresh runs."""
        return mean_and_interval(self.values)


def over_studies(studies: Sequence[xr.Dataset], by: str = "optimizer") -> list[Studies]:
    """What each value of `by` reached, the best median first.

    Args:
        studies: the results of each study, with seeds of its own for tuning and for fresh runs.
        by: what is compared, "optimizer" or "schedule".
    """
    best = [{str(s.values[by]): s for s in ranking(results, by)} for results in studies]
    names = [name for name in best[0] if all(name in of for of in best)]
    summaries = [
        Studies(
            name,
            np.array([mean_and_interval(of[name].test).mean for of in best]),
            [describe(of[name]) for of in best],
        )
        for name in names
    ]
    sign = 1 if metric_of(studies[0]).higher_is_better else -1
    return sorted(
        summaries, key=lambda summary: np.nan_to_num(sign * summary.median, nan=-np.inf), reverse=True
    )


def studies_verdict(studies: Sequence[xr.Dataset], by: str = "optimizer") -> str:
    """Which is the best over studies, and from which others it can be told apart.

    Differences are within a study, whose seeds are the same for all, and tested by Student's t over studies
    with Holm's correction for all pairs.
    """
    metric, (first, *others) = metric_of(studies[0]), over_studies(studies, by)
    sign = 1 if metric.higher_is_better else -1
    pairs = list(itertools.combinations([first, *others], 2))
    gaps = [paired_difference(sign * a.values, sign * b.values) for a, b in pairs]
    corrected = holm(np.array([gap.p for gap in gaps]))
    text = (
        f"Over {len(studies)} independent tuning studies {first.name} has the best median, "
        f"{metric.phrase(Interval(first.median, np.nan, len(studies)))}."
    )
    better: list[str] = []
    worse: list[str] = []
    alike: list[str] = []
    for (leader, other), gap, p in zip(pairs, gaps, corrected, strict=True):
        if leader is first:
            size = metric.format(gap._replace(mean=abs(gap.mean)), difference=True)
            ahead = "whose mean is ahead by " if gap.mean < 0 else ""
            group = (better if gap.mean > 0 else worse) if p < LEVEL else alike
            group.append(f"{other.name} ({ahead}{size}{' points' * metric.percent}, {p_value(p)})")
    told = {"is better than": better, "is worse in the mean than": worse, "cannot be told apart from": alike}
    parts = [f"{words} {listed(names)}" for words, names in told.items() if names]
    if parts:
        holms = f" with Holm's correction for {len(pairs)} comparisons" if len(pairs) > 1 else ""
        text += f" It {'; it '.join(parts)}. Student's t test over studies, level 5 %{holms}."
    return text


def studies_figures(studies: Sequence[xr.Dataset], by: str = "optimizer") -> dict[str, float]:
    """Flat numbers: `sgd.studies_median`, `sgd.studies_mean` and `sgd.studies_half_width`."""
    flat: dict[str, float] = {}
    for summary in over_studies(studies, by):
        numbers = {"median": summary.median, "mean": summary.mean.mean, "half_width": summary.mean.half_width}
        flat |= {f"{summary.name}.studies_{key}": v for key, v in numbers.items() if np.isfinite(v)}
    return flat
