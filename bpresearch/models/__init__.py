"""Flax NNX models: functions from the shape of an example and the number of outputs to a module."""

from bpresearch.models.combinators import Masked, Residual, Unembed, add_channel, flatten
from bpresearch.models.convolutional import cnn
from bpresearch.models.dense import linear, mlp, residual_mlp
from bpresearch.models.patches import patch_convolution
from bpresearch.models.penalties import l1_penalty, l2_penalty

__all__ = [
    "Masked",
    "Residual",
    "Unembed",
    "add_channel",
    "cnn",
    "flatten",
    "l1_penalty",
    "l2_penalty",
    "linear",
    "mlp",
    "patch_convolution",
    "residual_mlp",
]
