"""The flags of a sweep: its axes, how long a run is, and where the results go."""

import dataclasses
import hashlib
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr
from absl import flags
from jaxtyping import PyTree

from bpresearch import autodiff, chainrule, diagnostics, files, optim, sweep
from bpresearch.command.axes import numbers, positive, values
from bpresearch.command.options import base_width, option_axes
from bpresearch.command.running import (
    define_running_flags,
    describe_and_stop,
    precisions,
    replay_and_stop,
    running_options,
    start_from_flags,
)
from bpresearch.command.sampling import check_sampler, define_sampler_flags, factored_out
from bpresearch.command.start import Stop, choose, shared_flags
from bpresearch.command.target import define_target_flag, target_from_flag
from bpresearch.command.task import (
    SCHEDULES,
    define_options,
    define_precision_flag,
    models_from_flags,
    selected,
    task_from_flags,
)
from bpresearch.platform import DTYPES
from bpresearch.sweep import slices
from bpresearch.sweep.checks import check_size
from bpresearch.sweep.confirmation import expected, tuning_seeds
from bpresearch.sweep.execute import lasting
from bpresearch.train import Diagnostic

FLAGS = flags.FLAGS

UNRECORDED = {"workdir", "quiet", "platform", "dry_run", "replay", "memory_fraction", "distributed", "slice"}
UNRECORDED |= {"coordinator", "processes", "process", "json", "report", "checkpoint_every", "cost"}
"""Flags on which the results do not depend."""

ENGINES = {"autodiff": autodiff.gradient, "chainrule": chainrule.gradient}
SCHEDULES_COMPARED = "constant,step,exponential,cosine,warmup_cosine"
RATES_COMPARED = "0.03,0.1,0.3,1,3,10"

DIAGNOSTICS = {function.__name__: function for function in diagnostics.DIAGNOSTICS}


def define_sweep_flags() -> None:
    """The flags of a sweep: its axes, how long a run is, and where the results go."""
    flags.DEFINE_string(
        "optimizer",
        "sgd,momentum,nesterov",
        f"one or many of {', '.join(optim.BY_NAME)}, or FILE.py:NAME",
    )
    flags.DEFINE_string(
        "schedule",
        SCHEDULES_COMPARED,
        f"learning-rate schedule, one or many of {', '.join(SCHEDULES)}, or FILE.py:NAME",
    )
    flags.DEFINE_string(
        "lr",
        RATES_COMPARED,
        "learning rate, one or many: 0.01,0.1 or logspace:1e-3:1:7; by default those of the optimizers' "
        "functions, if each has one",
    )
    flags.DEFINE_string(
        "warmup", None, "fraction of the steps over which the learning rate rises first, one or many"
    )
    flags.DEFINE_string("momentum_schedule", None, "schedule of the momentum, one or many, as for --schedule")
    flags.DEFINE_string("batch_size", "100", "examples in a mini-batch, one or many")
    flags.DEFINE_string("seed", "0:3", "seeds of initial weights and of the order of the data: 0,1,2 or 0:3")
    flags.DEFINE_integer(
        "confirm_seeds",
        10,
        "fresh seeds with which the best setting of each optimizer is trained again, to be reported by (half "
        "as many with its other schedules); 0 reports the runs that settings were chosen by",
    )
    flags.DEFINE_string("steps", "1000", "updates of a run, one or many")
    flags.DEFINE_integer("eval_every", 0, "steps between evaluations; 0 makes twenty of them")
    flags.DEFINE_float("validation", 0.1, "fraction of the training examples held out to choose settings by")
    flags.DEFINE_string(
        "choose",
        None,
        "the metric that settings are chosen by: loss, lower is better; another, higher is better; -NAME, "
        "lower is better; by default the accuracy where there is one",
    )
    define_target_flag()
    flags.DEFINE_string(
        "mup",
        None,
        "scale learning rates and initial weights by width as muP does, from the model whose option has this "
        "value: width:64",
    )
    flags.DEFINE_string(
        "gradient", "autodiff", f"where gradients come from, one or many: {', '.join(ENGINES)}"
    )
    flags.DEFINE_string(
        "diagnostics", "", f"what to measure at each evaluation: all, or some of {', '.join(DIAGNOSTICS)}"
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "folder of the results; by default one in results/ named after the settings",
    )
    flags.DEFINE_bool("quiet", False, "show no progress")
    define_sampler_flags()
    define_running_flags()
    define_precision_flag()


