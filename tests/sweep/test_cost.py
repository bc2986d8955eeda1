"""What a sweep will take, from a rehearsal of its first steps."""

import numpy as np
import pytest

from bpresearch import models, optim, sweep
from bpresearch.optim import schedules
from bpresearch.sweep.cost import Rehearsal, seconds_in_words
from tests.sweep.toy import axes, dataset, experiment


def test_there_is_an_estimate_of_each_program():
    axis = axes(optimizer=optim.momentum, model=[models.mlp, models.linear], lr=[0.1, 0.01, 0.001])
    found = sweep.estimate(experiment(model_options={}), axis, layout="map")
    assert [one.program.split(", ")[0] for one in found] == ["optimizer=momentum"] * 2
    assert {"model=mlp" in one.program for one in found} == {True, False}
    assert [(one.runs, one.together, one.width) for one in found] == [(12, 16, 1)] * 2
    assert all(one.memory > 0 and one.seconds > 0 for one in found)
    assert found[0].memory > found[1].memory  # the perceptron has more weights


def test_a_rehearsal_trains_every_run_as_a_sweep_does(monkeypatch):
    monkeypatch.setattr("bpresearch.sweep.layout.RUNS_IN_A_BLOCK", 2)
    task, axis = experiment(), axes(optimizer=optim.momentum)
    runs = sweep.expand(axis, task.model)
    rehearsal = Rehearsal(task, runs, layout="map")
    assert rehearsal.program.size == 2 and len(rehearsal.blocks) == 4
    assert rehearsal.seconds(first_segment_only=True) > 0
    assert not rehearsal.group["finished"][:].any()
    assert rehearsal.steps_per_second() > 0
    expected = sweep.run(task, axis, quiet=True, layout="map").train_loss
    np.testing.assert_array_equal(rehearsal.group["train_loss"][:], expected)


def test_a_task_is_estimated_as_an_experiment_with_its_defaults():
    task = sweep.Task(dataset(), models.linear, experiment().loss)
    one = sweep.grid(optimizer=optim.sgd, schedule=schedules.constant, lr=0.1, batch_size=10, seed=0)
    (found,) = sweep.estimate(task, one)
    assert (found.runs, found.program.split(", ")[0]) == (1, "optimizer=sgd") and found.seconds > 0


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (40.0, "40 s"), (720.0, "12 min"), (12600.0, "3.5 h")]
)
def test_times_in_words(seconds, words):
    assert seconds_in_words(seconds) == words
