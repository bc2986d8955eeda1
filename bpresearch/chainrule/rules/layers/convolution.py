"""Convolutions.

`nnx.Conv` wraps a bilinear map of input and kernel, its `conv_general_dilated`, in padding, promotion, a
mask and a bias. The rule of `nnx.Conv` undoes the wrapping and leaves the bilinear map to that map's own
rule: XLA's convolution, or a matrix times patches.
"""

import math
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.linear import canonicalize_padding
from jax import lax

from bpresearch.chainrule.registry import DoesNotApply, rule
from bpresearch.chainrule.rules.inner import Inner
from bpresearch.models.patches import (
    explicit_padding,
    extract_patches,
    offsets,
    pad,
    padded_size,
    patch_convolution,
    put_back,
)


@rule(nnx.Conv)
class ConvRule:
    """y = conv(pad(x), W * mask) + b.      b_bar = sum(y_bar), the rest through conv's own rule

    x: (*batch, *spatial, in), W: (*window, in / groups, out), b: (out,).
    """

    def forward(layer, x):
        (x_padded, kernel, bias), convolve, _ = _operands(layer, x)
        y, residuals = convolve(x_padded, kernel)
        y = y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
        return y.reshape(*x.shape[: -len(layer.kernel_size) - 1], *y.shape[1:]), (x, residuals)

    def backward(layer, residuals, y_bar):
        x, residuals = residuals
        (x_padded, _, _), convolve, sources = _operands(layer, x)
        spatial = len(layer.kernel_size)
        y_bar = y_bar.reshape(-1, *y_bar.shape[-spatial - 1 :])
        x_bar, kernel_bar = convolve.back(residuals, y_bar.astype(x_padded.dtype))
        if layer.mask is not None:
            kernel_bar = kernel_bar * layer.mask
        grads = {"kernel": kernel_bar.astype(layer.kernel[...].dtype)}
        if layer.bias is not None:
            bias_bar = jnp.sum(y_bar, axis=range(y_bar.ndim - 1))
            grads["bias"] = bias_bar.astype(layer.bias[...].dtype)
        return grads, _unpad(x_bar, sources).reshape(x.shape).astype(x.dtype)


def per_axis(value, axes):
    return (value,) * axes if isinstance(value, int) else tuple(value or (1,) * axes)


