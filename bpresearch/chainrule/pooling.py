"""Pooling: a window moves over the input and gives one number per channel at each position."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bpresearch.chainrule.registry import rule
from bpresearch.models.patches import explicit_padding, offsets, pad, padded_size, put_back, take


class _Windows:
    """The geometry of a pooling: (batch, *spatial, channels) after folding the batch axes, and padded."""

    def __init__(self, x, window_shape, strides, padding):
        axes = len(window_shape)
        ones = (1,) * axes
        self.strides = tuple(strides or ones)
        self.shape, self.dtype = x.shape, x.dtype
        self.size = x.shape[x.ndim - axes - 1 : -1]
        self.offsets = list(offsets(window_shape, ones))
        self.pads = explicit_padding(padding, self.size, window_shape, self.strides, ones)
        self.padded = padded_size(self.size, self.pads, ones)

    def fold(self, array):
        """All batch axes in one."""
        return array.reshape(-1, *array.shape[array.ndim - len(self.size) - 1 :])

    def adjoint(self, parts):
        """x_bar from the cotangents of the elements of the window, one after another on the last axis."""
        x_bar = put_back(parts, self.offsets, self.strides, self.padded)
        return pad(x_bar, tuple((-low, -high) for low, high in self.pads)).reshape(self.shape)


@rule(nnx.avg_pool)
class AveragePoolRule:
    """y[t] = sum_k x[s t + k - low] / n[t].      x_bar[i] = sum of y_bar[t] / n[t] over the windows with i

    n is the number of elements of the window, or with `count_include_pad=False` those inside the input.
    """

    def forward(function, x, **options):
        return function(x, **options), x

    def backward(function, x, y_bar, window_shape, strides=None, padding="VALID", count_include_pad=True):
        windows = _Windows(x, window_shape, strides, padding)
        share = windows.fold(y_bar)
        if count_include_pad:
            share = share / np.prod(window_shape)
        else:
            inside = pad(jnp.ones((1, *windows.size, 1), x.dtype), windows.pads)
            size = share.shape[1:-1]
            share = share / sum(take(inside, o, windows.strides, size) for o in windows.offsets)
        return {}, windows.adjoint(jnp.concatenate([share] * len(windows.offsets), axis=-1))


@rule(nnx.max_pool)
class MaxPoolRule:
    """y[t] = max_k x[s t + k - low].      x_bar[i] = sum of y_bar[t] over the windows that i won

    On a tie the first element of the window, in row-major order, wins, as in autodiff.
    """

    def forward(function, x, **options):
        y = function(x, **options)
        return y, (x, y)

    def backward(function, residuals, y_bar, window_shape, strides=None, padding="VALID"):
        return {}, _to_the_winner(residuals, y_bar, window_shape, strides, padding, -jnp.inf)


@rule(nnx.min_pool)
class MinPoolRule:
    """y[t] = min_k x[s t + k - low].      x_bar[i] = sum of y_bar[t] over the windows that i won

    On a tie the first element of the window, in row-major order, wins, as in autodiff.
    """

    def forward(function, x, **options):
        y = function(x, **options)
        return y, (x, y)

    def backward(function, residuals, y_bar, window_shape, strides=None, padding="VALID"):
        return {}, _to_the_winner(residuals, y_bar, window_shape, strides, padding, jnp.inf)


def _to_the_winner(residuals, y_bar, window_shape, strides, padding, outside):
    x, _ = residuals
    windows = _Windows(x, window_shape, strides, padding)
    y_bar = windows.fold(y_bar)
    parts = [jnp.where(won, y_bar, 0) for won in winners(windows, x, y_bar.shape[1:-1], outside)]
    return windows.adjoint(jnp.concatenate(parts, axis=-1))


def winners(windows, x, size, outside):
    """For each element of the window, in row-major order, the positions at which it wins.

    The elements are compared with each other and not with the pooled value: inside a compiled program that
    may have been computed from other roundings of the same x, and then no element would equal it.
    """
    x = pad(windows.fold(x), windows.pads, outside)
    best, winner = take(x, windows.offsets[0], windows.strides, size), 0
    for index, offset in enumerate(windows.offsets[1:], start=1):
        element = take(x, offset, windows.strides, size)
        better = element > best if outside < 0 else element < best
        best, winner = jnp.where(better, element, best), jnp.where(better, index, winner)
    return [winner == index for index in range(len(windows.offsets))]
