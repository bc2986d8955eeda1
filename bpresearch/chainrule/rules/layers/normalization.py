"""Normalization: the input less its mean, over its standard deviation.

With r = 1 / sqrt(var + eps), all layers compute

    x_hat = (x - mean) r,     y = scale x_hat + bias

and differ in the axes over which mean and var are taken and in those that have a scale and a bias of their
own. Mean and var depend on x too. With x_hat_bar = scale y_bar, along those three paths,

    var_bar  = -r^3 / 2 sum(x_hat_bar (x - mean)) = -r^2 / 2 sum(x_hat_bar x_hat)
    mean_bar = -r sum(x_hat_bar)                     (var's own derivative by mean is -2 mean(x - mean) = 0)
    x_bar    = r x_hat_bar + mean_bar / n + 2 (x - mean) var_bar / n
             = r (x_hat_bar - sum(x_hat_bar) / n - x_hat sum(x_hat_bar x_hat) / n)

Sums run over the axes of mean and var, and n is the number of elements there. A mask takes some elements out
of mean and var, but not out of x_hat: the sums still run over all elements, n counts those inside the mask,
and only these receive the n-th parts. Flax computes var as mean(x^2) - mean^2 or, without
`use_fast_variance`, as mean((x - mean)^2): one function, one derivative. All is computed in float32 at least.

Layers that share their statistics between devices (`axis_name`), and complex inputs, are opened.
"""

import math
from functools import partial

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import canonicalize_dtype
from jax import lax

from bpresearch.chainrule.registry import DoesNotApply, rule


@rule(nnx.LayerNorm)
class LayerNormRule:
    """y = scale x_hat + bias,   x_hat = (x - mean) r,   r = 1 / sqrt(var + eps)      (Ba et al. 2016)

    scale_bar = sum(y_bar x_hat),   bias_bar = sum(y_bar),   x_hat_bar = scale y_bar
    x_bar = r (x_hat_bar - mean(x_hat_bar) - x_hat mean(x_hat_bar x_hat))

    Mean and var are those of x along `reduction_axes`, the last axis unless told otherwise; scale and bias
    have one element per feature, and their cotangents are sums over all axes but `feature_axes`.
    """

    def forward(layer, x, *, mask=None):
        mean, var = moments(layer, x, layer.reduction_axes, mask)
        return normalised(layer, x, mean, var, layer.feature_axes)

    def backward(layer, residuals, y_bar, *, mask=None):
        return pulled_back(layer, residuals, y_bar, layer.reduction_axes, layer.feature_axes, mask)


@rule(nnx.RMSNorm)
class RMSNormRule(LayerNormRule):
    """y = scale x_hat,   x_hat = x r,   r = 1 / sqrt(mean(x^2) + eps)      (Zhang and Sennrich 2019)

    scale_bar = sum(y_bar x_hat),   x_hat_bar = scale y_bar
    x_bar = r (x_hat_bar - x_hat mean(x_hat_bar x_hat))

    As in `LayerNormRule`, without what belongs to mean and bias.
    """


@rule(nnx.InstanceNorm)
class InstanceNormRule:
    """LayerNorm of each example's each channel (Ulyanov et al. 2016).      Derivative as in `LayerNormRule`

    Mean and var are taken over all axes but the first, the batch, and `feature_axes`, the channels.
    """

    def forward(layer, x, *, mask=None):
        channels = axes_of(layer.feature_axes, x)
        if 0 in channels:
            raise DoesNotApply("axis 0 is the batch and cannot be a feature axis")
        return normalised(layer, x, *moments(layer, x, others((0, *channels), x), mask), channels)

    def backward(layer, residuals, y_bar, *, mask=None):
        channels = axes_of(layer.feature_axes, y_bar)
        return pulled_back(layer, residuals, y_bar, others((0, *channels), y_bar), channels, mask)


