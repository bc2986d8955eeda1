"""Transposed convolutions.

A transposed convolution is a convolution of an input with zeros between its elements; so it has no derivative
of its own beyond that of `lax.conv_general_dilated`. The rule undoes what `nnx.ConvTranspose` wraps around
it: the padding, promotion, a mask, the wrapping-around of circular padding, and a bias.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.linear import canonicalize_padding
from jax import lax

from bpresearch.chainrule.registry import DoesNotApply, rule
from bpresearch.chainrule.rules.inner import Inner
from bpresearch.chainrule.rules.layers.convolution import channels_last, per_axis


@rule(nnx.ConvTranspose)
class ConvTransposeRule:
    """y = wrap(conv(dilate(x), W * mask)) + b.      b_bar = sum(y_bar), the rest through conv's own rule

    x: (*batch, *spatial, in), W: (*window, in, out), b: (out,). With `transpose_kernel`, W is given as the
    kernel of the convolution that this one is the transpose of: reversed, with in and out exchanged. With
    circular padding, wrap adds up the parts of the output that lie a period apart, so every part receives
    the cotangent of their sum.
    """

    def forward(layer, x):
        (rows, kernel, bias), convolve = _operands(layer, x)
        y, residuals = convolve(rows, kernel)
        for axis, (period, before) in enumerate(_periods(layer, rows, y), start=1):
            y = _wrap(y, axis, period, before)
        y = y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
        return y.reshape(*x.shape[: -len(layer.kernel_size) - 1], *y.shape[1:]), (x, residuals)

    def backward(layer, residuals, y_bar):
        x, residuals = residuals
        (rows, kernel, _), convolve = _operands(layer, x)
        spatial = len(layer.kernel_size)
        y_bar = y_bar.reshape(-1, *y_bar.shape[-spatial - 1 :])
        grads = {}
        if layer.bias is not None:
            grads["bias"] = jnp.sum(y_bar, axis=range(y_bar.ndim - 1))
        unwrapped = jax.eval_shape(convolve.function, rows, kernel)
        for axis, (period, before) in enumerate(_periods(layer, rows, unwrapped), start=1):
            source = (np.arange(unwrapped.shape[axis]) + before) % period
            y_bar = jnp.take(y_bar, source, axis=axis)
        x_bar, kernel_bar = convolve.back(residuals, y_bar.astype(rows.dtype))
        if layer.transpose_kernel:
            kernel_bar = _transposed(kernel_bar)
        if layer.mask is not None:
            kernel_bar = kernel_bar * layer.mask
        return {"kernel": kernel_bar, **grads}, x_bar.reshape(x.shape).astype(x.dtype)


def _operands(layer, x):
    """What the convolution is given, and the convolution."""
    axes = len(layer.kernel_size)
    strides, dilation = (per_axis(value, axes) for value in (layer.strides, layer.kernel_dilation))
    kernel = layer.kernel[...]
    if layer.mask is not None:
        if layer.mask.shape != kernel.shape:
            raise DoesNotApply(f"the mask has shape {layer.mask.shape}, the kernel {kernel.shape}")
        kernel = kernel * layer.mask
    bias = None if layer.bias is None else layer.bias[...]
    rows = x.reshape(-1, *x.shape[-axes - 1 :])
    rows, kernel, bias = layer.promote_dtype((rows, kernel, bias), dtype=layer.dtype)
    padding = canonicalize_padding(layer.padding, axes)
    if padding in ("SAME", "VALID", "CIRCULAR"):
        reach = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, dilation, strict=True)]
        padding = [_pads(k, s, padding) for k, s in zip(reach, strides, strict=True)]
    wider = layer.preferred_element_type
    convolve = partial(
        lax.conv_general_dilated,
        window_strides=(1,) * axes,
        padding=padding if isinstance(padding, str) else tuple(padding),
        lhs_dilation=strides,
        rhs_dilation=dilation,
        dimension_numbers=channels_last(axes),
        precision=layer.precision,
        **({} if wider is None else {"preferred_element_type": wider}),
    )
    return (rows, _transposed(kernel) if layer.transpose_kernel else kernel, bias), Inner(convolve)


def _pads(reach, stride, padding):
    """What turns the padding of a convolution into that of its transpose: `lax.conv_transpose`'s."""
    if padding == "SAME":
        total = reach + stride - 2
        low = reach - 1 if stride > reach - 1 else -(-total // 2)
        return low, total - low
    return reach - 1, stride - 1 + max(reach - stride, 0)


def _transposed(kernel):
    """Reversed along the window, in and out exchanged: its own inverse."""
    return jnp.swapaxes(jnp.flip(kernel, range(kernel.ndim - 2)), -1, -2)


def _periods(layer, x, y):
    """For each spatial axis of circular padding, the period and how far into it the output begins."""
    if layer.padding != "CIRCULAR":
        return
    strides = per_axis(layer.strides, len(layer.kernel_size))
    for n, m, stride in zip(x.shape[1:-1], y.shape[1:-1], strides, strict=True):
        missing = -(m - n * stride) % (2 * n * stride)
        yield n * stride, missing // 2 if layer.transpose_kernel else (missing + 1) // 2


def _wrap(y, axis, period, before):
    """The sum of the parts of y that lie a period apart, y beginning `before` elements into a period."""
    after = -(y.shape[axis] + before) % period
    y = jnp.pad(y, [(before, after) if i == axis else (0, 0) for i in range(y.ndim)])
    return y.reshape(*y.shape[:axis], -1, period, *y.shape[axis + 1 :]).sum(axis)