def sweep_options() -> list[str]:
    """Defines the flags of the options of models, optimizers and schedules; as `start.run` takes it."""
    return define_options(start_from_flags)


def axes_from_flags() -> sweep.Axes:
    """The axes that the flags describe."""
    chosen = {
        "model": models_from_flags(),
        "optimizer": optimizers_from_flags(),
        "schedule": selected("schedule", SCHEDULES),
    }
    if FLAGS.momentum_schedule is not None:
        names = values("momentum_schedule", FLAGS.momentum_schedule, str)
        chosen["momentum_schedule"] = {n: SCHEDULES[choose("momentum_schedule", n, SCHEDULES)] for n in names}
    axes = sweep.grid(
        optimizer=list(chosen["optimizer"].values()),
        schedule=list(chosen["schedule"].values()),
        lr=rates_from_flags(chosen["optimizer"]),
        batch_size=numbers("batch_size", FLAGS.batch_size, int, low=1),
        seed=numbers("seed", FLAGS.seed, int, low=0, high=2**32),
    )
    if len(chosen["model"]) > 1:
        axes |= sweep.grid(model=list(chosen["model"].values()))
    steps = numbers("steps", FLAGS.steps, int, low=1)
    several = {"steps": steps, "precision": precisions(), "gradient": list(engines_from_flags())}
    axes |= sweep.grid(**{name: axis for name, axis in several.items() if len(axis) > 1})
    if FLAGS.warmup is not None:
        axes |= sweep.grid(warmup=numbers("warmup", FLAGS.warmup, low=0, high=1))
    axes |= option_axes(chosen)
    if "momentum_schedule" in chosen:
        if "momentum" not in axes:
            raise ValueError(
                f"--momentum_schedule: --optimizer={FLAGS.optimizer} takes no momentum, or none was given"
            )
        axes |= sweep.grid(momentum_schedule=list(chosen["momentum_schedule"].values()))
    check_sampler(axes)
    return axes | {name: sweep.Every(axes[name]) for name in factored_out(axes)}


def optimizers_from_flags() -> dict[str, optim.Optimizer]:
    """The optimizers that --optimizer or --task name, with what flags ask for beside their own options."""
    asked = [name for name in optim.OPTIONS if FLAGS[name].present or FLAGS[f"optimizer.{name}"].present]
    optimizers = selected("optimizer", optim.BY_NAME)
    for name, optimizer in optimizers.items():
        if "learning_rate" not in inspect.signature(optimizer).parameters:
            flag = f"--optimizer={name}" if FLAGS["optimizer"].present else f"--task={FLAGS.task}: {name}"
            raise ValueError(f"{flag}: has no parameter learning_rate; an optimizer takes that first")
    return {name: optim.with_options(optimizer, asked) for name, optimizer in optimizers.items()}


def rates_from_flags(optimizers: dict[str, optim.Optimizer]) -> list[float | sweep.Uniform]:
    """The learning rates; if they are not given, those that the optimizers' functions have, if all do."""
    own = [inspect.signature(f).parameters["learning_rate"].default for f in optimizers.values()]
    if FLAGS["lr"].present or not all(isinstance(rate, int | float) for rate in own):
        return numbers("lr", FLAGS.lr, low=0)
    return list(dict.fromkeys(float(rate) for rate in own))


def engines_from_flags() -> list[Callable[..., PyTree]]:
    """The gradient functions that --gradient names."""
    return [ENGINES[choose("gradient", n, ENGINES)] for n in values("gradient", FLAGS.gradient, str)]


