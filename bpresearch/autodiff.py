"""The autodiff engine: gradients by `jax.grad`, compiled with `jax.jit`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from bpresearch.functional import (
    Loss,
    Params,
    State,
    compiled_value_and_grad,
    merge,
    objective,
    state_of,
)


def gradient(
    graphdef: nnx.GraphDef, loss_fn: Loss, *, inputs: bool = False, penalty: Loss | None = None
) -> Callable[..., PyTree]:
    """The pure function `(params, state, (x, y)) -> (loss, new_state), grads`.

    The loss is the mean of `loss_fn(model(x), y)` over all its elements, plus `penalty(params)`. With
    `inputs=True`, `grads` is the pair `(params_bar, x_bar)`; without, it is `params_bar` alone.

    >>> from bpresearch.functional import split
    >>> graphdef, params, state = split(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))
    >>> gradient = bp.autodiff.gradient(graphdef, optax.squared_error)
    >>> (loss, new_state), grads = gradient(params, state, (jnp.ones((3, 2)), jnp.ones((3, 1))))
    >>> grads["kernel"].shape
    (2, 1)
    """

    of_batch = objective(loss_fn, penalty)

    def loss(params: Params, x: PyTree, state: State, y: PyTree):
        model = merge(graphdef, params, state)
        return of_batch(model, params, x, y), state_of(model)

    def value_and_grad(params: Params, state: State, batch: tuple[PyTree, PyTree]):
        x, y = batch
        wrt = (0, 1) if inputs else 0
        return jax.value_and_grad(loss, wrt, has_aux=True, allow_int=inputs)(params, x, state, y)

    return value_and_grad


def value_and_grad(
    f: nnx.Module | Callable[..., PyTree],
    loss_fn: Loss | None = None,
    x: PyTree = None,
    y: PyTree = None,
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    inputs: bool = False,
    penalty: Loss | None = None,
) -> Any:
    """Value and gradient by `jax.grad`, in one of two forms.

    `value_and_grad(model, loss_fn, x, y)` gives `(loss, grads)` of a model on one batch, compiled.
    `value_and_grad(f)` gives a function: `nnx.value_and_grad(f)`, which is `jax.value_and_grad(f)` where no
    argument is a model. It writes what the call changes in a model's variables back to the model.

    Args:
        f: any NNX model; it is not changed (a rule of thumb for both engines: same model, same mask). Or a
            function of pytrees and models that returns a scalar.
        loss_fn: `(outputs, targets) -> values`, for example
            `optax.softmax_cross_entropy_with_integer_labels`; the loss is the mean of the values.
        x: the model's input with the batch first, or a tuple of several inputs.
        y: the targets, as `loss_fn` takes them, or a tuple of several; a model's tuple of outputs, too, is
            so many arguments of the loss.
        argnums: which positional arguments of the function `f` to differentiate.
        has_aux: whether the function `f` returns a pair whose second part is not differentiated.
        inputs: also return the gradient with respect to `x`.
        penalty: `params -> value`, added to the loss, for example
            `functools.partial(bpresearch.models.l2_penalty, weight=1e-4)`.

    Returns:
        `(loss, grads)`, where `grads` is a nested dict with the paths of the model's parameters; with
        `inputs=True`, `(loss, (grads, x_bar))`. Of a function, a function.

    >>> loss = lambda model, x: jnp.sum(model(x) ** 2)
    >>> value, grads = bp.autodiff.value_and_grad(loss)(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), jnp.ones((3, 2)))
    >>> print(grads["kernel"].shape)
    (2, 1)
    """
    if loss_fn is None:
        return nnx.value_and_grad(f, argnums=argnums, has_aux=has_aux)
    if not callable(loss_fn):
        raise TypeError(f"value_and_grad: {loss_fn!r} is not a loss function; argnums= is a keyword")
    return compiled_value_and_grad(gradient, f, loss_fn, x, y, inputs, penalty=penalty)


def grad(
    f: Callable[..., PyTree], *, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., PyTree]:
    """The gradient of a scalar function of pytrees and models, `nnx.grad(f)`; see `value_and_grad`.

    >>> print(bp.autodiff.grad(jnp.sin)(0.0))
    1.0
    """
    return nnx.grad(f, argnums=argnums, has_aux=has_aux)


class ByJax:
    """The derivative of one primitive by JAX, for `chainrule.primitive(name)` where there is no rule.

    `bpresearch.chainrule.primitive("my_primitive")(bpresearch.autodiff.ByJax)`; verification reports say that
    such an equation was differentiated by JAX, so nothing has been checked there.

    >>> _ = bp.chainrule.primitive("sin")(bp.autodiff.ByJax)
    >>> print(bp.chainrule.grad(jnp.sin)(0.0))
    1.0
    """

    by_jax = True

    def backward(e, *bars):
        _, pullback = jax.vjp(lambda *some: _floating(_of_some(e, some)), *_some(e))
        cotangents = iter(pullback([bar for bar, y in zip(bars, e.outs, strict=True) if _is_floating(y)]))
        return tuple(next(cotangents) if _is_floating(x) else None for x in e.ins)

    def tangent(e, *dots):
        given = [
            jnp.zeros_like(x) if dot is None else dot
            for x, dot in zip(e.ins, dots, strict=True)
            if _is_floating(x)
        ]
        _, tangents = jax.jvp(lambda *some: _floating(_of_some(e, some)), _some(e), given)
        remaining = iter(tangents)
        return tuple(next(remaining) if _is_floating(y) else None for y in e.outs)


def _some(e: Any) -> list[PyTree]:
    return [x for x in e.ins if _is_floating(x)]


def _of_some(e: Any, some: Sequence[PyTree]) -> PyTree:
    remaining = iter(some)
    return e.bind(*(next(remaining) if _is_floating(x) else x for x in e.ins))


def _floating(values: Sequence[PyTree]) -> list[PyTree]:
    return [value for value in values if _is_floating(value)]


def _is_floating(x: PyTree) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)
