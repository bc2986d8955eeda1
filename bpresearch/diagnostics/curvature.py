"""The curvature of the mini-batch loss: spectra of its Hessian H and of its Gauss-Newton matrix."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from bpresearch.diagnostics.batch import gauss_newton_product, hessian_product, random_like_weights
from bpresearch.functional import Params, TrainingLoss
from bpresearch.theory.spectra import Spectrum, spectrum
from bpresearch.train import Measured, Moment

PROBES = 4
LANCZOS_STEPS = 30
LARGEST = 5
SIZES = 10.0 ** np.arange(-2, 3.5, 0.5)
"""The lower ends of the bins of |eigenvalue|."""

EIGENVALUES = [float(f"{size:.3g}") for size in (*-SIZES[::-1], 0.0, *SIZES)]
"""Each bin of a spectrum by its end that is nearer to zero; the one around zero is called 0."""


def hessian_trace(moment: Moment) -> dict[str, Measured]:
    """`hessian_trace` of the mini-batch loss: the mean of z.H z over 4 vectors z of random signs.

    (Hutchinson 1990.)
    """
    product = hessian_product(moment)

    def quadratic_form(number: Array) -> Array:
        z = random_like_weights(moment, jax.random.rademacher, number)
        return optax.tree.vdot(z, product(z))

    return {"hessian_trace": Measured(jnp.mean(jax.lax.map(quadratic_form, jnp.arange(PROBES))))}


def hessian_spectrum(moment: Moment) -> dict[str, Measured]:
    """`hessian_eigenvalues`, the largest five by `rank`, `hessian_smallest_eigenvalue` and `hessian_density`.

    Of the mini-batch loss, by 30 steps of Lanczos from one random vector (`theory.spectra`). The largest of
    the eigenvalues is the sharpness. An eigenvalue that occurs twice is seen once; NaN stands where there are
    fewer than five. `hessian_density` is the share of all eigenvalues that lie in each bin of `eigenvalue`:
    bins are half an order of magnitude wide on both sides of zero, and named by the end that is nearer to it,
    from 0.01; the outermost, from 1,000, have no other end (Ghorbani et al. 2019; Papyan 2018). A product
    with H is forward over reverse (Pearlmutter 1994), and costs about two gradients.
    """
    return _described("hessian", _spectrum_of(moment, hessian_product(moment)))


def gauss_newton_spectrum(moment: Moment) -> dict[str, Measured]:
    """The same of the Gauss-Newton matrix: `gauss_newton_eigenvalues`, `gauss_newton_density` and so on.

    G = J^T (d^2 loss / d outputs^2) J, J the derivative of the outputs with respect to the weights: what H is
    without the curvature of the network itself (Schraudolph 2002). It has no negative eigenvalue where the
    loss is convex in the outputs, and is the Fisher information of cross entropy (Martens 2020). NaN where
    the loss is a function of model and batch, which does not tell where the outputs are.
    """
    if isinstance(moment.training.loss, TrainingLoss):
        nothing = jnp.full(LANCZOS_STEPS, jnp.nan, jnp.float32)
        return _described("gauss_newton", Spectrum(nothing, nothing))
    return _described("gauss_newton", _spectrum_of(moment, gauss_newton_product(moment)))


def _spectrum_of(moment: Moment, product: Callable[[Params], Params]) -> Spectrum:
    return spectrum(product, random_like_weights(moment, jax.random.normal), LANCZOS_STEPS)


def _described(name: str, distribution: Spectrum) -> dict[str, Measured]:
    ranks = list(range(1, LARGEST + 1))
    return {
        f"{name}_eigenvalues": Measured(distribution.largest(LARGEST), {"rank": ranks}),
        f"{name}_smallest_eigenvalue": Measured(distribution.smallest),
        f"{name}_density": Measured(density(distribution), {"eigenvalue": EIGENVALUES}),
    }


def density(found: Spectrum) -> Float[Array, " bins"]:
    """The weight of a spectrum in each bin of `EIGENVALUES`; NaN if it is unknown."""
    size = jnp.sum(jnp.abs(found.values)[:, None] >= jnp.asarray(SIZES, found.values.dtype)[None], axis=1)
    bins = len(SIZES) + jnp.where(found.values < 0, -size, size)
    unknown = 0 * jnp.sum(found.weights)
    return jnp.full(len(EIGENVALUES), unknown).at[bins].add(found.weights)
