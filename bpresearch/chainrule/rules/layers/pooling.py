"""Pooling: a window moves over the input and gives one number per channel at each position."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from bpresearch.chainrule.registry import rule
from bpresearch.models.patches import (
    explicit_padding,
    offsets,
    output_size,
    pad,
    padded_size,
    put_back,
    take,
)


class Windows:
    """The geometry of a pooling: (batch, *spatial, channels) after folding the batch axes, and padded."""

    def __init__(self, x, window_shape, strides, padding):
        axes = len(window_shape)
        ones = (1,) * axes
        self.strides = tuple(strides or ones)
        self.shape = x.shape
        self.size = x.shape[x.ndim - axes - 1 : -1]
        self.offsets = list(offsets(window_shape, ones))
        self.pads = explicit_padding(padding, self.size, window_shape, self.strides, ones)
        self.padded = padded_size(self.size, self.pads, ones)
        self.moved = output_size(self.padded, window_shape, self.strides, ones)

    def fold(self, array):
        """All batch axes in one."""
        return array.reshape(-1, *array.shape[array.ndim - len(self.size) - 1 :])

    def adjoint(self, parts):
        """x_bar from the cotangents of what each element of the window saw."""
        return self._inside(put_back(parts, self.offsets, self.strides, self.padded))

    def spread(self, share):
        """x_bar where all elements of a window have the same cotangent: the sum over the windows around."""
        window = [last + 1 for last in self.offsets[-1]]
        moved = zip(share.shape[1:-1], self.strides, self.padded, window, strict=True)
        around = [(w - 1, n - (m - 1) * s - 1) for m, s, n, w in moved]
        options = {"padding": ((0, 0), *around, (0, 0)), "base_dilation": (1, *self.strides, 1)}
        ones = (1,) * share.ndim
        zero = np.zeros((), share.dtype)
        return self._inside(lax.reduce_window(share, zero, lax.add, (1, *window, 1), ones, **options))

    def winners(self, x, outside):
        """For each element of the window, in row-major order, the positions at which it wins.

        The largest wins, or the smallest where what lies `outside` the input is infinite. The elements are
        compared with each other and not with the pooled value: inside a compiled program that may have been
        computed from other roundings of the same x, and then no element would equal it.
        """
        best, *others = self.seen(x, outside)
        winner = 0
        for index, element in enumerate(others, start=1):
            better = element > best if outside < 0 else element < best
            best, winner = jnp.where(better, element, best), jnp.where(better, index, winner)
        return [winner == index for index in range(len(self.offsets))]

    def seen(self, x, outside=0):
        """What each element of the window sees as the window moves over x."""
        x = pad(self.fold(x), self.pads, outside)
        return [take(x, offset, self.strides, self.moved) for offset in self.offsets]

    def _inside(self, padded):
        return pad(padded, tuple((-low, -high) for low, high in self.pads)).reshape(self.shape)


@rule(nnx.avg_pool)
class AveragePoolRule:
    """y[t] = sum_k x[s t + k - low] / n[t].      x_bar[i] = sum of y_bar[t] / n[t] over the windows with i

    n is the number of elements of the window, or with `count_include_pad=False` those inside the input.
    """

    def forward(function, x, **options):
        return function(x, **options), x

    def backward(function, x, y_bar, window_shape, strides=None, padding="VALID", count_include_pad=True):
        windows = Windows(x, window_shape, strides, padding)
        share = windows.fold(y_bar)
        if count_include_pad:
            share = share / np.prod(window_shape)
        else:
            share = share / sum(windows.seen(jnp.ones((1, *windows.size, 1), x.dtype)))
        return {}, windows.spread(share)


@rule(nnx.max_pool)
class MaxPoolRule:
    """y[t] = max_k x[s t + k - low].      x_bar[i] = sum of y_bar[t] over the windows that i won

    On a tie the first element of the window, in row-major order, wins, as in autodiff.
    """

    def forward(function, x, **options):
        return function(x, **options), x

    def backward(function, x, y_bar, window_shape, strides=None, padding="VALID"):
        return {}, _to_the_winner(x, y_bar, window_shape, strides, padding, -jnp.inf)


@rule(nnx.min_pool)
class MinPoolRule:
    """y[t] = min_k x[s t + k - low].      x_bar[i] = sum of y_bar[t] over the windows that i won

    On a tie the first element of the window, in row-major order, wins, as in autodiff.
    """

    def forward(function, x, **options):
        return function(x, **options), x

    def backward(function, x, y_bar, window_shape, strides=None, padding="VALID"):
        return {}, _to_the_winner(x, y_bar, window_shape, strides, padding, jnp.inf)


def _to_the_winner(x, y_bar, window_shape, strides, padding, outside):
    windows = Windows(x, window_shape, strides, padding)
    y_bar = lax.optimization_barrier(windows.fold(y_bar))  # computed once, not per offset
    return windows.adjoint([jnp.where(won, y_bar, 0) for won in windows.winners(x, outside)])
