"""What a gradient program promises beside its values, and how two of its answers are compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch import verify
from bpresearch.verify.comparison import largest_error


@pytest.mark.parametrize(("found", "expected", "error"), [
    ([np.array([1.0, 2.0])], [np.array([1.0, 2.0])], 0.0),
    ([np.array([1.0, 2.5])], [np.array([1.0, 2.0])], 0.25),
    ([np.array([2.0]), np.array([0.011])], [np.array([2.0]), np.array([0.01])], 0.1),
    ([np.array([0.1])], [np.array([0.0])], np.inf),
    ([np.array([np.nan, 1.0])], [np.array([np.nan, 1.0])], 0.0),
    ([np.array([np.nan, 1.0])], [np.array([2.0, 1.0])], np.inf),
])  # fmt: skip
def test_an_error_is_relative_to_its_leaf(found, expected, error):
    assert largest_error(found, expected) == pytest.approx(error)


def test_rounding_of_a_derivative_that_is_zero_is_no_error():
    """As of a bias in front of a normalization: both values are as large as rounding moves them."""
    found, expected = [np.array([1.0]), np.array([3e-17])], [np.array([1.0]), np.array([-5e-17])]
    assert largest_error(found, expected) > 1
    assert largest_error(found, expected, [1e-16, 5e-17]) < 1e-10


@pytest.mark.parametrize("size", [1e-6, 1e-9, 1e-12])
def test_a_small_leaf_is_no_excuse(size):
    """Relative to the largest leaf such an error is nothing; rounding would not move the leaf so far."""
    found, expected = [np.array([1.0]), np.array([size * 1.01])], [np.array([1.0]), np.array([size])]
    assert largest_error(found, expected, [1e-16, 1e-16 * size]) == pytest.approx(0.01)
    assert largest_error(found, expected, 1e-16) > 1e-10


@pytest.mark.parametrize("order", [1, 2])
def test_nothing_but_an_empty_argument(order):
    @jax.custom_vjp
    def total(x):
        return jnp.sum(x**2)

    total.defvjp(lambda x: (total(x), x), lambda x, y_bar: (2 * x * y_bar,))
    report = verify.function(total, np.zeros((0, 3)), order=order)
    assert report.passed, str(report)
