"""Fourier transforms of the four kinds against JAX, of even and odd lengths, over one or more axes."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpresearch.chainrule.rules.lax import fourier  # noqa: F401


def normal(shape, seed):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("kind", [lax.FftType.FFT, lax.FftType.IFFT], ids=["fft", "ifft"])
@pytest.mark.parametrize("lengths", [(5,), (3, 4), (2, 3, 4)], ids=str)
def test_complex_sequences(kind, lengths, assert_equations_right):
    x = jnp.asarray(normal((2, *lengths), 0) + 1j * normal((2, *lengths), 1))
    assert_equations_right(lambda x: lax.fft_p.bind(x, fft_type=kind, fft_lengths=lengths), x, names="fft")


@pytest.mark.parametrize("lengths", [(1,), (2,), (5,), (6,), (3, 4), (4, 3), (2, 3, 6)], ids=str)
def test_real_sequences(lengths, assert_equations_right):
    x = jnp.asarray(normal((2, *lengths), 0))
    half = (2, *lengths[:-1], lengths[-1] // 2 + 1)
    z = jnp.asarray(normal(half, 1) + 1j * normal(half, 2))
    there = lambda x: lax.fft_p.bind(x, fft_type=lax.FftType.RFFT, fft_lengths=lengths)  # noqa: E731
    back = lambda z: lax.fft_p.bind(z, fft_type=lax.FftType.IRFFT, fft_lengths=lengths)  # noqa: E731
    assert_equations_right(there, x, names="fft")
    assert_equations_right(back, z, names="fft")


def test_single_precision_stays_single(assert_equations_right):
    x = jnp.asarray(normal((6,), 0), jnp.float32)
    assert_equations_right(
        lambda x: lax.fft_p.bind(x, fft_type=lax.FftType.RFFT, fft_lengths=(6,)), x, tolerance=1e-6
    )
    z = x + 1j * x
    assert_equations_right(
        lambda z: lax.fft_p.bind(z, fft_type=lax.FftType.IRFFT, fft_lengths=(10,)), z, tolerance=1e-6
    )
