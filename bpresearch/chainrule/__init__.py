"""The chain-rule engine and its hand-written rules, one file per family of layers."""

from bpresearch.chainrule import (  # noqa: F401  (importing a file registers its rules)
    activations,
    attention,
    axis_activations,
    composites,
    convolution,
    convolution_transpose,
    dropout,
    embedding,
    linear,
    lora,
    losses,
    normalization,
    pooling,
    recurrence,
    recurrent,
    shapes,
    weight_normalization,
)
from bpresearch.chainrule.engine import backward, forward, gradient, replacing, value_and_grad
from bpresearch.chainrule.registry import NoRuleError, Rule, registered, rule, rule_for

__all__ = [
    "NoRuleError",
    "Rule",
    "backward",
    "forward",
    "gradient",
    "registered",
    "replacing",
    "rule",
    "rule_for",
    "value_and_grad",
]
