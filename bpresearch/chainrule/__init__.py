"""The chain-rule engine and its hand-written rules, one file per family of layers."""

from bpresearch.chainrule import (  # noqa: F401  (importing a file registers its rules)
    activations,
    attention,
    axis_activations,
    composites,
    convolution,
    convolution_transpose,
    ctc,
    dropout,
    embedding,
    linear,
    lora,
    losses,
    losses_divergence,
    losses_margin,
    losses_ranking,
    losses_regression,
    losses_segmentation,
    normalization,
    penalties,
    pooling,
    recurrence,
    recurrent,
    reductions,
    rotary,
    second_order_rules,
    shapes,
    weight_normalization,
)
from bpresearch.chainrule.coverage import coverage
from bpresearch.chainrule.custom_vjp import as_custom_vjp
from bpresearch.chainrule.engine import backward, forward, gradient, replacing, value_and_grad
from bpresearch.chainrule.per_example import per_example_gradients
from bpresearch.chainrule.registry import NoRuleError, Rule, registered, rule, rule_for
from bpresearch.chainrule.second_order import hvp, second_order_rule

__all__ = [
    "NoRuleError",
    "Rule",
    "as_custom_vjp",
    "backward",
    "coverage",
    "forward",
    "gradient",
    "hvp",
    "per_example_gradients",
    "registered",
    "replacing",
    "rule",
    "rule_for",
    "second_order_rule",
    "value_and_grad",
]
