"""The flags of a task: model, data set, loss, and where it runs."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
from absl import flags
from flax import nnx

from bpresearch import data, models
from bpresearch.flags.axes import positive, sizes
from bpresearch.flags.command import choose
from bpresearch.platform import DTYPES, PLATFORMS

FLAGS = flags.FLAGS

ACTIVATIONS = {
    "identity": nnx.identity,
    "sigmoid": nnx.sigmoid,
    "tanh": nnx.tanh,
    "relu": nnx.relu,
    "leaky_relu": nnx.leaky_relu,
    "elu": nnx.elu,
    "gelu": functools.partial(nnx.gelu, approximate=False),
    "gelu_tanh": functools.partial(nnx.gelu, approximate=True),
    "silu": nnx.silu,
    "softplus": nnx.softplus,
}
MODELS = {f.__name__: f for f in (models.linear, models.mlp, models.residual_mlp, models.cnn)}
LOSSES = {
    "softmax_cross_entropy_with_integer_labels": optax.losses.softmax_cross_entropy_with_integer_labels,
    "squared_error": optax.losses.squared_error,
    "l2_loss": optax.losses.l2_loss,
    "huber_loss": optax.losses.huber_loss,
    "log_cosh": optax.losses.log_cosh,
    "multiclass_hinge_loss": optax.losses.multiclass_hinge_loss,
}
LOSS_ALIASES = {
    "cross_entropy": "softmax_cross_entropy_with_integer_labels",
    "mse": "squared_error",
}
INITIALIZATIONS = ("lecun", "he", "glorot", "torch")


def define_task_flags(model: str = "mlp") -> None:
    """The flags of a task: model, data set, loss, and where it runs."""
    flags.DEFINE_string("model", model, f"the model: {', '.join(MODELS)}")
    flags.DEFINE_string("widths", "100,100", "mlp: widths of the hidden layers")
    flags.DEFINE_integer("width", 100, "residual_mlp: width of the hidden layers")
    flags.DEFINE_integer("depth", 1, "residual_mlp: number of residual branches")
    flags.DEFINE_string("channels", "25,25,25", "cnn: output channels of each convolution")
    flags.DEFINE_string("kernel_sizes", "5,3,3", "cnn: kernel size of each convolution")
    flags.DEFINE_integer("stride", 2, "cnn: stride of the convolutions, or of the pooling if there is one")
    flags.DEFINE_string("padding", "SAME", "cnn: SAME, VALID or a number of zeros on each side")
    flags.DEFINE_string("pooling", "none", "cnn: none, max or avg after each activation")
    flags.DEFINE_string("activation", "relu", f"the activation: {', '.join(ACTIVATIONS)}")
    flags.DEFINE_string("initialization", "lecun", f"initial weights: {', '.join(INITIALIZATIONS)}")
    flags.DEFINE_string("dataset", "mnist1d", f"the data set: {', '.join(data.NAMES)}")
    flags.DEFINE_string("data_dir", None, "idx, npz: where the files are")
    flags.DEFINE_string(
        "loss",
        None,
        f"the loss: {', '.join([*LOSSES, *LOSS_ALIASES])}; by default cross-entropy for classes and "
        "squared error for numbers",
    )
    flags.DEFINE_string("platform", None, f"{', '.join(PLATFORMS)}; by default the best there is")


def define_precision_flag() -> None:
    """`--precision`, for programs that compute in one format."""
    flags.DEFINE_string(
        "precision", "float32", f"format of parameters, data and arithmetic: {', '.join(DTYPES)}"
    )


def model_from_flags() -> tuple[Callable[..., nnx.Module], dict[str, Any]]:
    """The model's function and its options, from its own flags; another model's flags are refused."""
    name = choose("model", FLAGS.model, MODELS)
    function = MODELS[name]
    taken = inspect.signature(function).parameters
    read: dict[str, Callable[[], Any]] = {
        "widths": lambda: [] if not FLAGS.widths else sizes("widths"),
        "width": lambda: positive("width"),
        "depth": lambda: positive("depth", low=0),
        "channels": lambda: sizes("channels"),
        "kernel_sizes": lambda: sizes("kernel_sizes"),
        "stride": lambda: positive("stride"),
        "padding": _padding,
        "pooling": lambda: choose("pooling", FLAGS.pooling, ("none", "max", "avg")),
        "activation": lambda: ACTIVATIONS[choose("activation", FLAGS.activation, ACTIVATIONS)],
        "initialization": lambda: choose("initialization", FLAGS.initialization, INITIALIZATIONS),
    }
    for flag in read:
        if flag not in taken and FLAGS[flag].present:
            raise ValueError(f"--{flag} is not a flag of --model={name}")
    return function, {flag: value() for flag, value in read.items() if flag in taken}


def _padding() -> str | int:
    text = FLAGS.padding.upper()
    if text in ("SAME", "VALID"):
        return text
    if text.isdigit():
        return int(text)
    raise ValueError(f"--padding={FLAGS.padding}: takes SAME, VALID or a number of zeros, such as 1")


def dataset_from_flags() -> data.Dataset:
    """The data set that --dataset and --data_dir name."""
    choose("dataset", FLAGS.dataset, data.NAMES)
    return data.load(FLAGS.dataset, data_dir=FLAGS.data_dir)


def loss_from_flags(dataset: data.Dataset) -> Callable[..., Any]:
    """The loss that --loss names, or the data set's usual one."""
    classification = dataset.classes is not None
    default = "cross_entropy" if classification else "mse"
    name = choose("loss", FLAGS.loss or default, [*LOSSES, *LOSS_ALIASES])
    loss = LOSSES[LOSS_ALIASES.get(name, name)]
    if takes_labels(loss) and not classification:
        raise ValueError(f"--loss={name} takes classes, and --dataset={dataset.name} holds numbers: take mse")
    return loss


def takes_labels(loss: Callable[..., Any]) -> bool:
    """Whether the loss takes integer labels; other losses take targets of the outputs' shape."""
    return "labels" in inspect.signature(loss).parameters


def targets(dataset: data.Dataset, loss: Callable[..., Any], y: np.ndarray) -> np.ndarray:
    """The targets as the loss takes them: classes become one-hot rows for a loss between numbers."""
    if dataset.classes is None or takes_labels(loss):
        return y
    return np.eye(dataset.classes, dtype=np.float32)[y]
