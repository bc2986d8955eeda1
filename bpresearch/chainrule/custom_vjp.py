"""Hand-written rules inside `jax.grad`: any layer that has a rule as a `jax.custom_vjp`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bpresearch.chainrule.gather import gather
from bpresearch.chainrule.registry import Layer, rule_for
from bpresearch.functional import as_inputs, merge, split, state_of


def as_custom_vjp(layer: Layer) -> Any:
    """A layer, loss or whole model that JAX differentiates by its hand-written rule.

    It is called as the layer is, with the same inputs and options, wherever the layer could be: alone, in
    an `nnx.Sequential`, under `jit`, `vmap`, `scan` and `jax.grad`. Of a module it is a module again, which
    holds the layer as its attribute `layer`, so parameters are found, trained and saved as usual, and
    what the layer keeps (batch statistics, counters of random streams) is updated at each call. Of a function
    it is a function.

    Parameters and floating-point inputs get cotangents; the layer's other variables, integers and the arrays
    among the options have none, as in the rules. Nor does a cotangent of the variables' new values count.

    Raises:
        NoRuleError: the layer has no rule.

    >>> layer = bp.chainrule.as_custom_vjp(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    >>> graphdef, params = nnx.split(layer)
    >>> def loss(params, x):
    ...     y = nnx.merge(graphdef, params)(x)  # JAX differentiates all but this by itself
    ...     return jnp.sum(jnp.sin(y))
    >>> grads = jax.jit(jax.grad(loss))(params, jnp.ones((4, 3)))
    >>> print(jax.tree.map(jnp.shape, nnx.to_pure_dict(grads)))
    {'layer': {'bias': (2,), 'kernel': (3, 2)}}
    >>> gelu = bp.chainrule.as_custom_vjp(nnx.gelu)
    >>> print(f"{jax.grad(gelu)(1.0):.5f}", f"{jax.grad(lambda x: gelu(x, approximate=False))(1.0):.5f}")
    1.08296 1.08332
    """
    rule_for(layer)
    if isinstance(layer, nnx.Module):
        return CustomVJP(layer)

    def by_rule(*inputs: Any, **options: Any) -> Any:
        return _call(lambda params, state: layer, {}, {}, inputs, options)[0]

    return functools.update_wrapper(by_rule, layer)


class CustomVJP(nnx.Module):
    """A module that `jax.grad` differentiates by its hand-written rule."""

    def __init__(self, layer: nnx.Module):
        self.layer = layer

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        graphdef, params, state = split(self.layer)
        y, state = _call(functools.partial(merge, graphdef), params, state, inputs, options)
        nnx.update(self.layer, nnx.State(state))
        return y


def _call(together: Callable[..., Layer], params: Any, state: Any, inputs: Any, options: dict[str, Any]):
    """Output and new state of the layer `together(params, state)`; arrays all, as `jax.custom_vjp` wants."""
    leaves, structure = jax.tree.flatten(options)
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]

    def with_options(arrays):
        filled = dict(enumerate(leaves)) | dict(zip(where, arrays, strict=True))
        return structure.unflatten(filled.values())

    @jax.custom_vjp
    def call(params, state, inputs, arrays):
        layer = together(params, state)
        return layer(*inputs, **with_options(arrays)), new_state(layer)

    def call_forward(params, state, inputs, arrays):
        layer = together(params, state)
        rule, bound = rule_for(layer)
        y, residuals = rule.forward(layer, *inputs, **{**bound, **with_options(arrays)})
        return (y, new_state(layer)), (params, state, inputs, arrays, residuals)

    def call_backward(kept, bars):
        params, state, inputs, arrays, residuals = kept
        layer = together(params, state)
        rule, bound = rule_for(layer)
        grads, inputs_bar = rule.backward(layer, residuals, bars[0], **{**bound, **with_options(arrays)})
        params_bar = gather(layer, grads) if isinstance(layer, nnx.Module) else {}
        inputs_bar = (inputs_bar,) if len(inputs) == 1 else as_inputs(inputs_bar)
        return params_bar, _nothing(state), _filled(inputs, inputs_bar), _nothing(arrays)

    def new_state(layer):
        return state_of(layer) if isinstance(layer, nnx.Module) else {}

    call.defvjp(call_forward, call_backward)
    return call(params, state, inputs, [leaves[i] for i in where])


def _filled(values: Any, bars: Any) -> Any:
    """Cotangents in the structure of the values, zeros where a rule gave None."""
    leaves, structure = jax.tree.flatten(values)
    pairs = zip(leaves, structure.flatten_up_to(bars), strict=True)
    return structure.unflatten([_nothing(value) if bar is None else bar for value, bar in pairs])


def _nothing(tree: Any) -> Any:
    """The zero cotangents of a tree, in the types that JAX wants of them."""

    def zero(x):
        x = jnp.asarray(x)
        floating = jnp.issubdtype(x.dtype, jnp.inexact)
        return jnp.zeros_like(x) if floating else np.zeros(x.shape, jax.dtypes.float0)

    return jax.tree.map(zero, tree)