@rule(nnx.GroupNorm)
class GroupNormRule:
    """LayerNorm of each example's each group of channels (Wu and He 2018).      As in `LayerNormRule`

    x: (batch, *spatial, groups * size), taken as (batch, *spatial, groups, size). Mean and var are those over
    the spatial axes and the channels of the group; or over `reduction_axes`, of which the last one stands for
    the channels, if one other axis remains. Otherwise Flax mixes up the statistics of the groups, and the
    layer is opened.
    """

    def forward(layer, x, *, mask=None):
        axes, grouped, mask = in_groups(layer, x, mask)
        y, (_, mean, r) = normalised(layer, grouped, *moments(layer, grouped, axes, mask), (-2, -1))
        return y.reshape(x.shape), (x, mean, r)

    def backward(layer, residuals, y_bar, *, mask=None):
        x, mean, r = residuals
        axes, grouped, mask = in_groups(layer, x, mask)
        y_bar = y_bar.reshape(grouped.shape)
        grads, x_bar = pulled_back(layer, (grouped, mean, r), y_bar, axes, (-2, -1), mask)
        return grads, x_bar.reshape(x.shape)


@rule(nnx.BatchNorm)
class BatchNormRule:
    """y = scale x_hat + bias,   x_hat = (x - mean) r,   r = 1 / sqrt(var + eps)  (Ioffe and Szegedy 2015)

    scale_bar = sum(y_bar x_hat),   bias_bar = sum(y_bar),   x_hat_bar = scale y_bar
    in training:     x_bar = r (x_hat_bar - mean(x_hat_bar) - x_hat mean(x_hat_bar x_hat))
    in evaluation:   x_bar = r x_hat_bar

    In training, mean and var are those of the batch, over all axes but `axis`, and forward moves the running
    averages: running <- momentum running + (1 - momentum) of the batch. In evaluation they are the running
    averages, which are constants.
    """

    def forward(layer, x, *, use_running_average=None, mask=None):
        if evaluates(layer, use_running_average):
            _, _, _, *running = promoted(layer, x)
            mean, var = (along(layer.axis, x, average) for average in running)
            return normalised(layer, x, mean, var, layer.axis)
        mean, var = moments(layer, x, others(layer.axis, x), mask)
        for running, value in ((layer.mean, mean), (layer.var, var)):
            moved = layer.momentum * running[...] + (1 - layer.momentum) * value.reshape(running.shape)
            running[...] = moved.astype(running.dtype)
        return normalised(layer, x, mean, var, layer.axis)

    def backward(layer, residuals, y_bar, *, use_running_average=None, mask=None):
        axes = () if evaluates(layer, use_running_average) else others(layer.axis, y_bar)
        return pulled_back(layer, residuals, y_bar, axes, layer.axis, mask)


def moments(layer, x, axes, mask):
    """Mean (None for RMSNorm) and var over `axes`, which stay as axes of length one."""
    if layer.axis_name is not None:
        raise DoesNotApply("statistics are shared between devices")
    if jnp.iscomplexobj(x):
        raise DoesNotApply("complex numbers")
    x, *_ = promoted(layer, x)
    x = x.astype(jnp.promote_types(x.dtype if layer.dtype is None else layer.dtype, jnp.float32))
    mean_of = partial(jnp.mean, axis=axes_of(axes, x), keepdims=True, where=mask)
    if isinstance(layer, nnx.RMSNorm):
        return None, mean_of(x * x)
    mean = mean_of(x)
    if layer.use_fast_variance:  # reads x once
        return mean, jnp.maximum(0, mean_of(x * x) - mean * mean)
    return mean, mean_of(jnp.square(x - mean))


def normalised(layer, x, mean, var, features):
    """y = (x - mean) (r scale) + bias in the layer's dtype, and the residuals."""
    r = lax.rsqrt(var + layer.epsilon)
    x_cast, scale, bias, *_ = promoted(layer, x)
    factor = r if scale is None else r * along(features, x, scale).astype(r.dtype)
    y = (x_cast.astype(r.dtype) if mean is None else x_cast.astype(r.dtype) - mean) * factor
    y = y if bias is None else y + along(features, x, bias).astype(r.dtype)
    return y.astype(canonicalize_dtype(x_cast, scale, bias, dtype=layer.dtype)), (x, mean, r)


