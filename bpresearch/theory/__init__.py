"""The mathematics of the experiments: the anatomy of a gradient, and what theory says of training."""

from bpresearch.theory import ablation, minibatch, quadratics, savings, sharpness
from bpresearch.theory.anatomy import Anatomy, factor_statistics, take_apart

__all__ = [
    "Anatomy",
    "ablation",
    "factor_statistics",
    "minibatch",
    "quadratics",
    "savings",
    "sharpness",
    "take_apart",
]
