"""The flags of a sweep: its axes, how long a run is, and where the results go."""

import functools
import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import xarray as xr
from absl import flags

from bpresearch import autodiff, chainrule, files, optim, sweep
from bpresearch.analysis import diagnostics
from bpresearch.command.axes import numbers, positive, values
from bpresearch.command.running import (
    define_running_flags,
    describe_and_stop,
    replay_and_stop,
    running_options,
)
from bpresearch.command.start import choose
from bpresearch.command.task import (
    choose_loss,
    dataset_from_flags,
    define_precision_flag,
    loss_from_flags,
    model_from_flags,
    targets,
)
from bpresearch.optim import schedules
from bpresearch.platform import DTYPES
from bpresearch.sweep import sample
from bpresearch.sweep.prune import PRUNERS
from bpresearch.train import Diagnostic

FLAGS = flags.FLAGS

UNRECORDED = {"workdir", "quiet", "platform", "dry_run", "replay", "memory_fraction", "distributed"}
UNRECORDED |= {"coordinator", "processes", "process"}
"""Flags on which the results do not depend."""

ENGINES = {"autodiff": autodiff.gradient, "chainrule": chainrule.gradient}
OPTIMIZERS = optim.BY_NAME
SCHEDULES = {name: getattr(schedules, name) for name in schedules.__all__}
SCHEDULES_COMPARED = "constant,step,exponential,cosine,warmup_cosine"

TAKEN_BY = {
    name: [optimizer for optimizer, function in OPTIMIZERS.items() if name in optim.hyperparameters(function)]
    for optimizer_function in OPTIMIZERS.values()
    for name in optim.hyperparameters(optimizer_function)
    if name != "seed"  # every run has one
}
"""The optimizers that take each hyper-parameter: a flag of its name says which values it gets."""

DIAGNOSTICS = {function.__name__: function for function in diagnostics.DIAGNOSTICS}

BELOW_ONE = {"momentum", "b1", "b2", "b3", "decay", "rho", "adam_b1", "adam_b2", "decrease_factor"}
ANY_NUMBER = {"f_min", "lower_bound", "alpha"}


def define_sweep_flags() -> None:
    """The flags of a sweep: its axes, how long a run is, and where the results go."""
    flags.DEFINE_string("optimizer", "sgd,momentum,nesterov", f"one or many of {', '.join(OPTIMIZERS)}")
    flags.DEFINE_string(
        "schedule", SCHEDULES_COMPARED, f"learning-rate schedule, one or many of {', '.join(SCHEDULES)}"
    )
    flags.DEFINE_string(
        "lr", "0.03,0.1,0.3,1,3,10", "learning rate, one or many: 0.01,0.1 or logspace:1e-3:1:7"
    )
    flags.DEFINE_string(
        "warmup", None, "fraction of the steps over which the learning rate rises first, one or many"
    )
    for name, optimizers in TAKEN_BY.items():
        if name not in ("momentum", "weight_decay"):
            flags.DEFINE_string(name, None, f"{', '.join(optimizers)}: {name}, one or many")
    flags.DEFINE_string("momentum", "0.9", f"{', '.join(TAKEN_BY['momentum'])}: the momentum, one or many")
    flags.DEFINE_string("momentum_schedule", None, "schedule of the momentum, one or many, as for --schedule")
    flags.DEFINE_string(
        "weight_decay",
        None,
        f"one or many: wd w added to the gradient, or to the step by {', '.join(TAKEN_BY['weight_decay'])}",
    )
    flags.DEFINE_string("clip_norm", None, "largest norm of the gradient, one or many; by default no limit")
    flags.DEFINE_string("batch_size", "100", "examples in a mini-batch, one or many")
    flags.DEFINE_string("seed", "0:3", "seeds of initial weights and of the order of the data: 0,1,2 or 0:3")
    flags.DEFINE_integer("steps", 1000, "updates of each run")
    flags.DEFINE_integer("eval_every", 0, "steps between evaluations; 0 makes twenty of them")
    flags.DEFINE_float("validation", 0.1, "fraction of the training examples held out to choose settings by")
    flags.DEFINE_string("gradient", "autodiff", f"where gradients come from: {', '.join(ENGINES)}")
    flags.DEFINE_string(
        "diagnostics", "", f"what to measure at each evaluation: all, or some of {', '.join(DIAGNOSTICS)}"
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "folder of the results; by default one in results/ named after the settings",
    )
    flags.DEFINE_bool("quiet", False, "show no progress")
    flags.DEFINE_string(
        "sampler", "grid", f"how settings are chosen from the axes: grid (all), {', '.join(sample.SAMPLERS)}"
    )
    flags.DEFINE_integer("trials", None, "settings that the sampler draws, each for every seed")
    flags.DEFINE_integer(
        "trials_at_once",
        None,
        "trials that are drawn and trained together; by default all, and for tpe 16 or more",
    )
    flags.DEFINE_string("prune", None, f"end poor runs early, and which are: {', '.join(PRUNERS)}")
    flags.DEFINE_integer("sampler_seed", 0, "another one draws other settings")
    define_running_flags()
    define_precision_flag()


