"""What the runs of a sweep say together."""

from bpresearch.analysis import ablation, deepobs, quadratics
from bpresearch.analysis.anatomy import Anatomy, factor_statistics, take_apart
from bpresearch.analysis.settings import (
    METRICS,
    Metric,
    Setting,
    best_settings,
    chosen_by,
    figures,
    metric_of,
    settings_of,
    verdict,
)
from bpresearch.analysis.statistics import Interval, mean_and_interval

__all__ = [
    "METRICS",
    "Anatomy",
    "Interval",
    "Metric",
    "Setting",
    "ablation",
    "best_settings",
    "chosen_by",
    "deepobs",
    "factor_statistics",
    "figures",
    "mean_and_interval",
    "metric_of",
    "quadratics",
    "settings_of",
    "take_apart",
    "verdict",
]
