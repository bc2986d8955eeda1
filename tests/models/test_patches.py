"""Convolution as a matrix times patches."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from bpresearch.models import patch_convolution
from bpresearch.models.patches import (
    explicit_padding,
    extract_patches,
    offsets,
    output_size,
    pad,
    padded_size,
    put_back,
    take,
)
from bpresearch.verify.precision import UNOPTIMIZED


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def channels_last(axes):
    names = "".join("DHW"[:axes])
    return lax.conv_dimension_numbers(
        (1,) * (axes + 2), (1,) * (axes + 2), (f"N{names}C", f"{names}IO", f"N{names}C")
    )


@st.composite
def convolutions(draw):
    axes = draw(st.integers(1, 3))
    small = st.tuples(*[st.integers(1, 3)] * axes)
    groups = draw(st.integers(1, 3))
    dilation = draw(st.just((1,) * axes) | st.tuples(*[st.integers(1, 2)] * axes))
    pairs = st.tuples(*[st.tuples(st.integers(-1, 3), st.integers(-1, 3))] * axes)
    # XLA does not define "SAME" on a dilated input.
    named = st.sampled_from(["SAME", "VALID", "SAME_LOWER"])
    options = {
        "window_strides": draw(small),
        "padding": draw(pairs | named if set(dilation) == {1} else pairs),
        "lhs_dilation": dilation,
        "rhs_dilation": draw(small),
        "feature_group_count": groups,
    }
    channels, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    # At least two: a crop may take one from each end.
    x_shape = (draw(st.integers(1, 2)), *draw(st.tuples(*[st.integers(2, 5)] * axes)), channels)
    return options, x_shape, (*draw(small), channels // groups, out)


@settings(max_examples=30)
@given(convolutions())
def test_value_and_derivatives_are_those_of_xla(float64, convolution):
    options, x_shape, kernel_shape = convolution
    x, kernel = normal(0, *x_shape), normal(1, *kernel_shape)
    axes = len(x_shape) - 2

    def theirs(x, kernel):
        numbers = channels_last(axes)
        return lax.conv_general_dilated(x, kernel, **options, dimension_numbers=numbers)

    def ours(x, kernel):
        return patch_convolution(x, kernel, **options)

    def both(function):
        def pulled_back(x, kernel, y_bar):
            y, pull_back = jax.vjp(function, x, kernel)
            return y, *pull_back(y_bar)

        y_bar = normal(2, *jax.eval_shape(theirs, x, kernel).shape)
        return jax.jit(pulled_back, compiler_options=UNOPTIMIZED)(x, kernel, y_bar)

    for found, expected in zip(both(ours), both(theirs), strict=True):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_is_kept(dtype):
    x, kernel = normal(0, 2, 5, 3).astype(dtype), normal(1, 3, 3, 4).astype(dtype)
    y = patch_convolution(x, kernel, (1,), "SAME", lhs_dilation=(1,), rhs_dilation=(1,))
    assert y.dtype == dtype and y.shape == (2, 5, 4)


def test_offsets_are_row_major():
    assert list(offsets((2, 3), (1, 2))) == [(0, 0), (0, 2), (0, 4), (1, 0), (1, 2), (1, 4)]
    assert list(offsets((), ())) == [()]


def test_take_steps_through_the_input():
    x = jnp.arange(10.0).reshape(1, 10, 1)
    np.testing.assert_array_equal(take(x, (1,), (3,), (3,))[0, :, 0], [1, 4, 7])


def test_pad_dilates_pads_and_crops():
    x = jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1)
    np.testing.assert_array_equal(pad(x, ((1, 0),), 9, (2,))[0, :, 0], [9, 1, 9, 2, 9, 3])
    np.testing.assert_array_equal(pad(x, ((-1, 2),))[0, :, 0], [2, 3, 0, 0])


@given(
    size=st.integers(1, 8),
    window=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    low=st.integers(0, 2),
    high=st.integers(0, 2),
)
def test_sizes_count_positions(size, window, stride, dilation, low, high):
    padded = padded_size((size,), ((low, high),), (2,))
    assert padded == (len([0] * low + [0, 0] * (size - 1) + [0] + [0] * high),)
    reach = (window - 1) * dilation + 1
    starts = [t for t in range(0, padded[0], stride) if t + reach <= padded[0]]
    assert output_size(padded, (window,), (stride,), (dilation,)) == (len(starts),)


@given(size=st.integers(1, 9), window=st.integers(1, 4), stride=st.integers(1, 3))
def test_same_gives_one_output_for_each_stride(size, window, stride):
    pads = explicit_padding("SAME", (size,), (window,), (stride,), (1,))
    padded = padded_size((size,), pads, (1,))
    assert output_size(padded, (window,), (stride,), (1,)) == (-(-size // stride),)
    ((low, high),) = pads
    assert high - low in (0, 1)


def test_explicit_padding_leaves_pairs():
    assert explicit_padding([(1, 2), (0, 3)], (5, 5), (3, 3), (1, 1), (1, 1)) == ((1, 2), (0, 3))
    assert explicit_padding("VALID", (5,), (3,), (1,), (1,)) == ((0, 0),)


@settings(max_examples=10)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_putting_back_is_the_adjoint_of_cutting_out(float64, size, window, strides):
    """<P x, p> = <x, P^T p> for every x and p."""
    ones, x = (1, 1), normal(0, 2, *size, 3)
    patches = extract_patches(x, window, strides, "VALID", ones, ones)
    p = normal(1, *patches.shape)
    back = put_back(jnp.split(p, math.prod(window), axis=0), list(offsets(window, ones)), strides, size)
    assert back.shape == (3, *size, 2)
    x = jnp.swapaxes(x, 0, -1)
    np.testing.assert_allclose(jnp.vdot(patches, p), jnp.vdot(x, back), rtol=1e-11, atol=1e-12)
