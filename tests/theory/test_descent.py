"""The learning rate of the lowest loss, between those that were tried."""

import numpy as np
import pytest

from bpresearch.theory.descent import lowest


def test_of_a_parabola_in_the_logarithms_the_lowest_point_comes_out():
    rates = np.geomspace(0.01, 1, 6)
    losses = np.exp(0.3 + 0.5 * (np.log(rates) - np.log(0.07)) ** 2)
    assert lowest(rates, losses) == pytest.approx((0.07, np.exp(0.3)))


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0, 2.0, 3.0], (0.1, 1.0)),
        ([3.0, 2.0, 1.0], (10.0, 1.0)),
        ([3.0, 2.0, np.nan], (1.0, 2.0)),
        ([np.nan, 2.0, 3.0], (1.0, 2.0)),
    ],
)
def test_at_an_end_or_beside_a_divergence_it_is_the_best_rate_itself(losses, expected):
    assert lowest(np.array([0.1, 1.0, 10.0]), np.array(losses)) == expected
