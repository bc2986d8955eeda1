"""Long leaves in every coordinate: one wrong element among thousands is found, kinks included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch.verify.differences import LONG, SHARED, judge, measure
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


def test_the_short_way_of_one_leaf_alone(float64):
    x = jnp.linspace(1.0, 2.0, SHARED + 2)
    directions = choose_directions([x.size], every_coordinate_up_to=x.size)
    answer = measure(lambda point: jnp.sum(jnp.log(point[0])), [x], [np.asarray(1 / x)], directions)
    np.testing.assert_allclose(answer["estimate"], 1 / x, rtol=1e-6)
    np.testing.assert_array_equal(answer["predicted"], 1 / x)


@pytest.mark.parametrize("wrong", [None, 0, 1, 2, 4])
def test_leaves_of_every_size_share_the_short_way(float64, wrong):
    """One has a loop of its own, others share one; a scalar and an empty leaf are among them."""
    shapes = [(60, 50), (7,), (50,), (0, 3), ()]
    point = [jnp.asarray(RNG.normal(size=shape)) for shape in shapes]
    assert point[0].size > SHARED >= point[2].size

    def function(point, x):
        kernel, shift, bias, nothing, scale = point
        return scale * jnp.sum(jnp.sin(x @ kernel + bias[None])) + jnp.sum(shift**3) + jnp.sum(nothing)

    x = jnp.asarray(RNG.normal(size=(2, 60)))
    found = [np.array(g) for g in jax.grad(function)(point, x)]
    if wrong is not None:
        found[wrong].flat[-1] += 0.01 * np.linalg.norm(found[wrong])
    sizes = [leaf.size for leaf in point]
    directions = choose_directions(sizes, every_coordinate_up_to=max(sizes))
    answer = measure(function, point, found, directions, others=(x,), spread=True)
    assert not np.array_equal(answer["right"], answer["estimate"]) or wrong is None  # that one climbed
    norms = [float(np.linalg.norm(g)) for g in found]
    verdicts = judge(sizes, norms, directions, answer, float(answer["here"][0]))
    assert [v.passed for v in verdicts] == [index != wrong for index in range(len(point))]


def test_what_rounding_blurs_on_the_short_way_the_ladder_decides(float64):
    """A fault of 2e-6 under a constant of 1e6, whose rounding over a short step hides it."""
    x = jnp.asarray(RNG.normal(size=LONG + 36))
    directions = choose_directions([x.size], every_coordinate_up_to=x.size)
    for factor, right in ((1, True), (1 + 2e-6, False)):
        found = np.array(2 * x)
        found[np.argmax(np.abs(found))] *= factor
        answer = measure(lambda point: jnp.sum(point[0] ** 2) + 1e6, [x], [found], directions)
        (verdict,) = judge([x.size], [float(np.linalg.norm(found))], directions, answer, 1e6)
        assert verdict.passed is right
