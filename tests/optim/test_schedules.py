"""Schedules against their formulas."""

import functools
import inspect
import math

import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpresearch.optim import schedules

STEPS = st.sampled_from([1, 2, 3, 7, 40])  # a shape compiles once


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


ALL = [getattr(schedules, name) for name in schedules.__all__]


@pytest.mark.parametrize("schedule", ALL)
def test_every_schedule_is_a_positive_multiple_of_its_peak(schedule):
    for steps in (1, 2, 3, 7, 40):
        found = table(schedule, steps)
        assert found.shape == (steps,) and np.isfinite(found).all()
        assert (found > 0).all() and found.max() <= 1 + 1e-6


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("warmup", [0.05, 0.5, 0.95])
def test_any_part_of_a_training_can_be_warm_up(schedule, warmup):
    found = table(schedules.warmed(schedule, warmup), 40)
    assert np.isfinite(found).all() and (found > 0).all() and found.max() <= 1 + 1e-6
    if schedule is not schedules.momentum_onecycle and "onecycle" not in schedule.__name__:
        rising = round(warmup * 40)
        np.testing.assert_allclose(found[: rising + 1], np.linspace(1 / rising, 1, rising + 1), rtol=1e-5)


def test_warm_up_is_followed_by_the_whole_schedule():
    found = table(schedules.warmed(schedules.cosine, 0.25), 40)
    np.testing.assert_allclose(found[10:], table(schedules.cosine, 30), rtol=1e-6)
    np.testing.assert_allclose(found, table(schedules.warmed(schedules.warmup_cosine, 0.25), 40), atol=1e-6)
    np.testing.assert_array_equal(table(schedules.warmed(schedules.linear, 0), 9), table(schedules.linear, 9))


def test_the_other_schedules_follow_their_formulas():
    t = np.arange(40)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(table(schedules.linear, 40), 1 - t / 40)
    close(table(schedules.polynomial, 40), (1 - t / 40) ** 2)
    close(table(schedules.inverse_sqrt, 40)[4:], np.sqrt(4 / t[4:]))
    close(table(schedules.warmup_exponential, 40)[4:], 0.01 ** ((t[4:] - 4) / 36))
    close(table(schedules.warmup_constant, 40)[4:], np.ones(36))
    stable = table(schedules.warmup_stable_decay, 40)
    close(stable[4:32], np.ones(28))
    close(stable[32:], 1 - np.arange(8) / 8)
    close(table(schedules.piecewise_linear, 40)[:21], np.linspace(1, 0.1, 21))
    restarts = table(schedules.cosine_restarts, 70)
    close(restarts[[0, 10, 30]], np.ones(3))
    close(restarts[10:30], (1 + np.cos(np.pi * np.arange(20) / 20)) / 2)
    rise = table(schedules.cosine_onecycle, 40)
    close(rise[[0, 12]], [0.04, 1])
    close(rise[:13], 0.52 - 0.48 * np.cos(np.pi * np.arange(13) / 12))
    close(table(schedules.momentum_onecycle, 40), 1 - 0.1 * rise)
    straight = table(schedules.linear_onecycle, 40)
    close(straight[:25], np.concatenate([np.linspace(0.04, 1, 13), np.linspace(1, 0.04, 13)[1:]]))


def test_every_schedule_of_optax_is_here():
    built = {
        "constant_schedule": schedules.constant,
        "cosine_decay_schedule": schedules.cosine,
        "cosine_onecycle_schedule": schedules.cosine_onecycle,
        "exponential_decay": schedules.exponential,
        "linear_onecycle_schedule": schedules.linear_onecycle,
        "linear_schedule": schedules.linear,
        "piecewise_constant_schedule": schedules.step,
        "piecewise_interpolate_schedule": schedules.piecewise_linear,
        "polynomial_schedule": schedules.polynomial,
        "sgdr_schedule": schedules.cosine_restarts,
        "warmup_constant_schedule": schedules.warmup_constant,
        "warmup_cosine_decay_schedule": schedules.warmup_cosine,
        "warmup_exponential_decay_schedule": schedules.warmup_exponential,
    }
    not_schedules = {"inject_hyperparams", "inject_stateful_hyperparams", "join_schedules"}
    functions = {name for name, value in vars(optax.schedules).items() if inspect.isfunction(value)}
    assert functions == {*built, *not_schedules}
    assert {function.__name__ for function in built.values()} <= set(schedules.__all__)
