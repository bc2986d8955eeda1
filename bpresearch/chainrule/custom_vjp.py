"""Hand-written rules inside `jax.grad`: any layer, function or model as a `jax.custom_vjp`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from bpresearch.chainrule import engine
from bpresearch.chainrule.calls import WholeFunction, layers_whole, named
from bpresearch.chainrule.primitives import Static, is_floating
from bpresearch.chainrule.program import trace
from bpresearch.chainrule.registry import Layer, has_rule
from bpresearch.functional import State, merge, split, state_of


def as_custom_vjp(layer: Layer) -> Layer:
    """A layer, loss or whole model that JAX differentiates by the hand-written rules.

    It is called as the layer is, with the same inputs and options, wherever the layer could be: alone, in
    an `nnx.Sequential`, under `jit`, `vmap`, `scan` and `jax.grad`. Of a module it is a module again, which
    holds the layer as its attribute `layer`, so parameters are found, trained and saved as usual, and
    what the layer keeps (batch statistics, counters of random streams) is updated at each call. Of a function
    it is a function.

    Everything floating point gets its cotangent: parameters, other variables, inputs and arrays among the
    options. A cotangent of the variables' new values does not count.

    Raises:
        NoPrimitiveRuleError: when it is differentiated, and an operation in it has no rule.

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
    if isinstance(layer, nnx.Module):
        return CustomVJP(layer)
    whole = WholeFunction(layer, "") if has_rule(layer) else layer

    def by_rule(*inputs: PyTree, **options: Any) -> PyTree:
        return _call(lambda variables: (whole, []), (), inputs, options)[0]

    return functools.update_wrapper(by_rule, layer)


class CustomVJP(nnx.Module):
    """A module that `jax.grad` differentiates by the hand-written rules."""

    def __init__(self, layer: nnx.Module):
        self.layer = layer

    def __call__(self, *inputs: PyTree, **options: Any) -> PyTree:
        graphdef, params, state = split(self.layer)

        def together(variables):
            model = named(merge(graphdef, *variables))
            return model, [model]

        y, (state,) = _call(together, (params, state), inputs, options)
        nnx.update(self.layer, nnx.State(state))
        return y


def _call(
    together: Callable[..., tuple[Layer, list[nnx.Module]]],
    variables: PyTree,
    inputs: tuple[PyTree, ...],
    options: dict[str, Any],
) -> tuple[PyTree, list[State]]:
    """Output and new state of the layer `together(variables)`; only arrays go through `jax.custom_vjp`."""
    leaves, structure = jax.tree.flatten((variables, inputs, options))
    at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray | float)]

    def function(*arrays):
        filled = dict(enumerate(leaves)) | dict(zip(at, arrays, strict=True))
        variables, inputs, options = structure.unflatten(filled.values())
        layer, models = together(variables)
        with layers_whole(models):
            return layer(*inputs, **options), [state_of(model) for model in models]

    call = jax.custom_vjp(function)

    def forward(*primals):
        arrays = [x.value for x in primals]
        wanted = [x.perturbed and is_floating(x.value) for x in primals]
        program = trace(function, *arrays)
        shapes = program.structure.unflatten(range(program.structure.num_leaves))
        live = [True] * len(jax.tree.leaves(shapes[0])) + [False] * len(jax.tree.leaves(shapes[1]))
        outs, tape = engine.forward(program.jaxpr, program.consts, arrays, wanted, live)
        return program.structure.unflatten(outs), (Static((program.jaxpr, wanted, live)), arrays, tape)

    def backward(residuals, bars):
        static, arrays, tape = residuals
        jaxpr, wanted, live = static.value
        zero = jax.custom_derivatives.SymbolicZero
        bars = jax.tree.leaves(bars, is_leaf=lambda bar: isinstance(bar, zero))
        bars = [None if isinstance(bar, zero) or not is_floating(bar) else bar for bar in bars]
        cotangents = engine.filled(engine.backward(jaxpr, tape, bars, wanted, live), arrays)
        float0 = jax.dtypes.float0
        return tuple(
            np.zeros(x.shape, float0) if bar is None else bar
            for bar, x in zip(cotangents, arrays, strict=True)
        )

    call.defvjp(forward, backward, symbolic_zeros=True)
    return call(*[jnp.asarray(leaves[i]) for i in at])
