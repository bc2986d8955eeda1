"""Optimizers and learning-rate schedules."""

from collections.abc import Collection

from bpresearch.optim import adaptive, mup, optimizers, parameter_free, schedule_free, schedules
from bpresearch.optim import muon as _muon
from bpresearch.optim import soap as _soap
from bpresearch.optim.adaptive import *  # noqa: F403
from bpresearch.optim.evaluation import averaged, evaluation_params
from bpresearch.optim.groups import frozen, grouped
from bpresearch.optim.muon import *  # noqa: F403
from bpresearch.optim.optimizers import *  # noqa: F403
from bpresearch.optim.optimizers import Optimizer, clipped, decayed, decoupled, hyperparameters
from bpresearch.optim.parameter_free import *  # noqa: F403
from bpresearch.optim.quotient import (
    quotient_element,
    quotient_global,
    quotient_layer,
    quotient_update,
)
from bpresearch.optim.schedule_free import *  # noqa: F403
from bpresearch.optim.soap import *  # noqa: F403

BY_NAME: dict[str, Optimizer] = {
    name: getattr(module, name)
    for module in (optimizers, adaptive, _muon, parameter_free, schedule_free, _soap)
    for name in module.__all__
}
"""Every optimizer by its name; adding a function to its file's `__all__` adds it everywhere."""

OPTIONS = {
    "weight_decay": decayed,
    "decoupled_decay": decoupled,
    "decay_mask": grouped,
    "lr_multipliers": grouped,
    "clip_norm": clipped,
    "frozen": frozen,
    "average": averaged,
}
"""What any optimizer can be given: hyper-parameters by name, and what gives an optimizer each, from the
innermost to the outermost."""


def with_options(optimizer: Optimizer, names: Collection[str]) -> Optimizer:
    """The optimizer with more hyper-parameters in its signature, of those in `OPTIONS`.

    `average` brings `steps` with it: the number of updates of the run, which training knows.

    >>> hyperparameters(with_options(bp.optim.sgd, ["frozen", "weight_decay", "decay_mask"]))
    ('weight_decay', 'lr_multipliers', 'decay_mask', 'frozen')

    Args:
        optimizer: as in `BY_NAME`, or a function of the same form.
        names: of the options, in any order.
    """
    for option in dict.fromkeys(OPTIONS[name] for name in OPTIONS if name in names):
        optimizer = option(optimizer)
    return optimizer


__all__ = [
    *BY_NAME,
    "BY_NAME",
    "OPTIONS",
    "Optimizer",
    "averaged",
    "clipped",
    "decayed",
    "decoupled",
    "evaluation_params",
    "frozen",
    "grouped",
    "hyperparameters",
    "mup",
    "quotient_element",
    "quotient_global",
    "quotient_layer",
    "quotient_update",
    "schedules",
    "with_options",
]
