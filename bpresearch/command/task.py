"""The flags of a task: data, model, loss, and where it runs; ours by name, or from a user's own file."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
from absl import flags
from flax import nnx
from jaxtyping import PyTree

from bpresearch import data, losses, models, optim, platform, sweep
from bpresearch.command import own
from bpresearch.command.axes import values
from bpresearch.command.options import define_option_flags, help_lines, option_axes
from bpresearch.command.start import choose
from bpresearch.functional import as_pair, with_rngs
from bpresearch.optim import schedules
from bpresearch.platform import DTYPES, PLATFORMS

FLAGS = flags.FLAGS

SCHEDULES = {name: getattr(schedules, name) for name in schedules.__all__}

FROM_FILE = ", or FILE.py:NAME"


def define_task_flags(model: str = "mlp") -> None:
    """The flags of a task: data, model, loss, and where it runs.

    The options of models, optimizers and schedules have flags too, which `define_options` defines.
    """
    flags.DEFINE_string(
        "task", None, "a file of your own with data, model and loss; flags take the place of its parts"
    )
    flags.DEFINE_string("model", model, f"the model: {', '.join(models.BY_NAME)}{FROM_FILE}")
    flags.DEFINE_string("dataset", "mnist1d", f"the data set: {', '.join(data.NAMES)}{FROM_FILE}")
    flags.DEFINE_string("data_dir", None, "idx, npz: where the files are")
    flags.DEFINE_string(
        "standardize",
        "features",
        f"what is done to the data's numbers: {', '.join(data.STANDARDIZATIONS)}; the output says it",
    )
    flags.DEFINE_string(
        "loss",
        None,
        f"the loss: {', '.join([*losses.BY_NAME, *losses.ALIASES])}{FROM_FILE}; by default cross-entropy for "
        "classes and squared error for numbers",
    )
    flags.DEFINE_string("platform", None, f"{', '.join(PLATFORMS)}; by default the best there is")


def define_precision_flag() -> None:
    """`--precision`, for programs that compute in one format, or in several."""
    flags.DEFINE_string(
        "precision",
        "float32",
        f"format of parameters, data and arithmetic, one or many: {', '.join(DTYPES)}",
    )


def define_options(start: Callable[[], None]) -> list[str]:
    """Defines the flags of the options of all that the other flags may name, now that these are known.

    Where a file of the user's own is loaded for that, JAX is started before: the file may use it.

    Returns:
        What the help says of them.
    """
    if uses_own_files():
        start()
    define_option_flags("model", models.BY_NAME | given("model"))
    if "optimizer" in FLAGS:
        optimizers = optim.BY_NAME | given("optimizer")
        with_all = {name: optim.with_options(f, optim.OPTIONS) for name, f in optimizers.items()}
        define_option_flags("optimizer", with_all)
        every_schedule = SCHEDULES | given("schedule")
        define_option_flags("schedule", every_schedule)
        define_option_flags("momentum_schedule", every_schedule)
    return help_lines()


def model_options(precision: str = "float32") -> list[str]:
    """Defines the flags of the models' options; as `start.run` takes it, for commands in one precision."""
    return define_options(lambda: platform.start(FLAGS.platform, precision))


def uses_own_files() -> bool:
    """Whether a flag names a file of the user's own."""
    named = [
        FLAGS[flag].value for flag in ("model", "dataset", "loss", "optimizer", "schedule") if flag in FLAGS
    ]
    return FLAGS.task is not None or any(
        own.is_file(part) for text in named if text for part in text.split(",")
    )


def task_file() -> dict[str, Any]:
    """The parts of the file that --task names."""
    return {} if FLAGS.task is None else own.task_parts("task", FLAGS.task)


def given(flag: str) -> dict[str, Callable[..., Any]]:
    """What the user's own files give for a flag, by name: the task file's part of the flag's name and its
    dict of several, `optimizers` say, and what the flag itself names of a file, by all that is written
    there."""
    parts = task_file()
    functions = dict(parts.get(f"{flag}s", {}))
    if flag in parts:
        functions = {own_name(parts[flag], flag): parts[flag], **functions}
    texts = (FLAGS[flag].value or "").split(",") if flag in FLAGS else []
    return functions | {
        text.strip(): own.named(flag, text.strip()) for text in texts if own.is_file(text.strip())
    }


def own_name(function: Callable[..., object], part: str) -> str:
    """What a function of the task file is called: by its name, or as the file where that is just `part`."""
    name = getattr(function, "__name__", part)
    return own.stem(FLAGS.task) if name == part else name


