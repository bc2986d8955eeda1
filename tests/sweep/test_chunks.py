"""What a program is given for each step."""

import numpy as np

from bpresearch import models, optim, sweep
from bpresearch.data import Dataset
from bpresearch.optim import schedules
from bpresearch.sweep.axes import expand, group_of
from bpresearch.sweep.chunks import tables
from bpresearch.sweep.options import constants


def experiment(steps):
    x, y = np.zeros((20, 2), np.float32), np.zeros((20, 1), np.float32)
    data = Dataset(name="toy", x=x, y=y, x_test=x, y_test=y, classes=None, description="")
    return sweep.Experiment(data, models.linear, lambda outputs, targets: outputs - targets, steps=steps)


def settings(**axes):
    base = {"optimizer": optim.momentum, "schedule": schedules.cosine, "lr": 0.1, "momentum": 0.8}
    return expand(sweep.grid(**(base | {"batch_size": 5, "seed": 0} | axes)), models.linear)


def test_a_table_holds_the_peak_times_the_schedule_at_each_step():
    found = tables(experiment(40), settings(lr=[0.1, 0.2]))
    cosine = (1 + np.cos(np.pi * np.arange(40) / 40)) / 2
    np.testing.assert_allclose(found["learning_rate"], [0.1 * cosine, 0.2 * cosine], rtol=1e-6, atol=1e-7)
    assert set(found) == {"learning_rate"}


def test_the_learning_rate_rises_first_for_the_part_that_warmup_says_and_the_momentum_does_not():
    runs = settings(warmup=[0.0, 0.25], momentum_schedule=schedules.linear)
    assert len({group_of(run) for run in runs}) == 1  # schedules are inputs of a program
    found = tables(experiment(40), runs)
    cosine = lambda steps: (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2  # noqa: E731
    expected = [cosine(40), np.concatenate([np.linspace(0.1, 1, 11)[:-1], cosine(30)])]
    np.testing.assert_allclose(found["learning_rate"], 0.1 * np.array(expected), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["momentum"], [0.8 * (1 - np.arange(40) / 40)] * 2, rtol=1e-5)


def test_an_optimizer_that_takes_a_seed_gets_that_of_the_run():
    runs = settings(optimizer=optim.noisy_sgd, seed=[3, 4])
    assert list(constants(runs[0])) == ["seed"]
    assert len({group_of(run) for run in runs}) == 1
