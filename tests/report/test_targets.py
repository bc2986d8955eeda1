"""Pictures of a preset target."""

from bpresearch.report import pictures, targets
from bpresearch.report.sweeps import Sweep, Sweeps
from bpresearch.statistics import Target


def test_an_optimizer_has_the_colour_that_it_has_elsewhere_though_another_is_sooner(made_up):
    """By name, momentum is the better one of the made-up results."""
    sweeps = Sweeps([Sweep("made up", made_up(), 0, {}, {})], target=Target("accuracy", 0.55))
    for picture in (targets.time_to_target, pictures.loss_curves):
        layers = picture(sweeps).to_dict()["spec"]["layer"]
        names = [layer["encoding"].get("color", {}).get("scale", {}).get("domain") for layer in layers]
        assert ["sgd", "momentum"] in names
