"""Rules of layers and of functions used as layers, one file for each family."""

from bpresearch.chainrule.rules.layers import (
    activations,
    attention,
    axis_activations,
    convolution,
    convolution_transpose,
    dropout,
    embedding,
    linear,
    lora,
    normalization,
    pooling,
    recurrent,
    reductions,
    rotary,
)

__all__ = [
    "activations",
    "attention",
    "axis_activations",
    "convolution",
    "convolution_transpose",
    "dropout",
    "embedding",
    "linear",
    "lora",
    "normalization",
    "pooling",
    "recurrent",
    "reductions",
    "rotary",
]
