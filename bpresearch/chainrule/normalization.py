"""Normalization: the input less its mean, over its standard deviation.

The layers differ in the axes over which mean and variance are taken and in those that have a scale and a
bias of their own. With r = 1 / sqrt(var + eps), all of them compute

    x_hat = (x - mean) r,     y = scale x_hat + bias

and mean and variance depend on x too. With x_hat_bar = scale y_bar, along those three paths,

    var_bar  = -r^3 / 2 sum(x_hat_bar (x - mean)) = -r^2 / 2 sum(x_hat_bar x_hat)
    mean_bar = -r sum(x_hat_bar)                     (var's own derivative by mean is -2 mean(x - mean) = 0)
    x_bar    = r x_hat_bar + mean_bar / n + 2 (x - mean) var_bar / n
             = r (x_hat_bar - mean(x_hat_bar) - x_hat mean(x_hat_bar x_hat))

Sums and means run over the n elements that mean and variance were taken over. A mask takes some elements
out of mean and variance, but not out of x_hat: then the sums run over all elements, and their n-th part goes
to those that the mask lets in. Flax computes the variance as mean(x^2) - mean^2 or, without
`use_fast_variance`, as mean((x - mean)^2): one function, one derivative.

Devices that share their statistics (`axis_name`) have mean and variance averaged over them, and so the sums
above. All is computed in float32 at least.
"""

import math

import jax.numpy as jnp
from flax import nnx
from flax.nnx.module import first_from
from flax.nnx.nn.dtypes import canonicalize_dtype
from jax import lax

from bpresearch.chainrule.engine import location
from bpresearch.chainrule.registry import rule


@rule(nnx.LayerNorm)
class LayerNormRule:
    """y = scale x_hat + bias,   x_hat = (x - mean) r,   r = 1 / sqrt(var + eps)      (Ba et al. 2016)

    scale_bar = sum(y_bar x_hat),   bias_bar = sum(y_bar),   x_hat_bar = scale y_bar
    x_bar = r (x_hat_bar - mean(x_hat_bar) - x_hat mean(x_hat_bar x_hat))

    Mean and var are those of x along `reduction_axes`, the last axis unless told otherwise; scale and bias
    have one element per feature, and their cotangents are sums over all axes but `feature_axes`.
    """

    def forward(layer, x, mask=None):
        return _forward(layer, x, layer.reduction_axes, layer.feature_axes, mask)

    def backward(layer, residuals, y_bar, mask=None):
        return _backward(layer, residuals, y_bar, layer.reduction_axes, layer.feature_axes)


@rule(nnx.RMSNorm)
class RMSNormRule:
    """y = scale x_hat,   x_hat = x r,   r = 1 / sqrt(mean(x^2) + eps)      (Zhang and Sennrich 2019)

    scale_bar = sum(y_bar x_hat),   x_hat_bar = scale y_bar
    x_bar = r (x_hat_bar - x_hat mean(x_hat_bar x_hat))

    The mean is that along `reduction_axes`; scale_bar is the sum over all axes but `feature_axes`.
    """

    def forward(layer, x, mask=None):
        return _forward(layer, x, layer.reduction_axes, layer.feature_axes, mask, centre=False)

    def backward(layer, residuals, y_bar, mask=None):
        axes, features = layer.reduction_axes, layer.feature_axes
        return _backward(layer, residuals, y_bar, axes, features, centre=False)


@rule(nnx.InstanceNorm)
class InstanceNormRule:
    """LayerNorm of each example's each channel (Ulyanov et al. 2016).      Derivative as in `LayerNormRule`

    Mean and var are taken over all axes but the first, the batch, and `feature_axes`, the channels.
    """

    def forward(layer, x, mask=None):
        return _forward(layer, x, _instance_axes(layer, x), layer.feature_axes, mask)

    def backward(layer, residuals, y_bar, mask=None):
        return _backward(layer, residuals, y_bar, _instance_axes(layer, y_bar), layer.feature_axes)


@rule(nnx.GroupNorm)
class GroupNormRule:
    """LayerNorm of each example's each group of channels (Wu and He 2018).      As in `LayerNormRule`

    x: (batch, *spatial, groups * size). Mean and var are taken over the spatial axes and the channels of the
    group; or over `reduction_axes`, whose last one stands for the channels, where one other axis remains.
    """

    def forward(layer, x, mask=None):
        return _forward(layer, x, _group_axes(layer, x), -1, mask)

    def backward(layer, residuals, y_bar, mask=None):
        return _backward(layer, residuals, y_bar, _group_axes(layer, y_bar), -1)


