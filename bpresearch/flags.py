"""The flags that experiments and tools share, and how a flag's text becomes values.

The only place, with the scripts themselves, where flags are read and names become objects.
"""

import difflib
import functools
import hashlib
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx

from bpresearch import autodiff, chainrule, data, models, optim, sweep
from bpresearch.optim import schedules
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
}
LOSS_ALIASES = {
    "cross_entropy": "softmax_cross_entropy_with_integer_labels",
    "mse": "squared_error",
}
ENGINES = {"autodiff": autodiff.gradient, "chainrule": chainrule.gradient}
OPTIMIZERS = {f.__name__: f for f in (optim.sgd, optim.momentum, optim.nesterov)}
SCHEDULES = {
    f.__name__: f
    for f in (
        schedules.constant,
        schedules.step,
        schedules.exponential,
        schedules.cosine,
        schedules.warmup_cosine,
    )
}
INITIALIZATIONS = ("lecun", "he", "glorot", "torch")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Parses the flags and runs `main`; bad input becomes one line on stderr and exit code 2."""

    def parse(argv: Sequence[str]) -> list[str]:
        if any(argument.lstrip("-") in ("help", "h", "helpfull", "helpshort") for argument in argv[1:]):
            print(help_text())
            sys.exit(0)
        try:
            rest = FLAGS(argv)[1:]
        except flags.Error as error:
            fail(str(error))
        if rest:
            fail(f"{rest[0]!r} is not a flag: flags are written --name=value")
        return []

    def guarded(_: Sequence[str]) -> int | None:
        logging.set_verbosity(logging.WARNING)  # JAX tells of every platform it does not find
        try:
            return main()
        except (ValueError, chainrule.NoRuleError) as error:
            fail(str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            reason = f"{where}{error.strerror or error}"
            fail(f"{reason}; what is saved is whole, the same command goes on from there")
        except KeyboardInterrupt as error:
            print(str(error) or "interrupted", file=sys.stderr)
            sys.exit(130)

    app.run(guarded, flags_parser=parse)


def output_file(flag: str) -> Path | None:
    """The file that a flag names, None if it names none; found to be writable before any work is done."""
    name = getattr(FLAGS, flag)
    if name is None:
        return None
    path = Path(name)
    if not name or path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"--{flag}={name}: takes the name of a file in a folder that exists")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--{flag}={name}: cannot be written")
    return path


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    print(f"{sys.argv[0].rsplit('/', 1)[-1]}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def help_text() -> str:
    """The script's docstring and its flags with their defaults."""
    lines = [inspect.cleandoc(sys.modules["__main__"].__doc__ or ""), "", "Flags:"]
    own = FLAGS.flags_by_module_dict()
    for flag in [*own.get(sys.argv[0], []), *own.get("__main__", []), *own.get(__name__, [])]:
        default = "" if flag.default is None else f" (default: {flag.default_as_str})"
        lines.append(f"  --{flag.name}: {flag.help}{default}")
    return "\n".join(lines)


def choose(flag: str, name: str, choices: Iterable[str]) -> str:
    """`name` if it is one of the choices; otherwise a ValueError that names the flag and suggests."""
    choices = list(choices)
    if name in choices:
        return name
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"--{flag}={name} is not one of {', '.join(choices)}{hint}")


# One value or many ---------------------------------------------------------------------------------------


def values(flag: str, text: str, kind: type = float) -> list[Any]:
    """The values of an axis, from what the user wrote.

    `0.01,0.1` is a list, `linspace:0:1:5` and `logspace:1e-3:1:7` are ranges with both ends, `0:5` is the
    integers 0 to 4 (`2:10:2` with a step).

    Raises:
        ValueError: the text is empty or not of these forms, or a value occurs twice; names the flag.
    """
    text = text.strip()
    example = {int: "3, 0,1,2 or 0:5", float: "0.1, 0.01,0.1 or logspace:1e-3:1:7"}.get(kind, "a,b")
    if not text:
        raise ValueError(f"--{flag}= is empty: give one value or many, such as {example}")
    try:
        if kind is not str and text.startswith(("linspace:", "logspace:")):
            name, low, high, count = text.split(":")
            space = np.linspace if name == "linspace" else np.geomspace
            found = [
                kind(round(v, 12) if kind is int else v) for v in space(float(low), float(high), int(count))
            ]
            found = [float(f"{v:.12g}") for v in found] if kind is float else found
        elif kind is int and ":" in text:
            found = list(range(*(int(part) for part in text.split(":"))))
        else:
            found = [kind(part.strip()) for part in text.split(",")]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"--{flag}={text}: cannot read it; give one value or many, such as {example}"
        ) from error
    if not found or (kind is str and "" in found):
        raise ValueError(f"--{flag}={text} holds no value or an empty one: give {example}")
    if len(set(found)) < len(found):
        raise ValueError(f"--{flag}={text} holds a value twice")
    return found


def numbers(flag: str, text: str, kind: type = float, *, low: float, high: float = math.inf) -> list[Any]:
    """`values` that are numbers with low <= value < high."""
    found = values(flag, text, kind)
    for value in found:
        if not (math.isfinite(value) and low <= value < high):
            below = "" if high == math.inf else f" and below {high:g}"
            raise ValueError(f"--{flag}={value}: takes values of at least {low:g}{below}")
    return found


