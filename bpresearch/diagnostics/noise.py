"""The noise of a mini-batch's gradient, and the batch size that it predicts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bpresearch.diagnostics.batch import gradient, hessian_product
from bpresearch.functional import Params
from bpresearch.train import Measured, Moment


def gradient_noise(moment: Moment) -> dict[str, Measured]:
    """`noise_scale` tr(S) / |G|^2 and `signal_to_noise` |G|^2 / (tr(S) / B), with G the true gradient, S the
    covariance of the gradient of one example and B the batch size (McCandlish et al. 2018, appendix A).

    A part of the batch, the first tenth of it (b examples; 2 where that is less, 1 of 2 or 3), gives its
    gradient g_1. It is apart from g by E |g_1 - g|^2 = tr(S) (1/b - 1/B), which gives an unbiased estimate of
    tr(S), and |g|^2 - tr(S) / B is one of |G|^2; where that is not positive the noise hides the gradient, the
    scale is infinite and the ratio 0. Normal noise that spreads evenly over n directions leaves the estimate
    of tr(S) a relative deviation of sqrt(2/n), however large the part is: so a small one will do, and means
    over evaluations are more precise. A batch of one example gives no estimate. In a model that mixes the
    examples of a batch (BatchNorm), or draws random numbers, what that changes counts as noise too.
    """
    parts = _gradients(moment)
    if parts is None:
        nothing = Measured(jnp.full((), jnp.nan, jnp.float32))
        return {"noise_scale": nothing, "signal_to_noise": nothing}
    trace, square = noise_estimates(*parts)
    square = jnp.maximum(square, 0)
    return {
        "noise_scale": Measured(trace / square),
        "signal_to_noise": Measured(square / (trace / moment.batch.shape[0])),
    }


def critical_batch(moment: Moment) -> dict[str, Measured]:
    """`critical_batch`, the batch size at which half of the best step's decrease is left to the noise.

    On a loss with Hessian H the best step decreases the loss by D / (1 + C / B) with batches of B examples
    and C = tr(H S) / (G.H G): far below C twice the batch saves half of the steps, far above it nothing
    (McCandlish et al. 2018, equation 2.7). `noise_scale` of `gradient_noise` is C where H is a multiple of
    the identity. G, S and the two estimates are as there, with x.H y in place of x.y, and H that of the
    mini-batch. Infinite where the noise hides the gradient's curvature; a batch of one example gives no
    estimate.
    """
    parts = _gradients(moment)
    if parts is None:
        return {"critical_batch": Measured(jnp.full((), jnp.nan, jnp.float32))}
    trace, square = noise_estimates(*parts, hessian_product(moment))
    return {"critical_batch": Measured(jnp.maximum(trace, 0) / jnp.maximum(square, 0))}


def _gradients(moment: Moment) -> tuple[Params, Params, int, int] | None:
    """The gradients of a part of the batch and of all of it, and their sizes; None of a single example."""
    size = moment.batch.shape[0]
    part = min(max(2, size // 10), size // 2)
    if not part:
        return None
    return gradient(moment, moment.batch[:part]), moment.next.gradient, part, size


def noise_estimates(
    of_part: Params,
    of_batch: Params,
    part: int,
    batch: int,
    product: Callable[[Params], Params] = lambda v: v,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Unbiased estimates of tr(A S) and G.A G, from the gradients of a part of a batch and of all of it.

    The part has `part` examples, the batch `batch`; `product` is v -> A v, by default v itself.
    """

    def square(v: Params) -> Float[Array, ""]:
        return optax.tree.vdot(v, product(v))

    trace = square(jax.tree.map(jnp.subtract, of_part, of_batch)) / (1 / part - 1 / batch)
    return trace, square(of_batch) - trace / batch
