"""Seconds a step: measured in turn, each program once, and of the training that a sweep does."""

import jax
import numpy as np
import pytest

from bpresearch import optim, statistics, sweep
from bpresearch.sweep import seconds
from tests.sweep.toy import axes, experiment


@pytest.fixture
def clock(monkeypatch):
    """Programs that take a made-up time: a second a step by sgd and 3 by momentum, on a slowing machine."""
    now, turns = [0.0], []

    def made_up(_, settings):
        name = settings["optimizer"].__name__
        cost = {"sgd": 1.0, "momentum": 3.0}[name]

        def program(count, *_):
            now[0] += cost * seconds.STEPS * count * (1 + 0.001 * len(turns))
            turns.append((name, int(count)))

        return program, None, None

    monkeypatch.setattr(seconds, "_program", made_up)
    monkeypatch.setattr(seconds.time, "perf_counter", lambda: now[0])
    return turns


def test_settings_take_turns_each_program_once_a_round(clock):
    runs = sweep.expand(axes(), experiment().model)
    times = sweep.seconds_per_step(experiment(), runs, rounds=5, seconds=60.0)
    by_name = {run["optimizer"].__name__: time for run, time in zip(runs, times, strict=True)}
    assert len({id(time) for time in times}) == 2  # eight settings of two programs
    assert by_name["sgd"].median == pytest.approx(1, rel=0.02)
    assert by_name["momentum"].median == pytest.approx(3, rel=0.02)
    assert by_name["sgd"].low <= by_name["sgd"].median <= by_name["sgd"].high
    rounds = clock[4:]  # the first two of each warm up and tell how long it takes
    names = [name for name, _ in rounds]
    assert all(set(pair) == {"sgd", "momentum"} for pair in zip(names[::2], names[1::2], strict=True))
    assert set(names[::2]) == {"sgd", "momentum"}  # neither always goes first
    assert dict(rounds) == {"sgd": 6, "momentum": 2}  # about a minute each


def test_the_best_settings_of_a_sweep_are_timed_and_the_program_is_that_of_training(tmp_path):
    task, listed = experiment(), axes(optimizer=optim.sgd, seed=[0])
    del listed["momentum"]
    results = sweep.run(task, listed, quiet=True)
    runs = sweep.expand(listed, task.model)
    times = sweep.time_best_settings(task, runs, results, rounds=1, seconds=0.001)
    assert set(times) == set(statistics.best_settings(results))
    assert all(0 < time.low <= time.median <= time.high for time in times.values())
    program, run, inputs = seconds._program(task, runs[0])
    after = program(np.int32(1), run, inputs)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, run.params)
    assert all(jax.tree.leaves(changed)) and all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params)
    )
