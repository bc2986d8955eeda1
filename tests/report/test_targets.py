"""Pictures of a preset target."""

from bpresearch.report import pictures, targets
from bpresearch.report.sweeps import Sweep, Sweeps
from bpresearch.statistics import Target


def test_an_optimizer_has_the_colour_that_it_has_elsewhere_though_another_is_sooner(made_up):
    """By name, momentum is the better one of the made-up results."""
    sweeps = Sweeps([Sweep("made up", made_up(), 0, {}, {})], target=Target("accuracy", 0.55))
    frame, others = targets.time_to_target(sweeps).data, pictures.loss_curves(sweeps).data
    assert (
        list(dict.fromkeys(frame.optimizer)) == list(dict.fromkeys(others.optimizer)) == ["sgd", "momentum"]
    )
