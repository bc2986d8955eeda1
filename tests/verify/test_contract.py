"""What a gradient program promises beside its values."""

import numpy as np
import pytest

from bpresearch.verify.contract import difference


@pytest.mark.parametrize(("found", "expected", "error"), [
    ([np.array([1.0, 2.0])], [np.array([1.0, 2.0])], 0.0),
    ([np.array([1.0, 2.5])], [np.array([1.0, 2.0])], 0.25),
    ([np.array([2.0]), np.array([0.011])], [np.array([2.0]), np.array([0.01])], 0.1),
    ([np.array([0.1])], [np.array([0.0])], np.inf),
])  # fmt: skip
def test_a_difference_is_relative_to_its_leaf(found, expected, error):
    assert difference(found, expected) == pytest.approx(error)


def test_rounding_of_a_derivative_that_is_zero_is_no_difference():
    """As of a bias in front of a normalization."""
    found, expected = [np.array([1.0]), np.array([3e-17])], [np.array([1.0]), np.array([-5e-17])]
    assert difference(found, expected) < 1e-10
