"""Long leaves in every coordinate: one wrong element among thousands is found, kinks included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch.verify.oracles.finite_differences import LONG, SHARED, estimates, measure, scales
from bpresearch.verify.verdict import decide

RNG = np.random.default_rng(0)
W, X = RNG.normal(size=(40, 30)), RNG.normal(size=(3, 40))
W[7] = 0  # then some of relu's arguments do not depend on it


def loss(point):
    return [jnp.sum(jnp.square(jax.nn.relu(jnp.sin(X @ point[0]))))]


def gradient():
    z = np.sin(X @ W)
    return X.T @ (2 * np.maximum(z, 0) * np.cos(X @ W))


def asked(question, function, point, found):
    size = max(leaf.size for leaf in point)
    return question(function, lambda point, y_bar: found, point, every=size, found=found)


def verdicts(made, measured):
    return [decide(e).row for e in estimates(made, measured)]


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_every_coordinate_of_a_long_leaf(float64, question, factor):
    assert W.size > LONG
    found = gradient()
    largest = np.unravel_index(np.argmax(np.abs(found)), found.shape)
    found[largest] *= factor
    made = asked(question, loss, [W], [found])
    answer = measure(made, together=True)
    np.testing.assert_allclose(answer["estimate"], gradient().ravel(), atol=1e-7)
    (row,) = verdicts(made, answer)
    assert row.passed is (factor == 1)
    assert row.detail.startswith("every coordinate (1200)")
    worst = np.argmax(np.abs(answer["estimate"] - answer["predicted"]))
    assert worst == np.ravel_multi_index(largest, W.shape) or factor == 1


def test_a_leaf_whose_differences_are_not_numbers_is_undecided(question):
    made = asked(question, lambda point: [jnp.sum(point[0]) * jnp.inf], [np.ones(2)], [np.ones(2)])
    (row,) = verdicts(made, measure(made) | {"estimate": np.full(2, np.nan)})
    assert row.passed is None and "no finite value" in row.detail


def test_all_devices_find_what_one_does(float64, question):
    assert len(jax.local_devices()) > 1
    made = asked(question, loss, [W], [gradient()])
    one, all_ = (measure(made, together=True, spread=spread) for spread in (False, True))
    for name, values in one.items():
        np.testing.assert_allclose(all_[name], values, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("wrong", [None, 0, 2, 4])
def test_leaves_of_every_size_share_the_short_way(float64, question, wrong):
    """One has a loop of its own, others share one; a scalar and an empty leaf are among them."""
    shapes = [(60, 50), (7,), (50,), (0, 3), ()]
    rng = np.random.default_rng(1)
    point = [rng.normal(size=shape) for shape in shapes]
    assert point[0].size > SHARED >= point[2].size
    x = rng.normal(size=(2, 60))

    def function(point):
        kernel, shift, bias, nothing, scale = point
        return [scale * jnp.sum(jnp.sin(x @ kernel + bias[None])) + jnp.sum(shift**3) + jnp.sum(nothing)]

    found = [np.array(g) for g in jax.grad(lambda point: function(point)[0])(list(map(jnp.asarray, point)))]
    if wrong is not None:
        found[wrong].flat[-1] += 0.01 * np.linalg.norm(found[wrong])
    made = asked(question, function, point, found)
    rows = verdicts(made, measure(made, together=True, spread=True))
    assert [row.passed for row in rows] == [index != wrong for index in range(len(point))]


@pytest.mark.parametrize(("factor", "right"), [(1, True), (1 + 2e-6, False)])
def test_what_rounding_blurs_on_the_short_way_the_ladder_decides(float64, question, factor, right):
    """A fault of 2e-6 under a constant of 1e6, whose rounding over a short step hides it."""
    x = np.random.default_rng(2).normal(size=LONG + 36)
    found = 2 * x
    found[np.argmax(np.abs(found))] *= factor
    made = asked(question, lambda point: [jnp.sum(point[0] ** 2) + 1e6], [x], [found])
    (row,) = verdicts(made, measure(made, together=True))
    assert row.passed is right


def test_a_leaf_that_hardly_matters_is_held_to_the_influence_of_others(float64, question):
    """In random directions errors are relative to the norm: 2, and 1e-6 of the value of 4."""
    found = [np.ones(4), np.full(4, 1e-12)]
    made = question(
        lambda point: [jnp.sum(point[0]) + 1e-12 * jnp.sum(point[1])],
        lambda point, y_bar: found, [np.ones(4), np.ones(4)], every=0, missed=0.5, found=found,
    )  # fmt: skip
    made = made.with_answer(found, 4.0)
    assert scales(made, measure(made)) == pytest.approx([2.0, 4e-6])
