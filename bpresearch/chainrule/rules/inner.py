"""Functions inside a layer, by their own rules: a cell's activations, a convolution's bilinear map."""

from typing import Any

from jaxtyping import PyTree

from bpresearch.chainrule.registry import DoesNotApply, Layer, NoRuleError, Rule, rule_for


class Inner:
    """A function that a rule builds on: `f(x) -> y, residuals` and `f.back(residuals, y_bar) -> x_bar`.

    Raises:
        DoesNotApply: the function has no rule, so the rule around it has no formula.
    """

    def __init__(self, function: Layer):
        self.function = function
        try:
            pair: tuple[Rule, dict[str, Any]] = rule_for(function)
        except NoRuleError as error:
            raise DoesNotApply(str(error)) from error
        self.rule, self.options = pair

    def __call__(self, *inputs: PyTree) -> tuple[PyTree, PyTree]:
        return self.rule.forward(self.function, *inputs, **self.options)

    def back(self, residuals: PyTree, y_bar: PyTree) -> PyTree:
        """The cotangent of the input, or a tuple of those of several."""
        return self.rule.backward(self.function, residuals, y_bar, **self.options)[1]
