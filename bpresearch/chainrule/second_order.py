"""Hessian-vector products by the R-operator (Pearlmutter 1994): back-propagation, differentiated by hand.

For a direction v of the parameters w, R{f} = d/dr f(w + r v) at r = 0. Applied to every line of a forward and
a backward pass it gives a second pass of each: y_dot = R{y} flows forward, y_bar_dot = R{y_bar} backward, and
R{w_bar} is the Hessian times v. Composites need nothing new: the chain rule is the same for pairs of a value
and its R. So each value here is a `Dual`, composites run by their own first-order rules, and only the layers
that compute something have a rule for R: its families are in `second_order_rules.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bpresearch.chainrule import engine
from bpresearch.chainrule.gather import gather
from bpresearch.chainrule.registry import Layer, NoRuleError, Rule, version
from bpresearch.functional import Params, Program, State, as_inputs, format_path, merge, split

_second: dict[Any, Any] = {}


class Dual:
    """A value and its R. Composites add them; everything else is done to both parts by the rules."""

    def __init__(self, value: Any, dot: Any):
        self.value, self.dot = value, dot

    def __add__(self, other: "Dual") -> "Dual":
        return Dual(self.value + other.value, self.dot + other.dot)


class Tangent(NamedTuple):
    """What a second-order rule is given beside the layer.

    `rule` is the layer's first-order rule, and `layer_dot` the layer with v in place of its parameters
    (the layer itself, if it is a function).
    """

    rule: Rule
    layer_dot: Any


def second_order_rule(*targets: Any) -> Callable[[Any], Any]:
    """Class decorator that registers a second-order rule, as `rule` does one of the first order.

    The class has `forward_dot(layer, tangent, residuals, inputs, inputs_dot, **options) -> y_dot,
    residuals_dot` and `backward_dot(layer, tangent, residuals, residuals_dot, y_bar, y_bar_dot, **options) ->
    grads_dot, x_bar_dot`, each the derivative of the first-order rule's function of that name. In place of a
    class, `composite` says that the layer's own rule only calls its parts' rules and adds.
    """

    def register(class_: Any) -> Any:
        for target in targets:
            _second[target] = class_
        return class_

    return register


composite = object()
second_order_rule(nnx.Sequential)(composite)


def hvp(model: nnx.Module, loss_fn: Callable[..., jax.Array], x: Any, y: Any, vector: Params) -> Params:
    """The Hessian of the loss with respect to the parameters, times a vector, by hand-written rules.

    Args:
        model, loss_fn, x, y: as in `value_and_grad`.
        vector: a nested dict with the paths and shapes of the parameters, as gradients have them.

    Returns:
        The product, a dict like the vector.

    Raises:
        NoRuleError: a layer of the model, or the loss, has no second-order rule.

    >>> model = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
    >>> x, y = jnp.array([[1.0, 2.0]]), jnp.array([[3.0]])
    >>> product = bp.chainrule.hvp(model, optax.squared_error, x, y, {"kernel": jnp.array([[1.0], [0.0]])})
    >>> print(product["kernel"][:, 0])  # the Hessian is 2 x^T x
    [2. 4.]
    """
    graphdef, params, state = split(model)
    if jax.tree.map(jnp.shape, vector) != jax.tree.map(jnp.shape, params):
        raise ValueError("hvp: the vector must have the paths and shapes of the model's parameters")
    program = Program(hessian_vector_product, graphdef, (loss_fn, version(), tuple(_second.items())))
    return _compiled(program, params, state, (x, y), vector)


def hessian_vector_product(
    graphdef: nnx.GraphDef, loss_fn: Callable[..., jax.Array]
) -> Callable[..., Params]:
    """The pure function `(params, state, (x, y), vector) -> H vector`."""

    def product(params: Params, state: State, batch: tuple[Any, Any], vector: Params) -> Params:
        x, y = batch
        vector = jax.tree.map(lambda v, w: v.astype(w.dtype), vector, params)
        model = merge(graphdef, params, state)
        dots = _by_variable(model, merge(graphdef, vector, state))
        with engine.replacing(lambda path, layer, rule: _of_duals(path, layer, rule, dots)):
            outputs, residuals = engine.forward(model, *(_constant(part) for part in as_inputs(x)))
            values, of_loss = engine.forward(loss_fn, *as_inputs(outputs), *as_inputs(y), name=("loss",))
            share = jnp.full(values.value.shape, 1 / values.value.size, values.value.dtype)
            _, bars = engine.backward(loss_fn, of_loss, _constant(share), name=("loss",))
            outputs_bar = bars[: len(outputs)] if isinstance(outputs, tuple) else bars[0]
            grads_dot, _ = engine.backward(model, residuals, outputs_bar)
        return gather(model, grads_dot)

    return product


@partial(jax.jit, static_argnums=0)
def _compiled(program: Program, params: Params, state: State, batch: Any, vector: Params) -> Params:
    return program.gradient(program.graphdef, program.options[0])(params, state, batch, vector)


def _constant(x: Any) -> Any:
    """A value that the parameters do not change; integers have no R at all."""
    return Dual(x, jnp.zeros_like(x)) if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else x


def _by_variable(model: nnx.Module, model_dot: nnx.Module) -> dict[int, Any]:
    """The part of v that belongs to each parameter of the model, by the identity of the parameter."""
    pairs = zip(nnx.iter_graph(model), nnx.iter_graph(model_dot), strict=True)
    return {id(node): dot[...] for (_, node), (_, dot) in pairs if isinstance(node, nnx.Param)}


def _with_dots(layer: Layer, dots: dict[int, Any]) -> Layer:
    """The layer with v in place of its parameters."""
    if not isinstance(layer, nnx.Module):
        return layer
    copy = nnx.clone(layer)
    for (_, node), (_, twin) in zip(nnx.iter_graph(layer), nnx.iter_graph(copy), strict=True):
        if isinstance(node, nnx.Param):
            twin[...] = dots[id(node)]
    return copy


def _of_duals(path: Any, layer: Layer, rule: Rule, dots: dict[int, Any]) -> Any:
    """The rule of a layer whose inputs, outputs and cotangents are `Dual`."""
    second = _find(path, layer)
    if second is composite:
        return rule

    class OfDuals:
        def forward(layer, *inputs, **options):
            values = tuple(x.value if isinstance(x, Dual) else x for x in inputs)
            inputs_dot = tuple(x.dot if isinstance(x, Dual) else None for x in inputs)
            with engine.replacing(lambda path, layer, rule: rule):
                tangent = Tangent(rule, _with_dots(layer, dots))
                y, residuals = rule.forward(layer, *values, **options)
                dot, of_dot = second.forward_dot(layer, tangent, residuals, values, inputs_dot, **options)
            return Dual(y, dot), (residuals, of_dot)

        def backward(layer, kept, y_bar, **options):
            residuals, of_dot = kept
            with engine.replacing(lambda path, layer, rule: rule):
                tangent = Tangent(rule, _with_dots(layer, dots))
                _, bars = rule.backward(layer, residuals, y_bar.value, **options)
                grads_dot, dots_bar = second.backward_dot(
                    layer, tangent, residuals, of_dot, y_bar.value, y_bar.dot, **options
                )
            if not isinstance(bars, tuple):
                return grads_dot, None if bars is None else Dual(bars, dots_bar)
            pairs = zip(bars, dots_bar, strict=True)
            return grads_dot, tuple(None if bar is None else Dual(bar, dot) for bar, dot in pairs)

    return OfDuals


def _find(path: Any, layer: Layer) -> Any:
    function = getattr(layer, "func", layer)
    if isinstance(layer, nnx.Module):
        for base in type(layer).__mro__:
            if base in _second and type(layer).__call__ is base.__call__:
                return _second[base]
    elif function in _second:
        return _second[function]
    name = type(layer).__name__ if isinstance(layer, nnx.Module) else getattr(function, "__name__", layer)
    where = format_path(path) or "the model itself"
    raise NoRuleError(
        f"no second-order rule for {name} at {where}: register one with "
        f"@bpresearch.chainrule.second_order_rule({name}) on a class with forward_dot and backward_dot"
    )
