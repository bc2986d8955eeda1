"""Flax NNX models: functions from the shape of an example and the number of outputs to a module."""

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
from bpresearch.models.convolutional import cnn, lenet
from bpresearch.models.dense import autoencoder, linear, mlp, residual_mlp
from bpresearch.models.patches import patch_convolution
from bpresearch.models.penalties import l1_penalty, l2_penalty
from bpresearch.models.recurrent import bidirectional_gru, gru, lstm
from bpresearch.models.residual import resnet
from bpresearch.models.shapes import add_channel, average, flatten, last, positions, steps, swap
from bpresearch.models.transformers import mixer, transformer, vit

__all__ = [
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
