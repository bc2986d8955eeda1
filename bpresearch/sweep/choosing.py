"""What settings are chosen by: one metric, on the examples held out for that."""

from collections.abc import Collection
from typing import NamedTuple

from bpresearch.sweep.axes import Axes, first_values
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.population import measured_variables


class Choice(NamedTuple):
    """The variable of the results that settings are chosen by, and whether larger is better."""

    variable: str
    maximize: bool

    def format(self, value: float) -> str:
        """A value of it, in a few characters."""
        return f"{100 * value:.1f} %" if self.variable.partition("_")[2] == "accuracy" else f"{value:.4g}"


def choice_of(experiment: Experiment, measured: Collection[str]) -> Choice:
    """What `experiment.choose` says, of the variables that evaluations measure.

    >>> from bpresearch.sweep import Experiment
    >>> task = Experiment(bp.data.load("spirals"), bp.models.mlp, lambda model, batch: 0.0, choose="-calls")
    >>> choice_of(task, ["valid_loss", "valid_calls"])
    Choice(variable='valid_calls', maximize=False)

    Raises:
        ValueError: there is no such metric.
    """
    part = experiment.choosing_part
    names = [name.removeprefix(f"{part}_") for name in measured if name.startswith(f"{part}_")]
    choose = experiment.choose or ("accuracy" if "accuracy" in names else "loss")
    name = choose.removeprefix("-")
    if name not in names:
        raise ValueError(f"choose={choose}: evaluations measure {', '.join(names)}")
    return Choice(f"{part}_{name}", not choose.startswith("-") and name != "loss")


def choice_before(experiment: Experiment, axes: Axes) -> Choice:
    """The same before there is a run: the variables are those of runs with the first value on each axis."""
    first = first_values(axes)
    of_first = experiment.of(first)
    return choice_of(experiment, measured_variables(of_first, first, of_first.examples()))