def _operands(layer, x):
    """What the bilinear map is given, the map, and per axis where each padded element comes from."""
    axes = len(layer.kernel_size)
    strides, x_dilation, kernel_dilation = (
        per_axis(value, axes) for value in (layer.strides, layer.input_dilation, layer.kernel_dilation)
    )
    x = x.reshape(-1, *x.shape[-axes - 1 :])
    spread = [(k - 1) * d for k, d in zip(layer.kernel_size, kernel_dilation, strict=True)]
    padding, sources = canonicalize_padding(layer.padding, axes), None
    if padding in ("CIRCULAR", "REFLECT"):
        mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}[padding]
        sources = [
            np.pad(np.arange(n), (k // 2, (k + 1) // 2), mode)
            for n, k in zip(x.shape[1:-1], spread, strict=True)
        ]
        for axis, source in enumerate(sources, start=1):
            x = jnp.take(x, source, axis=axis)
        padding = "VALID"
    elif padding == "CAUSAL":
        if axes != 1:
            raise DoesNotApply(f"padding CAUSAL takes one spatial axis, not {axes}")
        padding = [(spread[0] * x_dilation[0], 0)]  # Flax pads before zeros come between the elements
    padding = padding if isinstance(padding, str) else tuple(padding)
    kernel = layer.kernel[...]
    if layer.mask is not None:
        if layer.mask.shape != kernel.shape:
            raise DoesNotApply(f"the mask has shape {layer.mask.shape}, the kernel {kernel.shape}")
        kernel = kernel * layer.mask
    bias = None if layer.bias is None else layer.bias[...]
    output_dtype = layer.preferred_element_type
    wider = {} if output_dtype is None else {"preferred_element_type": output_dtype}
    convolve = partial(
        layer.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        lhs_dilation=x_dilation,
        rhs_dilation=kernel_dilation,
        dimension_numbers=channels_last(axes),
        feature_group_count=layer.feature_group_count,
        precision=layer.precision,
        **wider,
    )
    return layer.promote_dtype((x, kernel, bias), dtype=layer.dtype), Inner(convolve), sources


def _unpad(x_bar, sources):
    """The adjoint of padding by copies: each element receives the sum over its copies."""
    for axis, source in enumerate(sources or (), start=1):
        x_bar = jnp.moveaxis(x_bar, axis, 0)
        total = jnp.zeros((source.max() + 1, *x_bar.shape[1:]), x_bar.dtype)
        x_bar = jnp.moveaxis(total.at[source].add(x_bar), 0, axis)
    return x_bar


def channels_last(axes):
    """Dimension numbers of input (N, *spatial, C), kernel (*window, I, O) and output (N, *spatial, C)."""
    spatial = tuple(range(1, axes + 1))
    array, kernel = (0, axes + 1, *spatial), (axes + 1, axes, *range(axes))
    return lax.ConvDimensionNumbers(array, kernel, array)


TAKEN = {"window_strides", "padding", "feature_group_count", "precision", "preferred_element_type"}


@rule(lax.conv_general_dilated)
class ConvGeneralDilatedRule:
    """y[t] = sum_k x[s t + d k - low] W[k] on an input with a - 1 zeros between its elements.

    x_bar = conv(y_bar, W reversed in k, in and out exchanged), with stride a and y_bar dilated by s;
    W_bar = conv(x, y_bar), batch and channels exchanged, with stride d and y_bar dilated by s.
    The padding makes each result as large as what it is the cotangent of. Groups are blocks of channels.
    Takes the calls that `nnx.Conv` makes: channels last, no groups in the batch.
    """

    def forward(function, x, kernel, *, lhs_dilation, rhs_dilation, dimension_numbers, **options):
        if dimension_numbers != channels_last(x.ndim - 2) or not options.keys() <= TAKEN:
            raise DoesNotApply("another call than those of nnx.Conv")
        dilations = {"lhs_dilation": lhs_dilation, "rhs_dilation": rhs_dilation}
        return function(x, kernel, dimension_numbers=dimension_numbers, **dilations, **options), (x, kernel)

    def backward(
        function,
        residuals,
        y_bar,
        *,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers=None,
        feature_group_count=1,
        precision=None,
        preferred_element_type=None,
    ):
        x, kernel = residuals
        groups, axes = feature_group_count, len(window_strides)
        *window, group_in, out = kernel.shape
        size, moved = x.shape[1:-1], y_bar.shape[1:-1]
        dilated = [(n - 1) * a + 1 for n, a in zip(size, lhs_dilation, strict=True)]
        reach = [(k - 1) * d + 1 for k, d in zip(window, rhs_dilation, strict=True)]
        spread = [(m - 1) * s + 1 for m, s in zip(moved, window_strides, strict=True)]
        low = [p for p, _ in explicit_padding(padding, dilated, window, window_strides, rhs_dilation)]

        reverse = jnp.flip(kernel, range(axes)).reshape(*window, group_in, groups, out // groups)
        reverse = jnp.swapaxes(reverse, -3, -1).reshape(*window, out // groups, groups * group_in)
        x_bar = lax.conv_general_dilated(
            y_bar,
            reverse,
            lhs_dilation,
            [(r - 1 - p, n + p - m) for r, p, n, m in zip(reach, low, dilated, spread, strict=True)],
            lhs_dilation=window_strides,
            rhs_dilation=rhs_dilation,
            dimension_numbers=channels_last(axes),
            feature_group_count=groups,
            precision=precision,
        )
        spatial = tuple(range(1, axes + 1))
        kernel_bar = lax.conv_general_dilated(
            x,
            y_bar,
            rhs_dilation,
            [(p, r - 1 + m - n - p) for r, p, n, m in zip(reach, low, dilated, spread, strict=True)],
            lhs_dilation=lhs_dilation,
            rhs_dilation=window_strides,
            dimension_numbers=lax.ConvDimensionNumbers(
                (axes + 1, 0, *spatial), (axes + 1, 0, *spatial), (axes, axes + 1, *range(axes))
            ),
            batch_group_count=groups,
            precision=precision,
        )
        return {}, (x_bar, kernel_bar)


@rule(patch_convolution)
class PatchConvolutionRule:
    """y[t] = sum_k x[s t + d k - low] W[k] as a matrix times patches P: y = W^T P.

    W_bar^T = y_bar P^T, P_bar = W y_bar, and x_bar puts P_bar back: the adjoint of cutting out is adding.
    W: (window and in, out), P: (window and in, positions and batch), y: (out, positions and batch).
    """

    def forward(function, x, kernel, **options):
        return function(x, kernel, **options), (x, kernel)

    def backward(
        function,
        residuals,
        y_bar,
        *,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers=None,
        feature_group_count=1,
        precision=None,
        preferred_element_type=None,
    ):
        x, kernel = residuals
        groups = feature_group_count
        *window, group_in, out = kernel.shape
        patches = extract_patches(x, window, window_strides, padding, lhs_dilation, rhs_dilation)
        y_bar = jnp.swapaxes(y_bar, 0, -1)
        if groups == 1:
            rows, columns = y_bar.reshape(out, -1), patches.reshape(patches.shape[0], -1)
            kernel_bar = jnp.matmul(rows, columns.T, precision=precision)
            # Not kernel_bar.T: XLA would multiply the factors' transposes instead, which is slower.
            kernel_bar = jnp.moveaxis(kernel_bar.reshape(out, *window, group_in), 0, -1)
            patches_bar = jnp.matmul(kernel.reshape(-1, out), rows, precision=precision)
        else:
            columns = patches.reshape(math.prod(window), groups, group_in, -1)
            rows = y_bar.reshape(groups, out // groups, -1)
            matrix = kernel.reshape(-1, group_in, groups, out // groups)
            kernel_bar = jnp.einsum("kgin,gon->kigo", columns, rows, precision=precision)
            kernel_bar = kernel_bar.reshape(kernel.shape)
            patches_bar = jnp.einsum("gon,kigo->kgin", rows, matrix, precision=precision)
        dilated = padded_size(x.shape[1:-1], ((0, 0),) * len(window), lhs_dilation)
        pads = explicit_padding(padding, dilated, window, window_strides, rhs_dilation)
        x_bar = put_back(
            jnp.split(patches_bar.reshape(patches.shape), math.prod(window), axis=0),
            list(offsets(window, rhs_dilation)),
            window_strides,
            padded_size(x.shape[1:-1], pads, lhs_dilation),
        )
        x_bar = jnp.swapaxes(pad(x_bar, tuple((-low, -high) for low, high in pads)), 0, -1)
        return {}, (x_bar[:, *(slice(None, None, a) for a in lhs_dilation)], kernel_bar)
