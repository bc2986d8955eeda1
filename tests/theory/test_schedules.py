"""The convex bound of a schedule: against its formula term by term, published figures, a convex function."""

import numpy as np
import pytest

from bpresearch.optim import schedules as optax_schedules
from bpresearch.theory import schedules


def by_hand(eta, rate, distance, length):
    """The theorem's sums, term by term."""
    steps = len(eta)
    first = (distance**2 + rate**2 * length**2 * sum(e**2 for e in eta)) / (2 * rate * sum(eta))
    rest = sum(
        eta[k] / sum(eta[k + 1 :]) * sum(length**2 * e**2 for e in eta[k:]) / sum(eta[k:])
        for k in range(steps - 1)
    )
    return first + rate / 2 * rest


@pytest.mark.parametrize("rate", [0.1, 2.0])
def test_the_bound_is_the_theorems_sum(rate):
    eta = np.random.default_rng(0).uniform(0.1, 1, 13)
    found = schedules.bound(eta, distance=3.0, length=0.5)
    assert found.at(rate) == pytest.approx(by_hand(eta, rate, 3.0, 0.5), rel=1e-12)
    assert found.at(found.rate) == pytest.approx(found.least) and found.least <= found.at(rate)


@pytest.mark.parametrize(
    ("schedule", "at_400", "at_6400"),
    [
        (optax_schedules.constant, 2.75, 3.22), (optax_schedules.linear, 2.01, 2.00),
        (optax_schedules.cosine, 2.07, 2.06), (schedules.stable_decay, 2.18, 2.16),
        (schedules.stable_sqrt, 2.14, 2.13),
    ],
)  # fmt: skip
def test_the_published_figures_come_out(schedule, at_400, at_6400):
    for steps, known in ((400, at_400), (6400, at_6400)):
        least = schedules.bound(optax_schedules.table(schedule(steps), steps)).least
        assert least * steps**0.5 == pytest.approx(known, abs=0.0051)


def test_stable_schedules_end_above_zero_and_want_half_of_cosines_peak():
    tables = [optax_schedules.table(s(50), 50) for s in (schedules.stable_decay, schedules.stable_sqrt)]
    for eta in tables:
        assert (eta[:40] == 1).all() and (np.diff(eta[39:]) < 0).all() and eta[-1] > 0
    peaks = [
        schedules.bound(eta).rate for eta in (*tables, optax_schedules.table(optax_schedules.cosine(50), 50))
    ]
    assert peaks[0] / peaks[2] == pytest.approx(0.53, abs=0.02)


def test_it_holds_for_a_convex_function_and_small_problems_know_their_minimum():
    problem = schedules.AbsoluteErrors(dimension=3, runs=50)
    assert problem.final_excess(np.zeros(1)) > 0.05
    for schedule in (optax_schedules.constant, optax_schedules.linear):
        eta = optax_schedules.table(schedule(100), 100)
        least = schedules.bound(eta)
        assert 0 < problem.final_excess(least.rate * eta) < least.least


def test_a_step_without_length_is_refused():
    with pytest.raises(ValueError, match="step 1 of the schedule is 0"):
        schedules.bound(np.array([1.0, 0.0, 1.0]))
