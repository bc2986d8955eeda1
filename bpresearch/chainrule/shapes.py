"""Functions that only move, select or average values: what was read from x is written to x_bar."""

import math

import jax.numpy as jnp

from bpresearch.chainrule.registry import rule
from bpresearch.models.shapes import add_channel, average, flatten, last, positions, steps, swap


@rule(flatten, add_channel, steps, positions)
class ReshapeRule:
    """y is x in another shape.      x_bar is y_bar in the shape of x"""

    def forward(function, x):
        return function(x), x

    def backward(function, x, y_bar):
        return {}, y_bar.reshape(x.shape)


@rule(swap)
class SwapRule:
    """y is x with its last two axes exchanged.      x_bar is y_bar with them exchanged back"""

    def forward(function, x):
        return function(x), None

    def backward(function, residuals, y_bar):
        return {}, jnp.matrix_transpose(y_bar)


@rule(last)
class LastRule:
    """y = x[:, -1].      x_bar is y_bar there and 0 at all steps before"""

    def forward(function, x):
        return function(x), x

    def backward(function, x, y_bar):
        return {}, jnp.zeros_like(x).at[:, -1].set(y_bar)


@rule(average)
class AverageRule:
    """y is the mean of x over the n places of an example.      x_bar = y_bar / n at each of them"""

    def forward(function, x):
        return function(x), x

    def backward(function, x, y_bar):
        share = y_bar / math.prod(x.shape[1:-1])
        return {}, jnp.broadcast_to(share.reshape(x.shape[0], *[1] * (x.ndim - 2), x.shape[-1]), x.shape)
