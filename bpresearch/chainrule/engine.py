"""The chain-rule engine: it chains the hand-written rules and knows no derivative itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bpresearch.chainrule.gather import gather
from bpresearch.chainrule.registry import Layer, Rule, rule_for, version
from bpresearch.functional import (
    Params,
    State,
    as_inputs,
    compiled_value_and_grad,
    format_path,
    merge,
    state_of,
)

Path = tuple[Any, ...]
Loss = Callable[..., jax.Array]
_path: ContextVar[Path] = ContextVar("path", default=())
_replace: ContextVar[Callable[[Path, Layer, Rule], Rule]] = ContextVar(
    "replace", default=lambda path, layer, rule: rule
)


@contextmanager
def _setting(variable: ContextVar, value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def inside(*name: Any):
    """Context in which rules are at work on a part of the layer; `name` is the path from the layer to it."""
    return _setting(_path, _path.get() + name)


def location() -> str:
    """Where in the model the rule that asks is at work, for its error messages."""
    return format_path(_path.get()) or "the model itself"


def own_rule(layer: Layer) -> tuple[Rule, dict[str, Any]]:
    """The registered rule of a layer here, whatever replaces it, and the options bound to the layer."""
    return rule_for(layer, _path.get())


def rule_in_force(layer: Layer) -> tuple[Rule, dict[str, Any]]:
    """The rule that answers for a layer here, and the options bound to the layer."""
    rule, options = own_rule(layer)
    return _replace.get()(_path.get(), layer, rule), options


def replacing(replace: Callable[[Path, Layer, Rule], Rule]):
    """Context in which each rule found is replaced by `replace(path, layer, rule)`.

    The verifier watches a model's layers through it, and plants faults.
    """
    return _setting(_replace, replace)


def forward(layer: Layer, *inputs: Any, name: Path = ()) -> tuple[Any, Any]:
    """Output and residuals of a layer by its rule; `name` is the path from the parent to the layer."""
    with inside(*name):
        rule, options = rule_in_force(layer)
        return rule.forward(layer, *inputs, **options)


def backward(layer: Layer, residuals: Any, y_bar: Any, name: Path = ()) -> tuple[dict, Any]:
    """Cotangents of a layer's parameters and input from the cotangent of its output, by its rule."""
    with inside(*name):
        rule, options = rule_in_force(layer)
        return rule.backward(layer, residuals, y_bar, **options)


def gradient(
    graphdef: nnx.GraphDef, loss_fn: Loss, *, inputs: bool = False, penalty: Loss | None = None
) -> Callable[..., Any]:
    """The pure function `(params, state, (x, y)) -> (loss, new_state), grads`, as `autodiff.gradient`.

    Forward through the model and the loss; then backward, starting from the derivative of the mean. The
    penalty's derivative adds to the gradient.
    """

    def value_and_grad(params: Params, state: State, batch: tuple[Any, Any]):
        x, y = batch
        model = merge(graphdef, params, state)
        outputs, residuals = forward(model, *as_inputs(x))
        values, of_loss = forward(loss_fn, *as_inputs(outputs), *as_inputs(y), name=("loss",))
        values_bar = jnp.full(values.shape, 1 / values.size, values.dtype)
        _, bars = backward(loss_fn, of_loss, values_bar, name=("loss",))
        outputs_bar = bars[: len(outputs)] if isinstance(outputs, tuple) else as_inputs(bars)[0]
        grads, x_bar = backward(model, residuals, outputs_bar)
        loss, grads = jnp.mean(values), gather(model, grads)
        if penalty is not None:
            value, of_penalty = forward(penalty, params, name=("penalty",))
            _, params_bar = backward(penalty, of_penalty, jnp.ones_like(value), name=("penalty",))
            loss, grads = loss + value, jax.tree.map(jnp.add, grads, params_bar)
        if inputs:
            x_bar = (x_bar,) if isinstance(x, tuple) and len(x) == 1 else x_bar
            return (loss, state_of(model)), (grads, _floating(x, x_bar))
        return (loss, state_of(model)), grads

    return value_and_grad


def _floating(x: Any, x_bar: Any) -> Any:
    """The cotangents of floating-point inputs; integers have none."""
    if isinstance(x, tuple):
        return tuple(_floating(part, bar) for part, bar in zip(x, x_bar, strict=True))
    return x_bar if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else None


def value_and_grad(
    model: nnx.Module,
    loss_fn: Loss,
    x: Any,
    y: Any,
    *,
    inputs: bool = False,
    penalty: Loss | None = None,
) -> tuple[jax.Array, Any]:
    """Loss and gradient of a model on one batch, by the hand-written rules.

    Takes and returns what `bpresearch.autodiff.value_and_grad` does. `loss_fn` is a function with a rule,
    such as `optax.softmax_cross_entropy_with_integer_labels`; so is `penalty`.

    Raises:
        NoRuleError: a layer of the model, the loss or the penalty has no rule.
    """
    rules = _replace.get(), version()
    return compiled_value_and_grad(gradient, model, loss_fn, x, y, inputs, rules, penalty)
