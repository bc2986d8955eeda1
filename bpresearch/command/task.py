"""The flags of a task: model, data set, loss, and where it runs."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
from absl import flags
from flax import nnx

from bpresearch import chainrule, data, models
from bpresearch.command.axes import positive, sizes
from bpresearch.command.start import choose
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
    "celu": nnx.celu,
    "selu": nnx.selu,
    "relu6": nnx.relu6,
    "hard_sigmoid": nnx.hard_sigmoid,
    "hard_silu": nnx.hard_silu,
    "hard_tanh": nnx.hard_tanh,
    "log_sigmoid": nnx.log_sigmoid,
    "soft_sign": nnx.soft_sign,
}
MODELS = {
    f.__name__: f
    for f in (
        models.linear,
        models.mlp,
        models.residual_mlp,
        models.autoencoder,
        models.cnn,
        models.lenet,
        models.resnet,
        models.gru,
        models.lstm,
        models.bidirectional_gru,
        models.transformer,
        models.vit,
        models.mixer,
    )
}
# Losses by what they compare outputs with: integers, numbers or one-hot rows, one-hot rows, rows of 1 and -1.
OF_CLASSES = (
    "softmax_cross_entropy_with_integer_labels",
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
)
OF_SIGNS = ("hinge_loss", "perceptron_loss")
OF_ROWS = (
    "softmax_cross_entropy",
    "safe_softmax_cross_entropy",
    "poly_loss_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "ranking_softmax_loss",
    "dice_loss",
)
OF_NUMBERS = (
    "squared_error",
    "l2_loss",
    "huber_loss",
    "log_cosh",
    "cosine_similarity",
    "cosine_distance",
)
LOSSES = {
    name: getattr(optax.losses, name)
    for name in (*OF_CLASSES, *OF_NUMBERS, *OF_ROWS, *OF_SIGNS)
    if getattr(optax.losses, name, None) in chainrule.registered()
}
LOSS_ALIASES = {
    "cross_entropy": "softmax_cross_entropy_with_integer_labels",
    "mse": "squared_error",
}
INITIALIZATIONS = ("lecun", "he", "glorot", "torch")


def define_task_flags(model: str = "mlp") -> None:
    """The flags of a task: model, data set, loss, and where it runs.

    A model's own flags are None unless given; its function has the defaults.
    """
    flags.DEFINE_string("model", model, f"the model: {', '.join(MODELS)}")
    flags.DEFINE_string("widths", None, "mlp: widths of the hidden layers; autoencoder: of the encoder's")
    flags.DEFINE_integer(
        "width", None, "units or features of a layer of: residual_mlp, recurrent models, transformers"
    )
    flags.DEFINE_integer("depth", None, "blocks of: residual_mlp, resnet (a stage), gru, lstm, transformers")
    flags.DEFINE_integer("heads", None, "transformer, vit: attention heads")
    flags.DEFINE_integer("patch_size", None, "vit, mixer: side of the patches that an image is cut into")
    flags.DEFINE_bool(
        "scan_layers", None, "transformer, vit, mixer: compile one block, scan over their weights"
    )
    flags.DEFINE_string("channels", None, "cnn: output channels of each convolution; resnet: of each stage")
    flags.DEFINE_string("kernel_sizes", None, "cnn: kernel size of each convolution")
    flags.DEFINE_integer("stride", None, "cnn: stride of the convolutions, or of the pooling if there is one")
    flags.DEFINE_string("padding", None, "cnn: SAME, VALID or a number of zeros on each side")
    flags.DEFINE_string("pooling", None, "cnn, lenet: none, max or avg after each activation")
    flags.DEFINE_string("activation", None, f"the activation: {', '.join(ACTIVATIONS)}")
    flags.DEFINE_string("initialization", None, f"initial weights: {', '.join(INITIALIZATIONS)}")
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
        "heads": lambda: positive("heads"),
        "patch_size": lambda: positive("patch_size"),
        "scan_layers": lambda: FLAGS.scan_layers,
        "channels": lambda: sizes("channels"),
        "kernel_sizes": lambda: sizes("kernel_sizes"),
        "stride": lambda: positive("stride"),
        "padding": _padding,
        "pooling": lambda: choose("pooling", FLAGS.pooling, ("none", "max", "avg")),
        "activation": lambda: ACTIVATIONS[choose("activation", FLAGS.activation, ACTIVATIONS)],
        "initialization": lambda: choose("initialization", FLAGS.initialization, INITIALIZATIONS),
    }
    given = [flag for flag in read if FLAGS[flag].value is not None]
    for flag in given:
        if flag not in taken:
            raise ValueError(f"--{flag} is not a flag of --model={name}")
    defaults = {flag: taken[flag].default for flag in read if flag in taken}
    return function, defaults | {flag: read[flag]() for flag in given}


def _padding() -> str | int:
    text = FLAGS.padding.upper()
    if text in ("SAME", "VALID"):
        return text
    if text.isdigit():
        return int(text)
    raise ValueError(f"--padding={FLAGS.padding}: takes SAME, VALID or a number of zeros, such as 1")


def dataset_from_flags() -> data.Dataset:
    """The data set that --dataset and --data_dir name; an autoencoder's targets are the examples."""
    choose("dataset", FLAGS.dataset, data.NAMES)
    found = data.load(FLAGS.dataset, data_dir=FLAGS.data_dir)
    language = FLAGS.model == "transformer"
    if found.tokens != language:
        held, wanted = ("tokens", "transformer") if found.tokens else ("numbers", "vit")
        raise ValueError(
            f"--model={FLAGS.model} takes {'tokens' if language else 'numbers'}, and --dataset={found.name} "
            f"holds {held}: take --model={wanted}" + (", or --dataset=text" if language else "")
        )
    return data.reconstruction(found) if FLAGS.model == "autoencoder" else found


def choose_loss(name: str) -> Callable[..., Any]:
    """The loss of a name, or of an alias."""
    choose("loss", name, [*LOSSES, *LOSS_ALIASES])
    return LOSSES[LOSS_ALIASES.get(name, name)]


def loss_from_flags(dataset: data.Dataset) -> Callable[..., Any]:
    """The loss that --loss names, or the data set's usual one."""
    classification = dataset.classes is not None
    default = "cross_entropy" if classification else "mse"
    name = FLAGS.loss or default
    loss = choose_loss(name)
    if loss.__name__ not in OF_NUMBERS and not classification:
        of = (
            "an autoencoder's targets are"
            if FLAGS.model == "autoencoder"
            else f"--dataset={dataset.name} holds"
        )
        raise ValueError(f"--loss={name} takes classes, and {of} numbers: take mse")
    return loss


def takes_labels(loss: Callable[..., Any]) -> bool:
    """Whether the loss takes integer labels; other losses take targets of the outputs' shape."""
    return loss.__name__ in OF_CLASSES


def targets(dataset: data.Dataset, loss: Callable[..., Any], y: np.ndarray) -> np.ndarray:
    """The targets as the loss takes them: classes, or a row for each example of 0 and 1, or -1 and 1."""
    if dataset.classes is None or takes_labels(loss):
        return y
    rows = np.eye(dataset.classes, dtype=np.float32)[y]
    return 2 * rows - 1 if loss.__name__ in OF_SIGNS else rows
