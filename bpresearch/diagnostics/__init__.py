"""Diagnostics of a run, computed inside its program at each evaluation.

Each is a function of a `Moment`, the run and the step that it takes next, and gives variables of the results
by name. They are passed to an experiment (`Experiment(diagnostics=(gradient_norms, ...))`), and measure what
Cockpit measures on PyTorch (Schneider et al. 2021), and more. g is the gradient of the mini-batch loss, w the
weights, and d the update that the optimizer makes of g.
"""

from collections.abc import Callable

from bpresearch.diagnostics.batch import (
    gauss_newton_product,
    gradient,
    hessian_product,
    loss_of,
    random_like_weights,
)
from bpresearch.diagnostics.curvature import gauss_newton_spectrum, hessian_spectrum, hessian_trace
from bpresearch.diagnostics.noise import critical_batch, gradient_noise, noise_estimates
from bpresearch.diagnostics.norms import distance, gradient_histogram, gradient_norms, update_norms
from bpresearch.diagnostics.preconditioned import preconditioned_sharpness
from bpresearch.diagnostics.steps import step_fidelity
from bpresearch.train import Measured, Moment

DIAGNOSTICS: tuple[Callable[[Moment], dict[str, Measured]], ...] = (
    gradient_norms,
    update_norms,
    distance,
    step_fidelity,
    gradient_noise,
    critical_batch,
    hessian_trace,
    hessian_spectrum,
    gauss_newton_spectrum,
    preconditioned_sharpness,
    gradient_histogram,
)

__all__ = [
    "DIAGNOSTICS",
    "critical_batch",
    "distance",
    "gauss_newton_product",
    "gauss_newton_spectrum",
    "gradient",
    "gradient_histogram",
    "gradient_noise",
    "gradient_norms",
    "hessian_product",
    "hessian_spectrum",
    "hessian_trace",
    "loss_of",
    "noise_estimates",
    "preconditioned_sharpness",
    "random_like_weights",
    "step_fidelity",
    "update_norms",
]