def axes_from_flags() -> sweep.Axes:
    """The axes that the flags describe."""
    axes = sweep.grid(
        optimizer=_optimizers(),
        schedule=_schedules("schedule"),
        lr=numbers("lr", FLAGS.lr, low=0),
        batch_size=numbers("batch_size", FLAGS.batch_size, int, low=1),
        seed=numbers("seed", FLAGS.seed, int, low=0, high=2**32),
    )
    if FLAGS.warmup is not None:
        axes |= sweep.grid(warmup=numbers("warmup", FLAGS.warmup, low=0, high=1))
    taken = {name for optimizer in axes["optimizer"] for name in optim.hyperparameters(optimizer)}
    needed = {name for o in axes["optimizer"] for name in optim.hyperparameters(o, required=True)}
    for name in [*TAKEN_BY, "clip_norm"]:
        if FLAGS[name].present and name not in taken:
            raise ValueError(f"--{name} is not a flag of --optimizer={FLAGS.optimizer}")
        if FLAGS[name].present or (name == "momentum" and name in needed):
            low, high = -math.inf if name in ANY_NUMBER else 0, 1 if name in BELOW_ONE else math.inf
            axes |= sweep.grid(**{name: numbers(name, getattr(FLAGS, name), low=low, high=high)})
    if FLAGS.momentum_schedule is not None:
        if "momentum" not in axes:
            raise ValueError(
                f"--momentum_schedule: --optimizer={FLAGS.optimizer} takes no momentum, or none was given"
            )
        axes |= sweep.grid(momentum_schedule=_schedules("momentum_schedule"))
    _check_sampler(axes)
    return axes


def _check_sampler(axes: sweep.Axes) -> None:
    """Refuses distributions without a sampler, and flags of samplers without one."""
    name = choose("sampler", FLAGS.sampler, ["grid", *sample.SAMPLERS])
    if FLAGS.prune is not None:
        choose("prune", FLAGS.prune, PRUNERS)
        sample.optuna()
    for axis, found in axes.items():
        if isinstance(found[0], sweep.Uniform) and (name == "grid" or axis == "seed"):
            way = (
                "takes integers, all of which are trained"
                if axis == "seed"
                else "needs --sampler=random, qmc or tpe"
            )
            raise ValueError(f"--{axis}={found[0]}: a distribution {way}")
    for flag in ("trials", "trials_at_once", "sampler_seed"):
        if name == "grid" and FLAGS[flag].present:
            raise ValueError(f"--{flag} needs --sampler=random, qmc or tpe")
    if name != "grid":
        sample.optuna()
        if FLAGS.trials is None:
            raise ValueError(f"--sampler={name} needs --trials, the number of settings that it draws")
        positive("trials")
        if FLAGS.trials_at_once is not None:
            positive("trials_at_once")


def _optimizers() -> list[optim.Optimizer]:
    """The optimizers that --optimizer names, with weight decay and clipping where flags ask for them."""
    names = values("optimizer", FLAGS.optimizer, str)
    found = [OPTIMIZERS[choose("optimizer", name, OPTIMIZERS)] for name in names]
    if FLAGS.weight_decay is not None:
        found = [optim.decayed(optimizer) for optimizer in found]
    if FLAGS.clip_norm is not None:
        found = [optim.clipped(optimizer) for optimizer in found]
    return found


def _schedules(flag: str) -> list[schedules.Schedule]:
    return [SCHEDULES[choose(flag, name, SCHEDULES)] for name in values(flag, getattr(FLAGS, flag), str)]


