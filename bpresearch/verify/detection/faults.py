"""Planted faults: mistakes that people make, put into one rule to see whether the verifier finds them.

A fault takes a rule and gives a wrong one. Each is a mistake seen in hand-written backward passes: a
forgotten transpose, a mean for a sum, the derivative at the wrong point, a constant copied wrongly.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import PyTree

from bpresearch.chainrule import Equation, rule_for
from bpresearch.chainrule.engine import several
from bpresearch.chainrule.primitives import LAYER
from bpresearch.chainrule.primitives import is_floating as is_inexact
from bpresearch.verify.equations import Label, Plant, label, with_backward

Backward = Callable[..., tuple[PyTree, PyTree]]


@dataclass(frozen=True)
class Fault:
    """One mistake: what it is, which layers it fits, and the wrong backward pass.

    `backward(rule, layer, residuals, y_bar, **options)` takes the place of the rule's own, and where it is
    given `forward(rule, layer, *inputs, **options)` too, for what is kept is wrong already. A fault that fits
    anywhere is planted in rules for primitives as well: there the layer is None, the residuals are operands
    and results, and the answer has no parameters.
    """

    name: str
    description: str
    layers: str
    fits: Callable[[Any], bool]
    backward: Backward
    forward: Callable[..., tuple[PyTree, PyTree]] | None = None
    anywhere: bool = False

    def plant(self, e: Equation, rule: Any) -> Any:
        """The rule of an equation with this mistake in it."""
        if e.primitive.name == LAYER:
            forward = partial(self.forward, rule) if self.forward else None
            return with_backward(rule, partial(self.backward, rule), forward)

        def backward(e, *bars):
            def of_operands(layer, residuals, bars, **options):
                ins, outs = residuals
                return {}, several(rule.backward(replace(e, ins=ins, outs=outs), *bars))

            whole = SimpleNamespace(forward=None, backward=of_operands)
            return self.backward(whole, None, (e.ins, e.outs), bars)[1]

        return with_backward(rule, backward)

    def fits_equation(self, e: Equation) -> bool:
        """Whether the mistake can be made in the rule of an equation."""
        if e.primitive.name == LAYER:
            return self.fits(e.params["call"].layer_with_options)
        return self.anywhere


FAULTS: dict[str, Fault] = {}
"""Every fault by its name."""


class FaultError(ValueError):
    """There is no such fault, or it fits no layer of the model; the message says what would."""


def fault(layers: str, fits: Callable[[Any], bool], anywhere: bool = False) -> Callable[[Backward], Backward]:
    """Decorator: a wrong backward pass becomes the fault of its name, described by its docstring."""

    def enter(backward: Backward) -> Backward:
        name = backward.__name__
        description = (backward.__doc__ or "").strip()
        FAULTS[name] = Fault(name, description, layers, fits, backward, anywhere=anywhere)
        return backward

    return enter


def plant_fault(text: str, equations: Mapping[Label, Equation]) -> Plant:
    """What `chainrule.replacing` takes, from `NAME` (the first equation that fits) or `NAME@PLACE`.

    Layers come before other equations. A place is the path of a layer, the name of a primitive, both
    (`blocks.0:tanh`), or `file.py:line`.

    Raises:
        FaultError: no such fault, no such place, or the fault does not fit.
    """
    name, _, where = text.partition("@")
    if name not in FAULTS:
        raise FaultError(f"fault {name!r} is not one of {', '.join(FAULTS)}")
    mistake = FAULTS[name]
    fitting = [label for label, e in equations.items() if mistake.fits_equation(e)]
    fitting.sort(key=lambda label: not label.is_layer)
    chosen = [label for label in fitting if not where or label.matches(where)]
    if not fitting:
        raise FaultError(f"fault {name} applies to {mistake.layers}, and the model has no such layer")
    if not chosen:
        places = ", ".join(dict.fromkeys(label.where for label in fitting))
        raise FaultError(f"fault {name} applies to {mistake.layers}, here at {places}; not at {where}")
    return planted(chosen[0], mistake.plant)


def planted(target: Label, change: Plant) -> Plant:
    """What `chainrule.replacing` takes: the rule at a place changed, the others as they are."""
    return lambda e, rule: change(e, rule) if label(e) == target else rule


def function_of(layer: Any) -> Any:
    """The function under any bound options."""
    return function_of(layer.func) if isinstance(layer, partial) else layer


def is_function(*functions: Callable[..., PyTree]) -> Callable[[Any], bool]:
    """Whether a layer is one of these functions."""
    return lambda layer: any(function_of(layer) is function for function in functions)


def is_module(*types: type) -> Callable[[Any], bool]:
    """Whether a layer is a module of one of these types."""
    return lambda layer: isinstance(layer, types)


SMOOTH = (nnx.sigmoid, nnx.tanh, nnx.gelu, nnx.silu, nnx.softplus, nnx.elu)
ACTIVATIONS = (*SMOOTH, nnx.relu, nnx.leaky_relu)
CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels
SQUARED = (optax.losses.squared_error, optax.losses.l2_loss)
WITH_KERNEL = (nnx.Linear, nnx.Conv)


def _has_bias(layer: Any) -> bool:
    return isinstance(layer, WITH_KERNEL) and layer.bias is not None


def _is_square(layer: Any) -> bool:
    return isinstance(layer, nnx.Linear) and layer.in_features == layer.out_features > 1


def _is_loss(layer: Any) -> bool:
    return function_of(layer) in (CROSS_ENTROPY, *SQUARED)


def _is_approximate_gelu(layer: Any) -> bool:
    options = layer.keywords if isinstance(layer, partial) else {}
    return function_of(layer) is nnx.gelu and options.get("approximate", True)


def _scaled(tree: PyTree, factor: float) -> PyTree:
    return jax.tree.map(
        lambda leaf: leaf * jnp.asarray(factor, leaf.dtype) if is_inexact(leaf) else leaf, tree
    )


@fault("nnx.Linear with as many outputs as inputs", _is_square)
def weight_not_transposed(rule, layer, residuals, y_bar):
    """x_bar = y_bar W instead of y_bar W^T."""
    grads, x_bar = rule.backward(layer, residuals, y_bar)
    return grads, jnp.matmul(y_bar, layer.kernel[...]).astype(x_bar.dtype)


@fault("nnx.Linear and nnx.Conv with a bias", _has_bias)
def bias_mean_not_sum(rule, layer, residuals, y_bar):
    """b_bar is the mean of y_bar over the examples instead of the sum."""
    grads, x_bar = rule.backward(layer, residuals, y_bar)
    rows = max(y_bar.size // y_bar.shape[-1], 1)
    return {**grads, "bias": grads["bias"] / rows}, x_bar


@fault("nnx.Linear and nnx.Conv with a bias", _has_bias)
def bias_forgotten(rule, layer, residuals, y_bar):
    """b_bar is zero."""
    grads, x_bar = rule.backward(layer, residuals, y_bar)
    return {**grads, "bias": jnp.zeros_like(grads["bias"])}, x_bar


@fault("the activations", is_function(*ACTIVATIONS))
def activation_derivative_missing(rule, layer, residuals, y_bar, **options):
    """x_bar = y_bar instead of f'(x) y_bar."""
    return {}, y_bar


