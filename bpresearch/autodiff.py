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

Loss = Callable[..., jax.Array]


def gradient(
    graphdef: nnx.GraphDef, loss_fn: Loss, *, inputs: bool = False, penalty: Loss | None = None
) -> Callable[..., Any]:
    """The pure function `(params, state, (x, y)) -> (loss, new_state), grads`.

    The loss is the mean of `loss_fn(model(x), y)` over all its elements, plus `penalty(params)`. With
    `inputs=True`, `grads` is the pair `(params_bar, x_bar)`; without, it is `params_bar` alone.
    """

    def loss(params: Params, x: Any, state: State, y: Any):
        model = merge(graphdef, params, state)
        values = loss_fn(*as_inputs(model(*as_inputs(x))), *as_inputs(y))
        value = jnp.mean(values) if penalty is None else jnp.mean(values) + penalty(params)
        return value, state_of(model)

    def value_and_grad(params: Params, state: State, batch: tuple[Any, Any]):
        x, y = batch
        wrt = (0, 1) if inputs else 0
        return jax.value_and_grad(loss, wrt, has_aux=True, allow_int=inputs)(params, x, state, y)

    return value_and_grad


def value_and_grad(
    model: nnx.Module,
    loss_fn: Loss,
    x: Any,
    y: Any,
    *,
    inputs: bool = False,
    penalty: Loss | None = None,
) -> tuple[jax.Array, Any]:
    """Loss and gradient of a model on one batch, by `jax.grad`.

    Args:
        model: any NNX model; it is not changed (a rule of thumb for both engines: same model, same mask).
        loss_fn: `(outputs, targets) -> values`, for example
            `optax.softmax_cross_entropy_with_integer_labels`; the loss is the mean of the values.
        x: the model's input with the batch first, or a tuple of several inputs.
        y: the targets, as `loss_fn` takes them, or a tuple of several; a model's tuple of outputs, too, is
            so many arguments of the loss.
        inputs: also return the gradient with respect to `x`.
        penalty: `params -> value`, added to the loss, for example
            `functools.partial(bpresearch.models.l2_penalty, weight=1e-4)`.

    Returns:
        `(loss, grads)`, where `grads` is a nested dict with the paths of the model's parameters; with
        `inputs=True`, `(loss, (grads, x_bar))`.
    """
    return compiled_value_and_grad(gradient, model, loss_fn, x, y, inputs, penalty=penalty)
