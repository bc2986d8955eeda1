"""Schedules against their formulas."""

import math

import numpy as np
import optax
from hypothesis import given
from hypothesis import strategies as st

from bpresearch import optim
from bpresearch.optim import schedules

STEPS = st.integers(1, 300)


def table(schedule, steps):
    return schedules.table(schedule(steps), steps)


@given(STEPS)
def test_constant_is_one(steps):
    np.testing.assert_array_equal(table(schedules.constant, steps), np.ones(steps, np.float32))


@given(STEPS)
def test_cosine_is_half_of_one_plus_the_cosine(steps):
    expected = [(1 + math.cos(math.pi * t / steps)) / 2 for t in range(steps)]
    np.testing.assert_allclose(table(schedules.cosine, steps), expected, atol=1e-6)


@given(STEPS)
def test_exponential_falls_by_the_same_factor_at_every_step(steps):
    expected = [0.01 ** (t / steps) for t in range(steps)]
    np.testing.assert_allclose(table(schedules.exponential, steps), expected, rtol=1e-5)


def test_step_falls_tenfold_at_one_half_and_at_three_quarters():
    found = table(schedules.step, 100)
    np.testing.assert_allclose(found[[0, 49, 51, 74, 76, 99]], [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)


@given(STEPS)
def test_warm_up_rises_evenly_to_one_and_then_follows_the_cosine(steps):
    found = table(schedules.warmup_cosine, steps)
    rising = max(1, round(0.1 * steps))
    np.testing.assert_allclose(found[0], 1 / rising, rtol=1e-5)
    assert (np.diff(found[:rising]) > 0).all()
    if steps > rising + 1:
        falling = steps - rising
        expected = [(1 + math.cos(math.pi * t / falling)) / 2 for t in range(falling)]
        np.testing.assert_allclose(found[rising:], expected, atol=1e-5)
    assert found.max() <= 1 + 1e-6


@given(STEPS)
def test_every_schedule_is_positive_until_the_end(steps):
    for name in ("constant", "step", "exponential", "cosine", "warmup_cosine"):
        assert (table(getattr(schedules, name), steps) > 0).all()


def test_hyperparameters_are_read_off_the_signature():
    assert optim.hyperparameters(optim.sgd) == ()
    assert optim.hyperparameters(optim.nesterov) == ("momentum",)
    assert "b1" in optim.hyperparameters(optax.adam)
    assert optim.hyperparameters(optax.adam, required=True) == ()
