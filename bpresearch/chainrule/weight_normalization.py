"""Layers whose weights are normalised before they are used: WeightNorm and SpectralNorm.

Both wrap a layer: they give it weights W' made from its own W, and its own rule answers for y by x and W'.
What is left is the derivative of W' by W. The wrapped layer's rule is given a copy of it with W' in the place
of W, so that the rules work inside loops and switches, where the layer itself cannot be changed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import canonicalize_dtype
from jax import lax

from bpresearch.chainrule.engine import backward, forward
from bpresearch.chainrule.gather import gather
from bpresearch.chainrule.registry import rule
from bpresearch.functional import merge, split

Weights = list[tuple[tuple[Any, ...], nnx.Param]]
"""Parameters of a wrapped layer, with their paths in it."""


@rule(nnx.WeightNorm)
class WeightNormRule:
    """W' = g V,   V = r W,   r = 1 / sqrt(sum(W^2) + eps)      (Salimans and Kingma 2016)

    g_bar = sum(W'_bar V),   V_bar = g W'_bar,   W_bar = r (V_bar - V sum(V_bar V)) = g r (W'_bar - g_bar V)

    The sums run over all axes of W but `feature_axes`; g has one element for each index of these. W is each
    parameter that `variable_filter` picks, by default those named "kernel". Where Flax keeps the scales g as
    plain arrays (before 0.12.12), they are constants and have no gradient.
    """

    def forward(layer, *inputs):
        chosen = _chosen(layer)
        sizes = [_inverse_norm(layer, weights[...]) for _, weights in chosen]
        y, kept = _forward(layer, chosen, _normalised(layer, chosen, sizes), inputs)
        return y, (sizes, kept)

    def backward(layer, residuals, y_bar):
        sizes, kept = residuals
        chosen, scales = _chosen(layer), {}
        grads, x_bar = _backward(layer, chosen, _normalised(layer, chosen, sizes), kept, y_bar)
        for (path, weights), r in zip(chosen, sizes, strict=True):
            others = _other_axes(layer, weights)
            bar, direction = _at(grads, path), weights[...] * r
            scale_bar = jnp.sum(bar * direction, others, keepdims=True)
            if layer.use_scale:
                scale = layer.scales[path]
                if isinstance(scale, nnx.Param):
                    scales[path] = jnp.squeeze(scale_bar, others)
                r = r * _spread(scale[...], weights, others)
            _put(grads, path, (r * (bar - scale_bar * direction)).astype(weights.dtype))
        return {"layer_instance": grads, **({"scales": scales} if scales else {})}, x_bar


@rule(nnx.SpectralNorm)
class SpectralNormRule:
    """W' = W / s,   s = v^T W u, about the largest singular value of W      (Miyato et al. 2018)

    W_bar = (W'_bar - sum(W'_bar W') v u^T) / s

    The singular vectors u and v come from `n_steps` steps of the power method, which start from the u that
    is kept in the layer's state, and count as constants. In training (`update_stats`) the new u and s are
    kept. W is each parameter with two axes or more, seen as a matrix by folding all axes but the last.
    """

    def forward(layer, *inputs, update_stats=None):
        chosen = _matrices(layer)
        spectra = [_power_method(layer, path, _matrix(weights)) for path, weights in chosen]
        y, kept = _forward(layer, chosen, _divided(layer, chosen, spectra), inputs)
        if not layer.use_running_average if update_stats is None else update_stats:
            for (path, _), (u, _, s) in zip(chosen, spectra, strict=True):
                for name, value in (("u", u), ("sigma", s)):
                    running = layer.batch_stats[(*path, name)]
                    running[...] = value.astype(running.dtype)
        return y, (spectra, kept)

    def backward(layer, residuals, y_bar, update_stats=None):
        spectra, kept = residuals
        chosen = _matrices(layer)
        divided = _divided(layer, chosen, spectra)
        grads, x_bar = _backward(layer, chosen, divided, kept, y_bar)
        for (path, weights), new, (u, v, s) in zip(chosen, divided, spectra, strict=True):
            bar = _at(grads, path)
            through_s = jnp.where(s != 0, jnp.sum(bar * new), 0) * (v.T @ u)
            bar = (bar - through_s.reshape(bar.shape)) / jnp.where(s != 0, s, 1)
            _put(grads, path, bar.astype(weights.dtype))
        return {"layer_instance": grads}, x_bar


def _forward(layer, chosen, values, inputs):
    """y and residuals of the wrapped layer with these weights; what else it changes of itself, it keeps."""
    wrapped = _with_weights(layer, chosen, values)
    y, kept = forward(wrapped, *inputs, name=("layer_instance",))
    _, _, state = nnx.split(wrapped, nnx.Param, ...)
    if state:
        nnx.update(layer.layer_instance, state)
    return y, kept


def _backward(layer, chosen, values, kept, y_bar):
    wrapped = _with_weights(layer, chosen, values)
    grads, x_bar = backward(wrapped, kept, y_bar, name=("layer_instance",))
    return gather(wrapped, grads), x_bar


def _with_weights(layer, chosen: Weights, values: list[jax.Array]) -> nnx.Module:
    graphdef, params, state = split(layer.layer_instance)
    for (path, _), value in zip(chosen, values, strict=True):
        _put(params, path, value)
    return merge(graphdef, params, state)


def _parameters(layer) -> Weights:
    return list(nnx.to_flat_state(nnx.state(layer.layer_instance, nnx.Param)))


def _chosen(layer) -> Weights:
    return [(path, weights) for path, weights in _parameters(layer) if layer.variable_filter(path, weights)]


def _other_axes(layer, weights):
    given = layer.feature_axes
    features = {axis % weights.ndim for axis in ((given,) if isinstance(given, int) else given)}
    return tuple(axis for axis in range(weights.ndim) if axis not in features)


def _inverse_norm(layer, values):
    squares = jnp.sum(values * values, _other_axes(layer, values), keepdims=True)
    return lax.rsqrt(squares + layer.epsilon)


def _spread(scale, weights, others):
    return scale.reshape([1 if axis in others else n for axis, n in enumerate(weights.shape)])


def _normalised(layer, chosen, sizes):
    """W' of each chosen parameter."""
    values = []
    for (path, weights), r in zip(chosen, sizes, strict=True):
        value, given = weights[...] * r, [weights[...]]
        if layer.use_scale:
            given.append(_spread(layer.scales[path][...], weights, _other_axes(layer, weights)))
            value = value * given[1]
        values.append(value.astype(canonicalize_dtype(*given, dtype=layer.dtype)))
    return values


def _matrices(layer) -> Weights:
    return [(path, weights) for path, weights in _parameters(layer) if weights.ndim > 1 and layer.n_steps > 0]


def _matrix(weights):
    return weights[...].reshape(-1, weights.shape[-1])


def _power_method(layer, path, matrix):
    """Rows u and v, of length one, and s = v W u^T."""
    u = layer.batch_stats[(*path, "u")][...]
    for _ in range(layer.n_steps):
        v = _unit(u @ matrix.T, layer.epsilon)
        u = _unit(v @ matrix, layer.epsilon)
    return u, v, (v @ matrix @ u.T)[0, 0]


def _unit(x, epsilon):
    return x * lax.rsqrt(jnp.sum(x * x, keepdims=True) + epsilon)


def _divided(layer, chosen, spectra):
    """W' of each matrix."""
    values = []
    for (_, weights), (u, v, s) in zip(chosen, spectra, strict=True):
        value = weights[...] / jnp.where(s != 0, s, 1)
        values.append(value.astype(canonicalize_dtype(value, u, v, s, dtype=layer.dtype)))
    return values


def _at(grads, path):
    for name in path:
        grads = grads[name]
    return grads


def _put(grads, path, value):
    _at(grads, path[:-1])[path[-1]] = value
