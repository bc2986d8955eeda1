"""Flax NNX models: functions from the shape of an example and the number of outputs to a module."""

from collections.abc import Callable, Collection

from flax import nnx

from bpresearch.models.activations import ACTIVATIONS
from bpresearch.models.attention import CausalAttention, MaskedAttention, dot_product_attention
from bpresearch.models.combinators import (
    LayerStack,
    LearnedPositions,
    Masked,
    Parallel,
    Residual,
    Unembed,
    add,
    concatenate,
)
from bpresearch.models.convolutional import POOLINGS, cnn, lenet
from bpresearch.models.dense import autoencoder, linear, mlp, residual_mlp
from bpresearch.models.initializers import INITIALIZATIONS
from bpresearch.models.patches import patch_convolution
from bpresearch.models.penalties import l1_penalty, l2_penalty
from bpresearch.models.recurrent import bidirectional_gru, gru, lstm
from bpresearch.models.residual import resnet
from bpresearch.models.shapes import add_channel, average, flatten, last, positions, steps, swap
from bpresearch.models.transformers import mixer, transformer, vit

BY_NAME: dict[str, Callable[..., nnx.Module]] = {
    f.__name__: f
    for f in (
        linear,
        mlp,
        residual_mlp,
        autoencoder,
        cnn,
        lenet,
        resnet,
        gru,
        lstm,
        bidirectional_gru,
        transformer,
        vit,
        mixer,
    )
}
"""Every model by its name: `(input_shape, outputs, *, rngs, **options) -> model`."""

OF_TOKENS = (transformer,)
"""Models whose inputs are tokens."""
RECONSTRUCTING = (autoencoder,)
"""Models whose targets are their inputs."""

CHOICES: dict[str, Collection[str]] = {
    "activation": ACTIVATIONS,
    "initialization": INITIALIZATIONS,
    "padding": ("SAME", "VALID"),
    "pooling": tuple(POOLINGS),
}
"""What the options that are named by a word take; padding takes a number of zeros as well."""

__all__ = [
    "ACTIVATIONS",
    "BY_NAME",
    "CHOICES",
    "INITIALIZATIONS",
    "OF_TOKENS",
    "RECONSTRUCTING",
    "CausalAttention",
    "LayerStack",
    "LearnedPositions",
    "Masked",
    "MaskedAttention",
    "Parallel",
    "Residual",
    "Unembed",
    "add",
    "add_channel",
    "autoencoder",
    "average",
    "bidirectional_gru",
    "cnn",
    "concatenate",
    "dot_product_attention",
    "flatten",
    "gru",
    "l1_penalty",
    "l2_penalty",
    "last",
    "lenet",
    "linear",
    "lstm",
    "mixer",
    "mlp",
    "patch_convolution",
    "positions",
    "residual_mlp",
    "resnet",
    "steps",
    "swap",
    "transformer",
    "vit",
]
