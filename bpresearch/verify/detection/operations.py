"""Faults in one operation of a backward pass: mutation testing of formulas.

A rule's `backward` is traced to its primitive operations, and one of them is changed: a sum loses a term, a
product a factor, a reduction runs over the wrong axis. No knowledge of the rule is needed, so every rule
that is written out (rather than calling its children's) has such faults, as many as it has operations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import PyTree

from bpresearch.chainrule import Rule
from bpresearch.verify.equations import with_backward
from bpresearch.verify.plain import evaluate

Change = Callable[[JaxprEqn, list[PyTree], PyTree], PyTree]
"""`(equation, inputs, output) -> the wrong output`, or None where the mistake cannot be made."""


def _like(candidate: PyTree, output: PyTree) -> PyTree:
    if jnp.result_type(candidate) != output.dtype or jnp.ndim(candidate) not in (0, output.ndim):
        return None
    return jnp.broadcast_to(candidate, output.shape) if jnp.shape(candidate) in ((), output.shape) else None


def _name(equation: JaxprEqn) -> str:
    return equation.primitive.name


def term_dropped(equation, inputs, output):
    """A sum or difference loses its second term."""
    return _like(inputs[0], output) if _name(equation) in ("add", "sub", "add_any") else None


def other_term_dropped(equation, inputs, output):
    """A sum or difference loses its first term."""
    if _name(equation) not in ("add", "sub", "add_any"):
        return None
    term = _like(inputs[1], output)
    return -term if term is not None and _name(equation) == "sub" else term


def factor_dropped(equation, inputs, output):
    """A product or quotient loses its second factor."""
    return _like(inputs[0], output) if _name(equation) in ("mul", "div") else None


def other_factor_dropped(equation, inputs, output):
    """A product loses its first factor."""
    return _like(inputs[1], output) if _name(equation) == "mul" else None


def factor_squared(equation, inputs, output):
    """A product has its second factor twice."""
    return output * inputs[1] if _name(equation) == "mul" else None


def term_sign_wrong(equation, inputs, output):
    """A plus for a minus, or a minus for a plus."""
    if _name(equation) in ("add", "add_any"):
        return inputs[0] - inputs[1]
    return inputs[0] + inputs[1] if _name(equation) == "sub" else None


def mean_in_place_of_sum(equation, inputs, output):
    """A sum over axes is a mean."""
    if _name(equation) != "reduce_sum":
        return None
    return output / max(inputs[0].size // max(output.size, 1), 1)


def sum_over_wrong_axis(equation, inputs, output):
    """A sum runs over the axis before or behind the right one."""
    if _name(equation) != "reduce_sum":
        return None
    x, axes = inputs[0], equation.params["axes"]
    for axis in axes:
        for other in range(x.ndim):
            if other not in axes and x.shape[other] == x.shape[axis]:
                return jnp.sum(jnp.swapaxes(x, axis, other), axes).astype(output.dtype)
    return None


def matrix_transposed(equation, inputs, output):
    """A product takes a square matrix the other way round."""
    if _name(equation) != "dot_general":
        return None
    for index in (1, 0):
        matrix = inputs[index]
        if matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]:
            swapped = [m.T if i == index else m for i, m in enumerate(inputs)]
            return equation.primitive.bind(*swapped, **equation.params)
    return None


def mask_ignored(equation, inputs, output):
    """A selection takes the same case everywhere."""
    return _like(inputs[2], output) if _name(equation) == "select_n" and len(inputs) == 3 else None


def other_mask_ignored(equation, inputs, output):
    """A selection takes the other case everywhere."""
    return _like(inputs[1], output) if _name(equation) == "select_n" and len(inputs) == 3 else None


def function_at_wrong_point(equation, inputs, output):
    """exp, tanh, log and the like are taken of 0.9 times the argument."""
    names = ("exp", "log", "log1p", "expm1", "tanh", "logistic", "sin", "cos", "sqrt", "rsqrt", "erf", "erfc")
    if _name(equation) not in (*names, "integer_pow", "pow"):
        return None
    return equation.primitive.bind(0.9 * inputs[0], *inputs[1:], **equation.params)


def constant_rounded(equation, inputs, output):
    """A constant has lost all but its first two digits."""
    for index, atom in enumerate(equation.invars):
        if isinstance(atom, Literal) and jnp.issubdtype(np.result_type(atom.val), jnp.floating):
            value = float(atom.val)
            rounded = float(f"{value:.1e}")
            if np.isfinite(value) and abs(rounded - value) > 1e-9 * abs(value):
                changed = [*inputs]
                changed[index] = jnp.asarray(rounded, np.result_type(atom.val))
                return equation.primitive.bind(*changed, **equation.params)
    return None


def small_constant_dropped(equation, inputs, output):
    """A constant below 1 % that is added for safety, an epsilon, is left out."""
    if _name(equation) != "add":
        return None
    for atom, other in zip(equation.invars, reversed(inputs), strict=True):
        if isinstance(atom, Literal) and 0 < abs(float(atom.val)) < 0.01:
            return _like(other, output)
    return None


CHANGES: dict[str, Change] = {
    change.__name__: change
    for change in (
        term_dropped,
        other_term_dropped,
        factor_dropped,
        other_factor_dropped,
        factor_squared,
        term_sign_wrong,
        mean_in_place_of_sum,
        sum_over_wrong_axis,
        matrix_transposed,
        mask_ignored,
        other_mask_ignored,
        function_at_wrong_point,
        constant_rounded,
        small_constant_dropped,
    )
}
"""Every kind of mistake in one operation, by its name."""


@dataclass
class _Counter:
    """Makes a change at the operation with a certain number among those where it can be made."""

    change: Change
    number: int
    seen: int = 0

    def __call__(self, equation: JaxprEqn, inputs: list[PyTree], outputs: list[PyTree]) -> list[PyTree]:
        floating = len(outputs) == 1 and jnp.issubdtype(outputs[0].dtype, jnp.floating)
        wrong = self.change(equation, inputs, outputs[0]) if floating else None
        if wrong is None:
            return outputs
        self.seen += 1
        return [jnp.asarray(wrong, outputs[0].dtype)] if self.seen - 1 == self.number else outputs


def change_operation(rule: Rule, name: str, number: int) -> Rule:
    """The rule with the change `name` of CHANGES in the `number`-th operation of `backward` that it fits.

    Where it fits fewer, nothing is changed.
    """

    def backward(layer, residuals, y_bar, **options):
        function = partial(rule.backward, layer, **options)
        jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(residuals, y_bar)
        counter = _Counter(CHANGES[name], number)
        outputs = evaluate(jaxpr, jax.tree.leaves((residuals, y_bar)), counter)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return with_backward(rule, backward)


def count_operations(
    rule: Rule, layer: Any, residuals: PyTree, y_bar: PyTree, options: dict[str, Any]
) -> dict[str, int]:
    """How many operations of `backward` each change fits."""
    jaxpr = jax.make_jaxpr(partial(rule.backward, layer, **options))(residuals, y_bar)
    counts = {}
    for name, change in CHANGES.items():
        counter = _Counter(change, -1)
        evaluate(jaxpr, jax.tree.leaves((residuals, y_bar)), counter)
        counts[name] = counter.seen
    return counts
