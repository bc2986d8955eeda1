"""The flags of a sweep: its axes, how long a run is, and where the results go."""

import functools
import hashlib
import json
import os
from pathlib import Path

from absl import flags

from bpresearch import autodiff, chainrule, optim, sweep
from bpresearch.flags.axes import numbers, positive, values
from bpresearch.flags.command import choose
from bpresearch.flags.task import (
    dataset_from_flags,
    define_precision_flag,
    loss_from_flags,
    model_from_flags,
    targets,
)
from bpresearch.optim import schedules
from bpresearch.platform import DTYPES

FLAGS = flags.FLAGS

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


def define_sweep_flags() -> None:
    """The flags of a sweep: its axes, how long a run is, and where the results go."""
    flags.DEFINE_string("optimizer", "sgd,momentum,nesterov", f"one or many of {', '.join(OPTIMIZERS)}")
    flags.DEFINE_string(
        "schedule",
        ",".join(SCHEDULES),
        f"learning-rate schedule, one or many of {', '.join(SCHEDULES)}",
    )
    flags.DEFINE_string(
        "lr", "0.03,0.1,0.3,1,3,10", "learning rate, one or many: 0.01,0.1 or logspace:1e-3:1:7"
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
    positive("steps")
    if not 0 <= FLAGS.validation < 1:
        raise ValueError(f"--validation={FLAGS.validation}: takes a fraction of at least 0 and below 1")
    engine = ENGINES[choose("gradient", FLAGS.gradient, ENGINES)]
    precision = DTYPES[choose("precision", FLAGS.precision, DTYPES)]
    every = positive("eval_every", low=0) or max(1, FLAGS.steps // 20)
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
    folder = Path(FLAGS.workdir or "results").absolute()
    exists = next(path for path in (folder, *folder.parents) if path.exists())
    if not (exists.is_dir() and os.access(exists, os.W_OK)):
        raise ValueError(f"--workdir={folder}: cannot write there; take another folder")
    digest = hashlib.sha256(json.dumps(sweep.describe(experiment, axes)).encode()).hexdigest()
    return Path(FLAGS.workdir or f"results/{name}-{digest[:8]}")
