"""Whether axes and runs fit the experiment; what does not is refused in one line."""

from bpresearch.distribution import Uniform
from bpresearch.optim import hyperparameters
from bpresearch.platform import DTYPES
from bpresearch.sweep.axes import Axes
from bpresearch.sweep.description import label
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
