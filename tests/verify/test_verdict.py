"""Right, wrong or undecided: the one rule, and how often it is mistaken."""

import numpy as np
import pytest

from bpresearch.verify.report import Report, Row
from bpresearch.verify.verdict import Estimates, conclude, decide, limit

ONE = np.ones(4)


def estimates(found, values, sizes=None, scale=1.0, oracle="autodiff", **options):
    measure = None if sizes is None else lambda rounds: (np.broadcast_to(sizes, np.shape(found)), 5 * rounds)
    found, values = np.asarray(found, float), np.asarray(values, float)
    return Estimates(oracle, "x", found.shape, found, values, scale, measure=measure, **options)


def verdict(*args, **options):
    return decide(estimates(*args, **options)).row.passed


def never(rounds):
    raise AssertionError("what agrees is not measured")


def test_what_agrees_far_below_the_smallest_fault_is_right_without_measuring():
    made = Estimates("autodiff", "x", (4,), ONE * (1 + 1e-11), ONE, 1.0, measure=never)
    assert decide(made).row.passed is True


@pytest.mark.parametrize(("apart", "size", "passed"), [
    (1e-6, 1e-12, False),  # the smallest fault that is claimed
    (1e-6, 1e-6, True),  # a spread as large: rounding
    (1e-2, 1e-2, None),  # no excuse: so large a spread resolves nothing
    (2.0, 1e-2, False),  # but this is far beyond it
])  # fmt: skip
def test_a_difference_is_judged_by_its_spread(apart, size, passed):
    assert verdict(ONE + apart, ONE, sizes=size) is passed


def test_zero_within_its_uncertainty_is_decided_by_two_oracles():
    found, values = 1e-17 * ONE, -2e-17 * ONE
    first = decide(estimates(found, values, sizes=1e-17, scale=2e-17))
    assert first.row.passed is None and first.zero
    other = decide(estimates(found, 1e-12 * ONE, scale=1.0, oracle="finite differences", uncertainty=1e-11))
    assert other.row.passed is True
    vague = estimates(found, 1e-12 * ONE, scale=1e-12, oracle="finite differences", uncertainty=1e-11)
    assert [row.passed for row in conclude([first])] == [None]
    assert [row.passed for row in conclude([first, decide(vague)])] == [True, True]


def test_a_nan_silences_an_oracle_at_that_element_only():
    values = np.array([1.0, np.nan, 1.0, 1.0])
    assert verdict(ONE, values) is True
    assert verdict(np.array([2.0, 1.0, 1.0, 1.0]), values) is False
    assert verdict(ONE, np.full(4, np.nan)) is None


def test_a_nan_in_the_derivative_is_wrong_where_the_oracle_is_finite():
    found = np.array([1.0, np.nan, 1.0, 1.0])
    made = decide(estimates(found, ONE, elements=True))
    assert made.row.passed is False and made.row.worst[0] == (1,)
    assert verdict(found, np.array([1.0, np.nan, 1.0, 1.0])) is True


def test_a_tolerance_passes_whatever_the_cause():
    assert decide(estimates(ONE * 1.00005, ONE, sizes=0.0), 1e-4).row.passed is True
    assert decide(estimates(ONE * 1.0005, ONE, sizes=0.0), 1e-4).row.passed is False


def test_a_complex_step_alone_is_silenced():
    rows = conclude([
        decide(estimates(ONE, ONE)),
        decide(estimates(ONE, ONE, oracle="finite differences")),
        decide(estimates(ONE, 2 * ONE, oracle="complex step")),
    ])  # fmt: skip
    assert [row.passed for row in rows] == [True, True, None]


@pytest.mark.parametrize("elements", [1, 100, 10_000])
def test_rounding_is_hardly_ever_called_wrong_and_ten_spreads_always(elements):
    """Normal errors of both sides, measured with few lanes first, with more where those leave a doubt."""
    rng = np.random.default_rng()
    alarms = missed = 0
    for _ in range(40):

        def measure(rounds):
            moved = rng.normal(size=(5 * rounds, elements)) * np.sqrt(2)
            return np.sqrt(np.mean(moved**2, axis=0)), 5 * rounds

        noise = rng.normal(size=elements) - rng.normal(size=elements)
        for fault in (0.0, 1.0):
            found = 1e7 + noise
            found[0] += fault * 14 * np.sqrt(2)
            made = Estimates(
                "autodiff",
                "x",
                (elements,),
                found,
                np.full(elements, 1e7),
                1e7,
                measure=measure,
                agreement=0.0,
            )
            passed = decide(made).row.passed
            alarms += fault == 0 and passed is False
            missed += fault > 0 and passed is not False
    assert (alarms, missed) == (0, 0)


def test_the_limit_is_students_t():
    assert limit(5, 1) > limit(40, 1) > 4
    assert limit(40, 10_000) < 10


@pytest.mark.parametrize(("passed", "whole"), [
    ([True, True], True), ([True, None], True), ([None, None], None), ([True, False], False), ([], None),
])  # fmt: skip
def test_a_leaf_that_no_oracle_resolved_leaves_the_report_undecided(passed, whole):
    oracles = ("autodiff", "finite differences")
    rows = [Row("x", (), oracle, 0.0, 1e-9, p) for oracle, p in zip(oracles, passed, strict=False)]
    assert Report(tuple(rows)).passed is whole
    other = Row("y", (), "autodiff", 0.0, 1e-9, None)
    assert Report((*rows, other)).passed is (False if whole is False else None)
