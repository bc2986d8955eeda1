"""The autodiff engine: gradients by `jax.grad`, compiled with `jax.jit`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bpresearch.functional import (
    Params,
    State,
    as_inputs,
    compiled_value_and_grad,
    merge,
    state_of,
)


def gradient(graphdef: nnx.GraphDef, loss_fn: Callable[..., jax.Array], *, inputs: bool = False):
    """The pure function `(params, state, (x, y)) -> (loss, new_state), grads`.

    The loss is the mean of `loss_fn(model(x), y)` over all its elements. With `inputs=True`, `grads` is
    the pair `(params_bar, x_bar)`; without, it is `params_bar` alone.
    """

    def loss(params: Params, x: Any, state: State, y: Any):
        model = merge(graphdef, params, state)
        values = loss_fn(model(*as_inputs(x)), y)
        return jnp.mean(values), state_of(model)

    def value_and_grad(params: Params, state: State, batch: tuple[Any, Any]):
        x, y = batch
        wrt = (0, 1) if inputs else 0
        return jax.value_and_grad(loss, wrt, has_aux=True, allow_int=inputs)(params, x, state, y)

    return value_and_grad


def value_and_grad(
    model: nnx.Module, loss_fn: Callable[..., jax.Array], x: Any, y: Any, *, inputs: bool = False
) -> tuple[jax.Array, Any]:
    """Loss and gradient of a model on one batch, by `jax.grad`.

    Args:
        model: any NNX model; it is not changed (a rule of thumb for both engines: same model, same mask).
        loss_fn: `(outputs, targets) -> values`, for example
            `optax.softmax_cross_entropy_with_integer_labels`; the loss is the mean of the values.
        x: the model's input with the batch first, or a tuple of several inputs.
        y: the targets, as `loss_fn` takes them.
        inputs: also return the gradient with respect to `x`.

    Returns:
        `(loss, grads)`, where `grads` is a nested dict with the paths of the model's parameters; with
        `inputs=True`, `(loss, (grads, x_bar))`.
    """
    return compiled_value_and_grad(gradient, model, loss_fn, x, y, inputs)
