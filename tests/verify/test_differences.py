"""Long leaves in every coordinate: one wrong element among thousands is found, kinks included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch.verify.differences import LONG, judge, measure
from bpresearch.verify.directions import choose_directions

RNG = np.random.default_rng(0)
W, X = RNG.normal(size=(40, 30)), RNG.normal(size=(3, 40))
W[7] = 0  # then some of relu's arguments do not depend on it


def loss(point, x):
    return jnp.sum(jnp.square(jax.nn.relu(jnp.sin(x @ point[0]))))


def gradient():
    z = np.sin(X @ W)
    return X.T @ (2 * np.maximum(z, 0) * np.cos(X @ W))


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_every_coordinate_of_a_long_leaf(float64, factor):
    assert W.size > LONG
    found = gradient()
    largest = np.unravel_index(np.argmax(np.abs(found)), found.shape)
    found[largest] *= factor
    directions = choose_directions([W.size], every_coordinate_up_to=W.size)
    answer = measure(loss, [jnp.asarray(W)], [found], directions, others=(jnp.asarray(X),))
    np.testing.assert_allclose(answer["estimate"], gradient().ravel(), atol=1e-7)
    (verdict,) = judge([W.size], [np.linalg.norm(found)], directions, answer, float(answer["here"][0]))
    assert verdict.passed is (factor == 1)
    assert verdict.detail.startswith("every coordinate (1200)")
    assert np.argmax(np.abs(answer["estimate"] - answer["predicted"])) == np.ravel_multi_index(
        largest, W.shape
    ) or (factor == 1)


def test_a_leaf_whose_differences_are_not_numbers_is_undecided():
    directions = choose_directions([2], every_coordinate_up_to=2)
    answer = measure(
        lambda point, _: jnp.sum(point[0]) * jnp.nan, [jnp.ones(2)], [np.ones(2)], directions, others=(0.0,)
    )
    assert np.isnan(answer["estimate"]).all()
    (verdict,) = judge([2], [1.0], directions, answer, 0.0)
    assert verdict.passed is None and "2 unresolved" in verdict.detail


def test_all_devices_find_what_one_does(float64):
    assert len(jax.local_devices()) > 1
    directions = choose_directions([W.size], every_coordinate_up_to=W.size)
    found = [
        measure(loss, [jnp.asarray(W)], [gradient()], directions, others=(others,), spread=spread)
        for spread, others in ((False, X), (True, X), (True, jax.device_put(X, jax.local_devices()[1])))
    ]
    for name, values in found[0].items():
        for other in found[1:]:
            np.testing.assert_allclose(other[name], values, rtol=1e-6, atol=1e-9, err_msg=name)
