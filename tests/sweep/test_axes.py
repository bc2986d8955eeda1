"""Axes and the runs they make."""

import itertools
import math

import pytest

from bpresearch import models, optim, sweep
from bpresearch.optim import schedules
from bpresearch.sweep.axes import expand, group_of


def axes(**changes):
    base = {
        "optimizer": [optim.sgd, optim.momentum],
        "schedule": schedules.constant,
        "lr": [0.1, 0.01],
    }
    return sweep.grid(**(base | {"momentum": [0.5, 0.9], "batch_size": 10, "seed": range(3)} | changes))


def test_a_single_value_is_an_axis_of_one():
    assert sweep.grid(lr=0.1, seed=range(2), optimizer="sgd") == {
        "lr": [0.1], "seed": [0, 1], "optimizer": ["sgd"],
    }  # fmt: skip


def test_the_sweep_is_the_product_without_what_an_optimizer_does_not_take():
    runs = expand(axes(), models.mlp)
    assert len(runs) == 2 * 3 + 2 * 2 * 3
    for run in runs:
        assert math.isnan(run["momentum"]) == (run["optimizer"] is optim.sgd)
    assert len({tuple(map(repr, run.values())) for run in runs}) == len(runs)


def test_runs_of_one_program_stand_together():
    groups = [group_of(run) for run in expand(axes(batch_size=[10, 20]), models.mlp)]
    changes = sum(before != after for before, after in itertools.pairwise(groups))
    assert changes == len(set(groups)) - 1 == 3


@pytest.mark.parametrize("bad", [{"lr": []}, {"lr": [0.1, 0.1]}])
def test_an_axis_without_value_or_with_one_twice_is_refused(bad):
    with pytest.raises(ValueError, match="axis lr"):
        sweep.grid(**bad)
