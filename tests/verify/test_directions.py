"""How probable it is that a wrong element is not seen, against counting."""

import jax
import numpy as np
import pytest

from bpresearch.verify.directions import along, choose_directions


@pytest.mark.parametrize("errors", [[1.0], [1.0, 1.0], [1.0, -1.0, 0.5], [1.0] + [0.1] * 20])
def test_a_direction_misses_an_element_with_probability_one_half_at_most(errors):
    """An error with an element of 1 shows as less than 1 in at most half of all directions."""
    error = np.zeros(500)
    error[: len(errors)] = errors
    directions = choose_directions([500], missed=2.0**-400)
    with jax.enable_x64(True):
        point = [jax.numpy.zeros(500)]
        signs = np.asarray(along(directions, point, 0, lambda d, leaf, number: d[0]))
    assert signs.shape == (400, 500)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    missed = np.mean(np.abs(signs @ error) < 1)
    assert missed <= 0.5 + 4 * np.sqrt(0.25 / 400)
    assert missed == 0 or len(errors) > 1


@pytest.mark.parametrize(("missed", "count"), [(0.5, 1), (1e-3, 10), (1e-6, 20)])
def test_number_of_directions_follows_from_the_probability(missed, count):
    directions = choose_directions([1000, 5], missed=missed)
    assert directions.of(0).sum() == count
    assert directions.describe(0).startswith(f"{count} random directions")
    assert directions.describe(1) == "every coordinate (5)"
    assert directions.in_every_coordinate(1)


def test_directions_move_one_leaf_only():
    directions = choose_directions([2, 3], every_coordinate_up_to=4)
    with jax.enable_x64(True):
        point = [jax.numpy.zeros((2, 1)), jax.numpy.zeros(3)]
        first, second = along(directions, point, 0, lambda d, leaf, number: d)
    np.testing.assert_array_equal(np.concatenate([first.reshape(5, 2), second], axis=1), np.eye(5))
