"""The mathematics of the experiments: the anatomy of a gradient, and what theory says of training."""

from bpresearch.theory import ablation, minibatch, quadratics, savings, sharpness
from bpresearch.theory.anatomy import Anatomy, factor_statistics, take_apart
from bpresearch.theory.derivation import Derivation, derive, gradients
from bpresearch.theory.explain import Explanation, explain
from bpresearch.theory.network import Network, read

__all__ = [
    "Anatomy",
    "Derivation",
    "Explanation",
    "Network",
    "ablation",
    "derive",
    "explain",
    "factor_statistics",
    "gradients",
    "minibatch",
    "quadratics",
    "read",
    "savings",
    "sharpness",
    "take_apart",
]
