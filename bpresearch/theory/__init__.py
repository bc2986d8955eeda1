"""The mathematics of the experiments: the anatomy of a gradient, and what theory says of training."""

from bpresearch.theory import (
    ablation,
    averages,
    batches,
    catapult,
    descent,
    heavy_tails,
    minibatch,
    quadratics,
    routes,
    savings,
    schedules,
    sharpness,
    spectra,
    taught,
    widths,
)
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
    "averages",
    "batches",
    "catapult",
    "derive",
    "descent",
    "explain",
    "factor_statistics",
    "gradients",
    "heavy_tails",
    "minibatch",
    "quadratics",
    "read",
    "routes",
    "savings",
    "schedules",
    "sharpness",
    "spectra",
    "take_apart",
    "taught",
    "widths",
]