@rule(nnx.BatchNorm)
class BatchNormRule:
    """y = scale x_hat + bias,   x_hat = (x - mean) r,   r = 1 / sqrt(var + eps)  (Ioffe and Szegedy 2015)

    scale_bar = sum(y_bar x_hat),   bias_bar = sum(y_bar),   x_hat_bar = scale y_bar
    in training:     x_bar = r (x_hat_bar - mean(x_hat_bar) - x_hat mean(x_hat_bar x_hat))
    in evaluation:   x_bar = r x_hat_bar

    In training, mean and var are those of the batch, over all axes but `axis`, and
    forward moves the running averages: running <- momentum running + (1 - momentum) of the batch. In
    evaluation they are the running averages, which are constants.
    """

    def forward(layer, x, use_running_average=None, mask=None):
        axes = _batch_axes(layer, x)
        if not _evaluating(layer, use_running_average):
            return _forward(layer, x, axes, layer.axis, mask)
        x_cast, mean, var, scale, bias = _promoted(layer, x, layer.mean[...], layer.var[...])
        shape = _feature_shape(x, layer.axis)
        mean, r = mean.reshape(shape), lax.rsqrt(var.reshape(shape) + layer.epsilon)
        return _affine(layer, x_cast, mean, r, scale, bias, layer.axis), (x, mean, r, mask)

    def backward(layer, residuals, y_bar, use_running_average=None, mask=None):
        constant = _evaluating(layer, use_running_average)
        return _backward(layer, residuals, y_bar, _batch_axes(layer, y_bar), layer.axis, constant=constant)


def _forward(layer, x, axes, features, mask, centre=True):
    axes = _sorted_axes(axes, x.ndim)
    running = (layer.mean[...], layer.var[...]) if isinstance(layer, nnx.BatchNorm) else ()
    x_cast, *_, scale, bias = _promoted(layer, x, *running)
    dtype = x_cast.dtype if layer.dtype is None else layer.dtype
    wide = x_cast.astype(jnp.promote_types(dtype, jnp.float32))
    mean, var = _statistics(layer, wide, axes, mask, centre)
    if running:
        _move(layer.mean, mean, layer.momentum)
        _move(layer.var, var, layer.momentum)
    r = lax.rsqrt(var + layer.epsilon)
    y = _affine(layer, x_cast, mean, r, scale, bias, features)
    return y, (x, mean, r, mask)


def _backward(layer, residuals, y_bar, axes, features, centre=True, constant=False):
    x, mean, r, mask = residuals
    axes, features = _sorted_axes(axes, x.ndim), _sorted_axes(features, x.ndim)
    x_cast, *_, scale, _ = _promoted(layer, x)
    x_hat = _centred(x_cast, mean, r) * r
    y_bar = y_bar.astype(r.dtype)
    scale = 1 if scale is None else scale.astype(r.dtype).reshape(_feature_shape(x, features))
    others = tuple(axis for axis in range(x.ndim) if axis not in features)

    bias_bar, scale_bar = y_bar, y_bar * x_hat
    if not set(axes) & set(
        features
    ):  # scale is a common factor of what is summed over `axes`: once is enough
        bias_bar, scale_bar = _total(bias_bar, axes), _total(scale_bar, axes)
    grads = {}
    if layer.scale is not None:
        grads["scale"] = _total(scale_bar, others).reshape(layer.scale.shape)
    if getattr(layer, "bias", None) is not None:
        grads["bias"] = _total(bias_bar, others).reshape(layer.bias.shape)
    if constant:
        return grads, (r * scale * y_bar).astype(x.dtype)

    n = _number(layer, x, axes, mask)
    pull = x_hat * _mean(layer, scale * scale_bar, axes, n)
    if centre:
        pull = pull + _mean(layer, scale * bias_bar, axes, n)
    return grads, (r * (scale * y_bar - _inside(mask, pull))).astype(x.dtype)


def _statistics(layer, x, axes, mask, centre):
    """Mean (None where it is not taken out) and variance over `axes`, which stay as axes of length one."""
    n = _number(layer, x, axes, mask)

    def mean_of(values):
        return _mean(layer, _inside(mask, values), axes, n)

    if not centre:
        return None, mean_of(x * x)
    mean = mean_of(x)
    if layer.use_fast_variance:
        return mean, jnp.maximum(0, mean_of(x * x) - mean * mean)
    return mean, mean_of(jnp.square(x - mean))


