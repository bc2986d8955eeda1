"""Whether axes and runs fit the experiment; what does not is refused in one line."""

import math
import os

import jax
from flax import nnx
from jaxtyping import PyTree

from bpresearch.distribution import Uniform
from bpresearch.functional import as_pair, losses
from bpresearch.optim import hyperparameters
from bpresearch.platform import DTYPES
from bpresearch.sweep.axes import Axes, first_values
from bpresearch.sweep.description import coordinate, label
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.options import COMMON, OWN_AXES, SETTLED, Settings, axis_of, owners


def axes_of(runs: list[Settings]) -> Axes:
    """Every value that some run has on each axis."""
    if not runs:
        raise ValueError("there are no runs to train")
    axes: Axes = {}
    for name in runs[0]:
        if any(name not in settings for settings in runs):
            raise ValueError(f"some runs lack {name}: give every run a value on every axis")
        axes[name] = list({repr(settings[name]): settings[name] for settings in runs}.values())
    return axes


BYTES_OF_A_RUN = 2000
"""What a combination of values takes in memory, about."""
MOST_STEPS = 2**31 - 1
"""What the programs count to."""
LARGE = 10_000
"""An option of a model above it may be too large for this machine."""


def check_size(experiment: Experiment, axes: Axes) -> None:
    """Refuses what this machine has no memory for, before any is asked for.

    Raises:
        ValueError: the runs, their steps, or one model's weights or activations need more; says how much.
    """
    counts = {name: len(values) for name, values in axes.items() if len(values) > 1}
    runs = math.prod(counts.values())
    product = " x ".join(f"{name} {count:,}" for name, count in counts.items())
    _fit(runs * BYTES_OF_A_RUN, f"{runs:,} combinations ({product})")
    steps = max([experiment.steps, *axes.get("steps", [])])
    if steps > MOST_STEPS:
        raise ValueError(f"steps={steps}: takes at most {MOST_STEPS:,}")
    _fit(steps * (8 + 8 * min(runs, 128)), f"steps={steps}: the rates and losses of runs trained together")
    evaluations = steps // experiment.eval_every
    _fit(evaluations * 100 * min(runs, 128), f"steps={steps}: {evaluations:,} evaluations of a run")
    first = first_values(axes)
    for name in axes:
        numbers = [end for value in axes[name] for end in getattr(value, "ends", [value])]
        numbers = [n for value in numbers for n in (value if isinstance(value, tuple) else [value])]
        large = "model" in owners(name, axes, experiment.model) and any(
            isinstance(n, int) and n > LARGE for n in numbers
        )
        for value in axes[name] if large else []:
            settings = first | {name: getattr(value, "high", value)}
            _fit(
                _largest(experiment, settings), f"{name}={coordinate(settings[name])}: an array of the model"
            )


def _largest(experiment: Experiment, settings: Settings) -> int:
    """Bytes of the largest array when a model is made and evaluates one example; none is asked for."""
    training = experiment.training(settings)
    example = as_pair(training.loss, jax.tree.map(lambda array: array[:1], experiment.parts["train"]))

    def evaluated(x: PyTree, y: PyTree) -> PyTree:
        return losses(training.loss, training.model(nnx.Rngs(0)), x, y)

    program = jax.make_jaxpr(evaluated)(*example)
    results = [result.aval for equation in program.eqns for result in equation.outvars]
    return max(math.prod(variable.shape) * 4 for variable in results if hasattr(variable, "shape"))


def _fit(need: int, what: str) -> None:
    """Raises a ValueError if this machine has less memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > memory:
        raise ValueError(
            f"{what} would take {need / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f}"
        )


def check(experiment: Experiment, axes: Axes) -> None:
    """Raises a ValueError if an axis is missing, or has a name or a value that does not fit."""
    for name in OWN_AXES:
        if name not in axes:
            raise ValueError(f"the axes lack {name}: give it one value or many")
    for name, values in axes.items():
        if any(isinstance(value, Uniform) for value in values):
            raise ValueError(f"axis {name} is a distribution: sweep.search draws from it")
    models = axes.get("model", [experiment.model])
    scheduled = {f"{name}_schedule" for optimizer in axes["optimizer"] for name in hyperparameters(optimizer)}
    for name, values in axes.items():
        taken_by = owners(name, axes, experiment.model)
        unknown = name not in {*COMMON, *scheduled} and not taken_by
        if unknown and any(value == value for value in values):  # NaN: of runs like others' runs
            names = ", ".join(label(function) for function in (*axes["optimizer"], *models))
            raise ValueError(f"axis {name} is not a hyper-parameter of {names}")
        if len(taken_by) > 1:
            full = " and ".join(f"{kind}.{name}" for kind in taken_by)
            raise ValueError(f"axis {name} is an option of {' and '.join(taken_by)}: name the axes {full}")
    for optimizer in axes["optimizer"]:
        for name in hyperparameters(optimizer, required=True):
            if name not in SETTLED and not axis_of("optimizer", name, axes):
                raise ValueError(f"the axes lack {name}, which {label(optimizer)} takes")
    for name, values in axes.items():
        labels = [repr(label(value)) for value in values]
        if len(set(labels)) < len(labels):
            raise ValueError(f"axis {name} holds two values with one name: {', '.join(labels)}")
    for batch_size in axes["batch_size"]:
        if not 1 <= batch_size <= experiment.training_examples:
            raise ValueError(
                f"batch_size={batch_size}: takes 1 to {experiment.training_examples}, "
                f"the number of training examples"
            )
    for steps in axes.get("steps", []):
        if steps < 1:
            raise ValueError(f"steps={steps}: a run takes at least 1 step")
    for precision in axes.get("precision", []):
        if precision not in DTYPES:
            raise ValueError(f"precision={precision} is not one of {', '.join(DTYPES)}")
    for seed in axes["seed"]:
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed}: takes an integer from 0 to 2^32 - 1")