def experiment_from_flags() -> sweep.Experiment:
    """The task, its length and the engine that the flags describe.

    What is wrong with a flag alone is found before the data set is read or generated.
    """
    _check_workdir()
    steps = numbers("steps", FLAGS.steps, int, low=1)
    if any(isinstance(value, sweep.Uniform) for value in steps):
        raise ValueError(f"--steps={FLAGS.steps}: takes a list or a range, no distribution")
    if not 0 <= FLAGS.validation < 1:
        raise ValueError(f"--validation={FLAGS.validation}: takes a fraction of at least 0 and below 1")
    positive("confirm_seeds", low=0)
    target_from_flag()
    engine, precision = engines_from_flags()[0], DTYPES[precisions()[0]]
    every = positive("eval_every", low=0) or max(1, max(steps) // 20)
    if FLAGS.slice is not None:
        slices.numbers(FLAGS.slice)
    measured = _diagnostics()
    task = task_from_flags()
    experiment = dataclasses.replace(
        sweep.as_experiment(task),
        diagnostics=(*task.diagnostics, *measured),
        gradient=engine,
        steps=max(steps),
        eval_every=min(every, max(steps)),
        validation=FLAGS.validation,
        dtype=precision,
        choose=FLAGS.choose,
        mup=_mup(),
    )
    experiment = lasting(experiment, {"steps": steps} if len(steps) > 1 else {}, FLAGS.prune)
    for batch_size in values("batch_size", FLAGS.batch_size, int):
        largest = batch_size.high if isinstance(batch_size, sweep.Uniform) else batch_size
        if largest > experiment.training_examples:
            raise ValueError(
                f"--batch_size={largest}: --dataset={experiment.name} has "
                f"{experiment.training_examples} training examples; take at most as many"
            )
    return experiment


def _mup() -> sweep.Settings | None:
    """The option that makes the model of base width."""
    if FLAGS.mup is None:
        return None
    for optimizer in optimizers_from_flags().values():
        if "clip_norm" in optim.hyperparameters(optimizer):
            raise ValueError("--mup and --clip_norm: the weights of each rate would be clipped by themselves")
        try:
            optim.mup.rate(optimizer.__name__, optim.mup.Role.FIXED, 1.0, 1.0)
        except ValueError as error:
            raise ValueError(f"--mup={FLAGS.mup}: {error}") from error
    return base_width("mup", FLAGS.mup, models_from_flags())


def _check_workdir() -> None:
    if FLAGS.workdir == "":
        raise ValueError("--workdir= is empty: give the name of a folder")
    folder = Path(FLAGS.workdir or "results").expanduser().absolute()
    exists = next(path for path in (folder, *folder.parents) if path.exists())
    if not (exists.is_dir() and os.access(exists, os.W_OK)):
        raise ValueError(f"--workdir={folder}: cannot write there; take another folder")


def _diagnostics() -> tuple[Diagnostic, ...]:
    if FLAGS.diagnostics in ("", "all"):
        return diagnostics.DIAGNOSTICS if FLAGS.diagnostics else ()
    names = values("diagnostics", FLAGS.diagnostics, str)
    return tuple(DIAGNOSTICS[choose("diagnostics", name, ["all", *DIAGNOSTICS])] for name in names)


def sweep_from_flags(
    experiment: sweep.Experiment, axes: sweep.Axes, workdir: Path, by: str = "optimizer", study: int = 1
) -> xr.Dataset:
    """Trains what the flags describe, and leaves them in the workdir, so that --flagfile repeats it.

    The settings that are the best are trained again with fresh seeds; `by` is what is compared. A tuning
    study after the first has seeds of its own, and a sampler draws other trials.
    """
    axes = axes | {"seed": tuning_seeds(axes["seed"], study)}
    sampler_seed = FLAGS.sampler_seed + study - 1
    source = axes if FLAGS.sampler == "grid" else sweep.source_of(axes, FLAGS.sampler, sampler_seed)
    options = running_options()
    searched = FLAGS.sampler != "grid"
    if searched and FLAGS.slice is not None:
        raise ValueError(
            f"--slice={FLAGS.slice}: takes a grid; a sampler draws by what runs before have reached"
        )
    if FLAGS.dry_run:
        pretended = sweep.pretended(experiment, axes, FLAGS.trials) if searched else axes
        listed = pretended if isinstance(pretended, list) else sweep.expand(axes, experiment.model)
        again = len(expected(listed, FLAGS.confirm_seeds, by))
        print(f"{again} fresh runs of the best settings follow")
        describe_and_stop(experiment, pretended)
    if FLAGS.replay is not None:
        drawn = sweep.drawn(experiment, axes, FLAGS.sampler, workdir) if searched else None
        replay_and_stop(experiment, drawn or sweep.expand(axes, experiment.model), workdir)

    if FLAGS.slice is not None:
        workdir, options["slice"] = slices.folder_of(workdir, FLAGS.slice), FLAGS.slice

    def begin() -> None:
        sweep.claim(workdir, experiment, source, **_how(), slice=FLAGS.slice)
        files.write(workdir / "flagfile", flags_given())

    sweep.told(begin)
    options |= {"quiet": FLAGS.quiet or not sweep.leads(), "checkpoint_every": FLAGS.checkpoint_every}
    options["programs"] = {}
    seeds = FLAGS.confirm_seeds
    if searched:
        results = sweep.search(
            experiment,
            axes,
            trials=FLAGS.trials,
            sampler=FLAGS.sampler,
            batch=FLAGS.trials_at_once,
            sampler_seed=sampler_seed,
            workdir=workdir,
            prune=FLAGS.prune,
            **options,
        )
        runs = sweep.drawn(experiment, axes, FLAGS.sampler, workdir)
    else:
        runs = sweep.expand(axes, experiment.model)
        beside = expected(runs, seeds, by)
        results = sweep.run(experiment, axes, workdir, prune=FLAGS.prune, beside=beside, **options)
    if FLAGS.slice is not None:
        if sweep.leads():
            print(
                f"Slice {FLAGS.slice}: {results.sizes['run']} runs are done, in {workdir}; merge joins them"
            )
        raise Stop
    fresh = {"seeds": seeds, "by": by, "study": study}
    results = sweep.confirm(experiment, runs, results, workdir=workdir, **fresh, **options)
    if not sweep.leads():
        raise Stop  # the first process has the results and reports
    return results


def flags_given() -> str:
    """The flags that decide the results, as they were given, one a line, as --flagfile reads them."""
    given = [flag for flag in shared_flags() if flag.present and flag.name not in UNRECORDED]
    return "".join(f"{_written(flag)}\n" for flag in sorted(given, key=lambda flag: flag.name))


def _written(flag: flags.Flag) -> str:
    """A flag as it is given; an option that is true or false, or both, has its text as value."""
    text = flag.boolean and isinstance(flag.value, str)
    return f"--{flag.name}={flag.value}" if text else flag.serialize()


def _source(axes: sweep.Axes) -> sweep.Axes | dict[str, object]:
    """Where the runs come from: the axes of a grid, or what a sampler draws from."""
    return axes if FLAGS.sampler == "grid" else sweep.source_of(axes, FLAGS.sampler, FLAGS.sampler_seed)


def _how() -> dict[str, Any]:
    """How the runs are trained, as far as the results depend on it."""
    return {"layout": FLAGS.layout, "shard": FLAGS.shard, "prune": FLAGS.prune}


def workdir_from_flags(name: str, experiment: sweep.Experiment, axes: sweep.Axes) -> Path:
    """--workdir, or a folder in results/ whose name follows from the settings, so that they resume."""
    check_size(experiment, axes)
    settings = sweep.describe(experiment, _source(axes), **_how())
    del settings["devices"]  # on others the workdir is the same one, and refuses
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    return Path(FLAGS.workdir or f"results/{name}-{digest[:8]}").expanduser()
