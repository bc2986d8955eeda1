"""The discrete Fourier transform, of the four kinds, over the last axes."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from bpresearch.chainrule.primitives import Value, linear


@linear("fft")
def fourier(e, y_bar):
    """y = F x with a symmetric matrix F:  x_bar = F y_bar, for the transform and for its inverse.

    The transforms of real sequences leave out the half of the spectrum, along the last axis, that is the
    conjugate of the other half. Each frequency that is kept occurs w times in the whole; N counts the points.

        real to half spectrum:  x_bar = irfft(N/w conj(y_bar))
        half spectrum to real:  x_bar = w/N conj(rfft(y_bar))
    """
    kind, lengths = e.params["fft_type"], e.params["fft_lengths"]
    if kind == lax.FftType.RFFT:
        weights = math.prod(lengths) / multiplicity(y_bar, lengths)
        return lax.fft(lax.conj(y_bar) * jnp.asarray(weights, y_bar.dtype), lax.FftType.IRFFT, lengths)
    if kind == lax.FftType.IRFFT:
        half = lax.conj(lax.fft(y_bar, lax.FftType.RFFT, lengths))
        return half * jnp.asarray(multiplicity(half, lengths) / math.prod(lengths), half.dtype)
    return lax.fft(y_bar, kind, lengths)


def multiplicity(half: Value, lengths: Sequence[int]) -> np.ndarray:
    """w: once at the frequencies 0 and n/2, twice between."""
    n = lengths[-1]
    w = np.ones((1,) * (half.ndim - 1) + (n // 2 + 1,))
    w[..., 1 : (n + 1) // 2] = 2
    return w