@fault("the smooth activations", is_function(*SMOOTH))
def activation_at_output(rule, layer, residuals, y_bar, **options):
    """x_bar = f'(y) y_bar instead of f'(x) y_bar."""
    kept_is_output = function_of(layer) in (nnx.sigmoid, nnx.tanh)
    y = residuals if kept_is_output else rule.forward(layer, residuals, **options)[0]
    return rule.backward(layer, rule.forward(layer, y, **options)[1], y_bar, **options)


@fault("nnx.gelu with approximate=True", _is_approximate_gelu)
def gelu_constant(rule, layer, x, y_bar, approximate=True):
    """The constant 0.044715 rounded to 0.0447."""
    root = jnp.asarray((2 / jnp.pi) ** 0.5, x.dtype)
    tanh = jnp.tanh(root * (x + 0.0447 * x**3))
    slope = root * (1 + 3 * 0.0447 * x**2)
    return {}, y_bar * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * slope)


@fault("nnx.relu", is_function(nnx.relu))
def relu_sign(rule, layer, residuals, y_bar):
    """x_bar is let through where x is negative instead of positive."""
    return {}, y_bar - rule.backward(layer, residuals, y_bar)[1]


@fault("the losses", _is_loss)
def loss_not_averaged(rule, layer, residuals, values_bar):
    """The derivative of the sum over examples instead of their mean."""
    return rule.backward(layer, residuals, values_bar * values_bar.size)


@fault("softmax cross-entropy with integer labels", is_function(CROSS_ENTROPY))
def softmax_minus_onehot_missing(rule, layer, residuals, values_bar):
    """z_bar = softmax(z) l_bar, without subtracting one at the label."""
    probabilities, _ = residuals
    return {}, (probabilities * values_bar[..., None], None)


@fault("nnx.Conv", is_module(nnx.Conv))
def kernel_not_flipped(rule, layer, residuals, y_bar):
    """x_bar by a convolution with the kernel as it is instead of reversed."""
    x, (padded, kernel) = residuals
    grads, _ = rule.backward(layer, residuals, y_bar)
    flipped = jnp.flip(kernel, range(kernel.ndim - 2))
    return grads, rule.backward(layer, (x, (padded, flipped)), y_bar)[1]


@fault("nnx.max_pool", is_function(nnx.max_pool))
def pool_mean_for_max(rule, layer, residuals, y_bar, **options):
    """Each element of the window gets the same share instead of the largest getting all."""
    average, _ = rule_for(nnx.avg_pool)
    return average.backward(nnx.avg_pool, residuals, y_bar, **options)


@fault("nnx.Linear and nnx.Conv", is_module(*WITH_KERNEL))
def one_element_scaled(rule, layer, residuals, y_bar):
    """The largest element of the kernel's gradient is 1 % too large."""
    grads, x_bar = rule.backward(layer, residuals, y_bar)
    kernel_bar = grads["kernel"]
    largest = jnp.unravel_index(jnp.argmax(jnp.abs(kernel_bar)), kernel_bar.shape)
    return {**grads, "kernel": kernel_bar.at[largest].multiply(1.01)}, x_bar


@fault("any layer or primitive", lambda layer: True, anywhere=True)
def scaled(rule, layer, residuals, y_bar, **options):
    """All derivatives 0.1 % too large."""
    return _scaled(rule.backward(layer, residuals, y_bar, **options), 1.001)


def _without_epsilon(rule, layer, *inputs, **options):
    """What the layer itself computes, and what a layer whose epsilon is 0 would keep."""
    bare = nnx.clone(layer)
    bare.epsilon = 0.0
    return rule.forward(layer, *inputs, **options)[0], rule.forward(bare, *inputs, **options)[1]


FAULTS["epsilon_dropped"] = Fault(
    "epsilon_dropped",
    "What `forward` kept was computed without the layer's epsilon.",
    "layers with an epsilon",
    lambda layer: isinstance(layer, nnx.Module) and hasattr(layer, "epsilon"),
    lambda rule, layer, *args, **options: rule.backward(layer, *args, **options),
    _without_epsilon,
)