def pulled_back(layer, residuals, y_bar, axes, features, mask):
    """The formula at the top of this file; with no `axes`, mean and var are constants."""
    x, mean, r = residuals
    x_cast, scale, bias, *_ = promoted(layer, x)
    x_hat = (x_cast.astype(r.dtype) if mean is None else x_cast.astype(r.dtype) - mean) * r
    y_bar = y_bar.astype(r.dtype)
    axes, features = axes_of(axes, x), axes_of(features, x)

    # Along axes without features, scale is a common factor: one sum there serves the parameters and x.
    common = tuple(axis for axis in axes if axis not in features)
    bias_bar, scale_bar = total(y_bar, common), total(y_bar * x_hat, common)
    grads = {}
    if scale is not None:
        grads["scale"] = total(scale_bar, others(features, x)).reshape(layer.scale.shape)
    if bias is not None:
        grads["bias"] = total(bias_bar, others(features, x)).reshape(layer.bias.shape)
    scale = 1 if scale is None else along(features, x, scale).astype(r.dtype)
    if not axes:
        return grads, (r * scale * y_bar).astype(x.dtype)
    through_moments = x_hat * total(scale * scale_bar, axes)
    if mean is not None:
        through_moments = through_moments + total(scale * bias_bar, axes)
    return grads, (r * (scale * y_bar - through_moments * share(x_hat, axes, mask))).astype(x.dtype)


def share(x, axes, mask):
    """1 / n, and 0 outside the mask."""
    if mask is None:
        return 1 / math.prod(x.shape[axis] for axis in axes)
    inside = jnp.broadcast_to(mask, x.shape).astype(bool)
    return jnp.where(inside, 1 / total(inside.astype(x.dtype), axes), 0)


def promoted(layer, x):
    """x, scale, bias (None for what is not) and BatchNorm's averages, as `promote_dtype` gives them."""
    running = (layer.mean, layer.var) if isinstance(layer, nnx.BatchNorm) else ()
    parameters = (layer.scale,) if isinstance(layer, nnx.RMSNorm) else (layer.scale, layer.bias)
    arrays = (None if variable is None else variable[...] for variable in (*running, *parameters))
    x, *arrays = layer.promote_dtype((x, *arrays), dtype=layer.dtype)
    running, (scale, *bias) = arrays[: len(running)], arrays[len(running) :]
    return x, scale, bias[0] if bias else None, *running


def in_groups(layer, x, mask):
    """GroupNorm's axes of mean and var, x and mask, the channels split into groups."""
    axes = axes_of(range(1, x.ndim) if layer.reduction_axes is None else layer.reduction_axes, x)
    if len(axes) != x.ndim - 1 or x.ndim - 1 not in axes:
        raise DoesNotApply("other axes than one remain besides the channels")

    def grouped(array):
        return array.reshape(*array.shape[:-1], layer.num_groups, layer.group_size)

    return (*axes[:-1], x.ndim), grouped(x), None if mask is None else grouped(mask)


def evaluates(layer, use_running_average):
    """Whether the running averages are used; not to say so is an error."""
    if use_running_average is None:
        use_running_average = layer.use_running_average
    if use_running_average is None:
        raise DoesNotApply("use_running_average is not given")
    return use_running_average


def axes_of(axes, x):
    """Axes as a tuple of sorted positive numbers."""
    return tuple(sorted({axis % x.ndim for axis in ((axes,) if isinstance(axes, int) else axes)}))


def others(axes, x):
    """All axes of x but these."""
    return tuple(axis for axis in range(x.ndim) if axis not in axes_of(axes, x))


def along(features, x, array):
    """A scale, bias or running average in the shape in which it meets x."""
    return array.reshape([n if axis in axes_of(features, x) else 1 for axis, n in enumerate(x.shape)])


def total(values, axes):
    """The sum over axes, which stay as axes of length one."""
    return jnp.sum(values, axes, keepdims=True)
