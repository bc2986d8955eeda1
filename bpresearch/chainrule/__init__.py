"""The chain rule by hand: any function or model, traced and walked by hand-written rules."""

from bpresearch.chainrule import rules  # noqa: F401  (importing it registers the rules)
from bpresearch.chainrule.coverage import coverage
from bpresearch.chainrule.custom_vjp import as_custom_vjp
from bpresearch.chainrule.engine import replacing, watching
from bpresearch.chainrule.per_example import per_example_gradients
from bpresearch.chainrule.primitives import (
    Equation,
    NoPrimitiveRuleError,
    constant,
    elementwise,
    linear,
    primitive,
)
from bpresearch.chainrule.program import Program, trace
from bpresearch.chainrule.registry import DoesNotApply, NoRuleError, Rule, registered, rule, rule_for
from bpresearch.chainrule.second_order import gauss_newton, hvp
from bpresearch.chainrule.transforms import grad, gradient, jvp, value_and_grad, vjp

__all__ = [
    "DoesNotApply",
    "Equation",
    "NoPrimitiveRuleError",
    "NoRuleError",
    "Program",
    "Rule",
    "as_custom_vjp",
    "constant",
    "coverage",
    "elementwise",
    "gauss_newton",
    "grad",
    "gradient",
    "hvp",
    "jvp",
    "linear",
    "per_example_gradients",
    "primitive",
    "registered",
    "replacing",
    "rule",
    "rule_for",
    "trace",
    "value_and_grad",
    "vjp",
    "watching",
]