def selected(flag: str, ours: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The functions that a flag names, by name: of ours, of the task file, or of another file.

    If the flag is not given, those of the task file, or without them the flag's default.
    """
    theirs = given(flag)
    if theirs and not FLAGS[flag].present:
        return theirs
    known = ours | theirs
    return {name: known[choose(flag, name, known)] for name in values(flag, str(FLAGS[flag].value), str)}


def models_from_flags() -> dict[str, Callable[..., nnx.Module]]:
    """The models that --model or --task name, by name."""
    return selected("model", models.BY_NAME)


def task_from_flags() -> sweep.Task:
    """The task that the flags describe; of several models, with the first."""
    parts, chosen = task_file(), models_from_flags()
    if FLAGS.loss is not None and not own.is_file(FLAGS.loss):  # before the data are loaded
        choose("loss", FLAGS.loss, [*losses.BY_NAME, *losses.ALIASES])
    dataset: Any = parts.get("data")
    if dataset is None or FLAGS["dataset"].present:
        dataset = dataset_from_flags(list(chosen.values()))
    first = next(iter(chosen.values()))
    stem = own.stem(FLAGS.task) if FLAGS.task and not FLAGS["dataset"].present else ""
    task = sweep.Task(
        dataset,
        first,
        parts.get("loss", losses.named("mse")),  # until the data tell the usual one
        metrics=parts.get("metrics", {}),
        diagnostics=tuple(parts.get("diagnostics", ())),
        name=stem,
    )
    _refuse_flags_of_our_data(task, parts)
    if "loss" not in parts or FLAGS["loss"].present:
        loss = loss_from_flags(task)
        task = replace(task, loss=loss, targets=functools.partial(losses.targets, loss, task.classes))
    return replace(task, source=own.digest())  # every file is loaded now


def _refuse_flags_of_our_data(task: sweep.Task, parts: Mapping[str, object]) -> None:
    """Where the data are the user's own, flags that say how ours are loaded or split do nothing."""
    if own.is_file(FLAGS.dataset):
        whose = f"--dataset={FLAGS.dataset}"
    elif "data" in parts and not FLAGS["dataset"].present:
        whose = f"--task={FLAGS.task}"
    else:
        return
    settled = {"data_dir": "data", "standardize": "data"}
    if task.has_valid:
        settled["validation"] = "part 'valid'"
    for flag, what in settled.items():
        if flag in FLAGS and FLAGS[flag].present:
            raise ValueError(f"--{flag}={FLAGS[flag].value}: {whose} has its own {what}")


def dataset_from_flags(chosen: list[Callable[..., nnx.Module]]) -> Any:
    """The data set that --dataset and --data_dir name; an autoencoder's targets are the examples."""
    if own.is_file(FLAGS.dataset):
        return own.named("dataset", FLAGS.dataset)
    choose("dataset", FLAGS.dataset, data.NAMES)
    dataset = data.load(FLAGS.dataset, data_dir=FLAGS.data_dir, standardize=FLAGS.standardize)
    for model in chosen:
        if model not in models.BY_NAME.values():
            continue
        language = model in models.OF_TOKENS
        if dataset.tokens != language:
            held, wanted = ("tokens", "transformer") if dataset.tokens else ("numbers", "vit")
            other = ", or --dataset=text" if language else ""
            raise ValueError(
                f"--model={FLAGS.model} takes {'tokens' if language else 'numbers'}, and "
                f"--dataset={dataset.name} holds {held}: take --model={wanted}{other}"
            )
    reconstructing = [model in models.RECONSTRUCTING for model in chosen]
    if any(reconstructing) and not all(reconstructing):
        raise ValueError(f"--model={FLAGS.model}: autoencoders have other targets: take them by themselves")
    return data.reconstruction(dataset) if all(reconstructing) else dataset


def described(task: sweep.Task) -> str:
    """A sentence on the task's data: where they come from, and how they were changed."""
    return (
        getattr(task.data, "description", "")
        or f"{task.name}: data as {FLAGS.task or FLAGS.dataset} gives them"
    )


def loss_from_flags(task: sweep.Task) -> Callable[..., PyTree]:
    """The loss that --loss names, or the usual one for the data."""
    classification = task.classes is not None
    name = FLAGS.loss or ("cross_entropy" if classification else "mse")
    if own.is_file(name):
        return own.named("loss", name)
    loss = losses.named(name)
    if loss.__name__ not in losses.OF_NUMBERS and not classification:
        autoencoder = task.model in models.RECONSTRUCTING
        of = "an autoencoder's targets are" if autoencoder else f"--dataset={task.name} holds"
        raise ValueError(f"--loss={name} takes classes, and {of} numbers: take mse")
    return loss


def task_model(task: sweep.Task, seed: int) -> nnx.Module:
    """The model with the options that flags give, one value each, and with initial weights from a seed."""
    chosen = models_from_flags()
    if len(chosen) > 1:
        raise ValueError(f"--model={FLAGS.model}: takes one model")
    axes = option_axes({"model": chosen})
    for flag, axis in axes.items():
        if len(axis) > 1 or isinstance(axis[0], sweep.Uniform):
            raise ValueError(f"--{flag}={FLAGS[flag].value}: takes one value")
    options = {flag.removeprefix("model."): axis[0] for flag, axis in axes.items()}
    rngs = nnx.Rngs(seed)
    return with_rngs(task.build(task.model, options, rngs), task.objective, rngs)


def task_examples(task: sweep.Task, flag: str, count: int) -> tuple[PyTree, PyTree]:
    """The first examples of the training part, as `verify.model` and `explain` take them: (x, y)."""
    if not 1 <= count <= task.count:
        raise ValueError(f"--{flag}={count}: takes 1 to {task.count}, the examples of --dataset={task.name}")
    return as_pair(task.objective, jax.tree.map(lambda array: array[:count], task.parts["train"]))