def experiment_from_flags() -> sweep.Experiment:
    """The task, its length and the engine that the flags describe.

    What is wrong with a flag alone is found before the data set is read or generated.
    """
    _check_workdir()
    positive("steps")
    if not 0 <= FLAGS.validation < 1:
        raise ValueError(f"--validation={FLAGS.validation}: takes a fraction of at least 0 and below 1")
    engine = ENGINES[choose("gradient", FLAGS.gradient, ENGINES)]
    precision = DTYPES[choose("precision", FLAGS.precision, DTYPES)]
    every = positive("eval_every", low=0) or max(1, FLAGS.steps // 20)
    measured = _diagnostics()
    model, options = model_from_flags()
    if FLAGS.loss is not None:
        choose_loss(FLAGS.loss)
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
        diagnostics=measured,
    )
    for batch_size in values("batch_size", FLAGS.batch_size, int):
        largest = batch_size.high if isinstance(batch_size, sweep.Uniform) else batch_size
        if largest > experiment.training_examples:
            raise ValueError(
                f"--batch_size={largest}: --dataset={dataset.name} has "
                f"{experiment.training_examples} training examples; take at most as many"
            )
    return experiment


def _check_workdir() -> None:
    if FLAGS.workdir == "":
        raise ValueError("--workdir= is empty: give the name of a folder")
    folder = Path(FLAGS.workdir or "results").absolute()
    exists = next(path for path in (folder, *folder.parents) if path.exists())
    if not (exists.is_dir() and os.access(exists, os.W_OK)):
        raise ValueError(f"--workdir={folder}: cannot write there; take another folder")


def _diagnostics() -> tuple[Diagnostic, ...]:
    if FLAGS.diagnostics in ("", "all"):
        return diagnostics.DIAGNOSTICS if FLAGS.diagnostics else ()
    names = values("diagnostics", FLAGS.diagnostics, str)
    return tuple(DIAGNOSTICS[choose("diagnostics", name, ["all", *DIAGNOSTICS])] for name in names)


def sweep_from_flags(experiment: sweep.Experiment, axes: sweep.Axes, workdir: Path) -> xr.Dataset:
    """Trains what the flags describe, and leaves them in the workdir, so that --flagfile repeats it."""
    source, options = _source(axes), running_options()
    searched = FLAGS.sampler != "grid"
    if FLAGS.dry_run:
        pretended = sweep.pretended(experiment, axes, FLAGS.trials) if searched else axes
        describe_and_stop(experiment, pretended)
    if FLAGS.replay is not None:
        drawn = sweep.drawn(experiment, axes, FLAGS.sampler, workdir) if searched else None
        replay_and_stop(experiment, drawn or sweep.expand(axes, experiment.model), workdir)

    def begin() -> None:
        sweep.claim(workdir, experiment, source, **_how())
        files.write(workdir / "flagfile", flags_given())

    sweep.told(begin)
    options |= {"prune": FLAGS.prune, "quiet": FLAGS.quiet or not sweep.leads()}
    if searched:
        results = sweep.search(
            experiment,
            axes,
            trials=FLAGS.trials,
            sampler=FLAGS.sampler,
            batch=FLAGS.trials_at_once,
            sampler_seed=FLAGS.sampler_seed,
            workdir=workdir,
            **options,
        )
    else:
        results = sweep.run(experiment, axes, workdir, **options)
    if not sweep.leads():
        sys.exit(0)  # the first process has the results and reports
    return results


def flags_given() -> str:
    """The flags that decide the results, as they were given, one a line, as --flagfile reads them."""
    shared = [
        flag
        for module, found in FLAGS.flags_by_module_dict().items()
        if module.startswith("bpresearch.command.")
        for flag in found
    ]
    given = [flag for flag in shared if flag.present and flag.name not in UNRECORDED]
    return "".join(f"{flag.serialize()}\n" for flag in sorted(given, key=lambda flag: flag.name))


def _source(axes: sweep.Axes) -> dict[str, Any]:
    """Where the runs come from: the axes of a grid, or what a sampler draws from."""
    return axes if FLAGS.sampler == "grid" else sweep.source_of(axes, FLAGS.sampler, FLAGS.sampler_seed)


def _how() -> dict[str, Any]:
    """How the runs are trained, as far as the results depend on it."""
    return {"layout": FLAGS.layout, "shard": FLAGS.shard, "prune": FLAGS.prune}


def workdir_from_flags(name: str, experiment: sweep.Experiment, axes: sweep.Axes) -> Path:
    """--workdir, or a folder in results/ whose name follows from the settings, so that they resume."""
    settings = sweep.describe(experiment, _source(axes), **_how())
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    return Path(FLAGS.workdir or f"results/{name}-{digest[:8]}")
