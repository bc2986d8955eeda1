"""What the runs of a sweep say together."""

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
    "Interval",
    "Metric",
    "Setting",
    "best_settings",
    "chosen_by",
    "figures",
    "mean_and_interval",
    "metric_of",
    "settings_of",
    "verdict",
]
