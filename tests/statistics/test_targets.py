"""Steps to a target."""

import numpy as np
import pytest
import xarray as xr

from bpresearch import statistics


@pytest.fixture
def rising(made_up):
    """Accuracies that rise to 0.6 at a step that is known: 40 for SGD, 20 or (at rate 1) 30 for momentum."""
    results = made_up(schedules=("constant",), rates=(0.1, 1.0)).drop_dims("eval_step")
    steps = np.arange(0, 50, 10)
    momentum, high = results.optimizer.values == "momentum", results.lr.values == 1.0
    reached = np.where(momentum, np.where(high, 30, 20), np.where(high, np.inf, 40))
    accuracy = np.where(steps >= reached[:, None], 0.6, 0.1)
    variables = {f"{part}_{kind}": (("run", "eval_step"), accuracy if kind == "accuracy" else 1 - accuracy)
                 for part in ("valid", "test") for kind in ("loss", "accuracy")}  # fmt: skip
    return results.merge(xr.Dataset(variables, {"eval_step": steps}))


def test_the_fastest_setting_of_each_is_found(rising):
    found = statistics.steps_to_target(rising, 0.5)
    assert {name: speed.steps.tolist() for name, speed in found.items()} == {
        "sgd": [40.0] * 3,
        "momentum": [20.0] * 3,
    }
    assert found["momentum"].setting.values["lr"] == 0.1


def test_losses_fall_to_their_target(rising):
    losses = rising.drop_vars(["valid_accuracy", "test_accuracy"])
    assert statistics.steps_to_target(losses, 0.5)["momentum"].steps.tolist() == [20.0] * 3
    assert statistics.target_of(losses) == pytest.approx(0.4)


def test_a_target_out_of_reach_takes_for_ever(rising):
    assert np.isnan(statistics.steps_to_target(rising, 0.9)["sgd"].steps).all()


def test_the_target_is_what_the_worst_reaches(made_up):
    assert statistics.target_of(made_up()) == pytest.approx(0.51)
    assert np.isnan(statistics.target_of(made_up(diverged=lambda *run: True)))