def _total(values, axes):
    return jnp.sum(values, axes, keepdims=True)


def _pooled(layer, values, axes):
    """The sum over `axes` and, for GroupNorm, over the channels of each group."""
    total = _total(values, axes)
    if not isinstance(layer, nnx.GroupNorm):
        return total
    grouped = total.reshape(*total.shape[:-1], layer.num_groups, layer.group_size)
    return jnp.broadcast_to(_total(grouped, -1), grouped.shape).reshape(total.shape)


def _mean(layer, values, axes, n):
    """The n-th part of the sum; with an `axis_name`, averaged over the devices."""
    mean = _pooled(layer, values, axes) / n
    if layer.axis_name is None:
        return mean
    return lax.pmean(mean, layer.axis_name, axis_index_groups=layer.axis_index_groups)


def _number(layer, x, axes, mask):
    """How many elements a mean is taken over."""
    if mask is not None:
        return _pooled(layer, jnp.broadcast_to(mask, x.shape).astype(x.dtype), axes)
    size = layer.group_size if isinstance(layer, nnx.GroupNorm) else 1
    return size * math.prod(x.shape[axis] for axis in axes)


def _inside(mask, values):
    return values if mask is None else jnp.where(mask, values, 0)


def _affine(layer, x, mean, r, scale, bias, features):
    """y = (x - mean) (r scale) + bias in the layer's dtype."""
    shape = _feature_shape(x, features)
    factor = r if scale is None else r * scale.astype(r.dtype).reshape(shape)
    y = _centred(x, mean, r) * factor
    if bias is not None:
        y = y + bias.astype(r.dtype).reshape(shape)
    return y.astype(canonicalize_dtype(x, scale, bias, dtype=layer.dtype))


def _centred(x, mean, r):
    return x.astype(r.dtype) if mean is None else x.astype(r.dtype) - mean


def _move(running, value, momentum):
    moved = momentum * running[...] + (1 - momentum) * value.reshape(running.shape)
    running[...] = moved.astype(running.dtype)


def _promoted(layer, x, *running):
    """x, running averages, scale and bias as `promote_dtype` gives them; None for what there is not."""
    scale, bias = getattr(layer, "scale", None), getattr(layer, "bias", None)
    if isinstance(layer, nnx.BatchNorm) and not running:
        running = (layer.mean[...], layer.var[...])
    scale, bias = (None if variable is None else variable[...] for variable in (scale, bias))
    if isinstance(layer, nnx.RMSNorm):
        return (*layer.promote_dtype((x, scale), dtype=layer.dtype), None)
    return layer.promote_dtype((x, *running, scale, bias), dtype=layer.dtype)


def _sorted_axes(axes, rank):
    return tuple(sorted({axis % rank for axis in ((axes,) if isinstance(axes, int) else axes)}))


def _feature_shape(x, features):
    features = _sorted_axes(features, x.ndim)
    return tuple(n if axis in features else 1 for axis, n in enumerate(x.shape))


def _batch_axes(layer, x):
    return tuple(axis for axis in range(x.ndim) if axis != layer.axis % x.ndim)


def _instance_axes(layer, x):
    features = _sorted_axes(layer.feature_axes, x.ndim)
    if 0 in features:
        raise ValueError(
            f"nnx.InstanceNorm at {location()}: axis 0 is the batch and cannot be a feature axis"
        )
    return tuple(axis for axis in range(1, x.ndim) if axis not in features)


def _group_axes(layer, x):
    """The reduced axes other than the channels'."""
    given = range(1, x.ndim) if layer.reduction_axes is None else layer.reduction_axes
    axes = _sorted_axes(given, x.ndim)[:-1]
    others = x.ndim - 1 - len(axes)
    if others != 1 and 1 not in (layer.num_groups, layer.group_size):
        raise ValueError(
            f"nnx.GroupNorm at {location()}: reduction_axes={layer.reduction_axes} leaves {others} axes "
            "besides the channels, and Flax then mixes up the groups' statistics; leave one"
        )
    return axes


def _evaluating(layer, use_running_average):
    error = (
        f"nnx.BatchNorm at {location()}: use_running_average=True or False is needed, in the call or in "
        "the constructor"
    )
    return first_from(use_running_average, layer.use_running_average, error_msg=error)
