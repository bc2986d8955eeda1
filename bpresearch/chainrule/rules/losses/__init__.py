"""Rules of losses: functions of a model's outputs and of targets.

Both are positional. A loss that is given one of them as a keyword is opened, since options have no
derivative.
"""

from bpresearch.chainrule.rules.losses import (
    cross_entropy,
    ctc,
    divergence,
    margin,
    ranking,
    regression,
    segmentation,
)

__all__ = ["cross_entropy", "ctc", "divergence", "margin", "ranking", "regression", "segmentation"]