# Model, data and loss ------------------------------------------------------------------------------------


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
        "widths": lambda: [] if not FLAGS.widths else _sizes("widths"),
        "width": lambda: _positive("width"),
        "depth": lambda: _positive("depth", low=0),
        "channels": lambda: _sizes("channels"),
        "kernel_sizes": lambda: _sizes("kernel_sizes"),
        "stride": lambda: _positive("stride"),
        "padding": _padding,
        "pooling": lambda: choose("pooling", FLAGS.pooling, ("none", "max", "avg")),
        "activation": lambda: ACTIVATIONS[choose("activation", FLAGS.activation, ACTIVATIONS)],
        "initialization": lambda: choose("initialization", FLAGS.initialization, INITIALIZATIONS),
    }
    for flag in read:
        if flag not in taken and FLAGS[flag].present:
            raise ValueError(f"--{flag} is not a flag of --model={name}")
    return function, {flag: value() for flag, value in read.items() if flag in taken}


def _sizes(flag: str) -> list[int]:
    try:
        found = [int(part) for part in getattr(FLAGS, flag).split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise ValueError(f"--{flag}={getattr(FLAGS, flag)}: takes positive integers, such as 100,100")
    return found


def _positive(flag: str, low: int = 1) -> int:
    if getattr(FLAGS, flag) < low:
        raise ValueError(f"--{flag}={getattr(FLAGS, flag)}: takes an integer of at least {low}")
    return getattr(FLAGS, flag)


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


# Sweeps --------------------------------------------------------------------------------------------------


def define_sweep_flags() -> None:
    """The flags of a sweep: its axes, how long a run is, and where the results go."""
    flags.DEFINE_string("optimizer", "sgd,momentum,nesterov", f"one or many of {', '.join(OPTIMIZERS)}")
    flags.DEFINE_string(
        "schedule",
        ",".join(SCHEDULES),
        f"learning-rate schedule, one or many of {', '.join(SCHEDULES)}",
    )
    flags.DEFINE_string(
        "lr", "0.01,0.03,0.1,0.3,1,3", "learning rate, one or many: 0.01,0.1 or logspace:1e-3:1:7"
    )
    flags.DEFINE_string("momentum", "0.9", "momentum, nesterov: the momentum, one or many")
    flags.DEFINE_string("batch_size", "100", "examples in a mini-batch, one or many")
    flags.DEFINE_string("seed", "0:3", "seeds of initial weights and of the order of the data: 0,1,2 or 0:3")
    flags.DEFINE_integer("steps", 1000, "updates of each run")
    flags.DEFINE_integer("eval_every", 0, "steps between evaluations; 0 makes twenty of them")
    flags.DEFINE_float("validation", 0.1, "fraction of the training examples held out to choose settings by")
    flags.DEFINE_string("gradient", "autodiff", f"where gradients come from: {', '.join(ENGINES)}")
    flags.DEFINE_string(
        "workdir",
        None,
        "folder of the results; by default one in results/ named after the settings",
    )
    flags.DEFINE_bool("quiet", False, "show no progress")
    define_precision_flag()


def axes_from_flags() -> sweep.Axes:
    """The axes that the flags describe."""
    optimizers = [choose("optimizer", name, OPTIMIZERS) for name in values("optimizer", FLAGS.optimizer, str)]
    schedule_names = [choose("schedule", name, SCHEDULES) for name in values("schedule", FLAGS.schedule, str)]
    axes = sweep.grid(
        optimizer=[OPTIMIZERS[name] for name in optimizers],
        schedule=[SCHEDULES[name] for name in schedule_names],
        lr=numbers("lr", FLAGS.lr, low=0),
        batch_size=numbers("batch_size", FLAGS.batch_size, int, low=1),
        seed=numbers("seed", FLAGS.seed, int, low=0, high=2**32),
    )
    momentum = numbers("momentum", FLAGS.momentum, low=0, high=1)
    if any("momentum" in optim.hyperparameters(optimizer) for optimizer in axes["optimizer"]):
        return axes | sweep.grid(momentum=momentum)
    if FLAGS["momentum"].present:
        raise ValueError(f"--momentum is not a flag of --optimizer={FLAGS.optimizer}")
    return axes


def experiment_from_flags() -> sweep.Experiment:
    """The task, its length and the engine that the flags describe."""
    _positive("steps")
    if not 0 <= FLAGS.validation < 1:
        raise ValueError(f"--validation={FLAGS.validation}: takes a fraction of at least 0 and below 1")
    engine = ENGINES[choose("gradient", FLAGS.gradient, ENGINES)]
    precision = DTYPES[choose("precision", FLAGS.precision, DTYPES)]
    every = _positive("eval_every", low=0) or max(1, FLAGS.steps // 20)
    model, options = model_from_flags()
    dataset = dataset_from_flags()
    loss = loss_from_flags(dataset)
    experiment = sweep.Experiment(
        dataset=dataset,
        model=model,
        loss_fn=loss,
        model_options=options,
        targets=functools.partial(targets, dataset, loss),
        gradient=engine,
        steps=FLAGS.steps,
        eval_every=min(every, FLAGS.steps),
        validation=FLAGS.validation,
        dtype=precision,
    )
    for batch_size in values("batch_size", FLAGS.batch_size, int):
        if batch_size > experiment.training_examples:
            raise ValueError(
                f"--batch_size={batch_size}: --dataset={dataset.name} has "
                f"{experiment.training_examples} training examples; take at most as many"
            )
    return experiment


def workdir_from_flags(name: str, experiment: sweep.Experiment, axes: sweep.Axes) -> Path:
    """--workdir, or a folder in results/ whose name follows from the settings, so that they resume."""
    if FLAGS.workdir == "":
        raise ValueError("--workdir= is empty: give the name of a folder")
    digest = hashlib.sha256(json.dumps(sweep.describe(experiment, axes)).encode()).hexdigest()
    return Path(FLAGS.workdir or f"results/{name}-{digest[:8]}")
