"""Finite differences against closed forms, and how well they know their own error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch.verify.comparison import SAFETY
from bpresearch.verify.differences import judge, measure
from bpresearch.verify.directions import choose_directions


def differentiate(function, point, gradient=None, **options):
    """Finite differences of `function`, a verdict for each leaf, and the directions taken."""
    with jax.enable_x64(True):
        point = [jnp.asarray(leaf, jnp.float64) for leaf in point]
        gradient = [jnp.asarray(g) for g in gradient or [jnp.zeros_like(leaf) for leaf in point]]
        directions = choose_directions([leaf.size for leaf in point], **options)
        found = measure(lambda point: function(point), point, jax.device_get(gradient), directions)
        value = float(function(point))
    sizes, norms = [leaf.size for leaf in point], [float(np.linalg.norm(g)) for g in gradient]
    return found, judge(sizes, norms, directions, found, value)


SMOOTH = {
    "sin": (jnp.sin, np.cos),
    "exp": (jnp.exp, np.exp),
    "cube": (lambda t: t**3, lambda t: 3 * t**2),
    "oscillating": (lambda t: jnp.sin(30 * t), lambda t: 30 * np.cos(30 * t)),
    "flat": (lambda t: 0 * t, lambda t: 0 * t),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_the_estimate_is_as_good_as_it_says(name):
    function, derivative = SMOOTH[name]
    t = np.random.default_rng(0).uniform(-2, 2, 60)
    found, _ = differentiate(lambda point: jnp.sum(function(point[0])), [t])
    error = np.abs(found["estimate"] - derivative(t))
    assert (error <= SAFETY * found["uncertainty"]).all()
    assert (found["uncertainty"] <= 1e-8 * np.max(np.abs(derivative(t)), initial=1.0)).all()


def test_random_directions_see_one_wrong_element_of_many():
    rng = np.random.default_rng(0)
    t = rng.normal(size=(50, 40))
    right = np.cos(t)
    wrong = right.copy()
    wrong[31, 7] *= 1.01
    for gradient, passed in ((right, True), (wrong, False)):
        _, (verdict,) = differentiate(lambda point: jnp.sum(jnp.sin(point[0])), [t], [gradient])
        assert verdict.passed is passed
        assert verdict.detail == "20 random directions, a wrong element missed with probability 1e-06"


def test_every_coordinate_of_small_leaves():
    t = np.arange(1.0, 7.0).reshape(2, 3)
    found, (verdict,) = differentiate(lambda point: jnp.sum(jnp.log(point[0])), [t], [1 / t])
    np.testing.assert_allclose(found["estimate"], (1 / t).ravel(), rtol=1e-9)
    assert verdict.passed
    assert "every coordinate (6)" in verdict.detail


def test_leaves_without_elements_and_scalars():
    point = [np.zeros((0, 3)), np.array(2.0)]
    _, verdicts = differentiate(lambda p: p[1] ** 2 + jnp.sum(p[0]), point, [np.zeros((0, 3)), np.array(4.0)])
    assert [v.passed for v in verdicts] == [True, True]


@pytest.mark.parametrize(
    ("slope", "passed"), [(-1.0, True), (0.0, True), (2.0, True), (2.1, False), (-1.1, False)]
)
def test_at_a_kink_any_slope_between_both_sides_is_right(slope, passed):
    """f(t) = e^(2 t) for t > 0 and e^(-t) for t < 0: slopes 2 and -1 at zero."""

    def function(point):
        t = point[0]
        return jnp.sum(jnp.where(t > 0, jnp.exp(2 * t), jnp.exp(-t)))

    found, (verdict,) = differentiate(function, [np.zeros(1)], [np.array([slope])])
    np.testing.assert_allclose([found["left"][0], found["right"][0]], [-1, 2], atol=1e-6)
    assert verdict.passed is passed
    assert "not differentiable" in verdict.detail


def test_noise_is_undecided():
    """A function that shakes by 1e-3 at every step has no derivative that differences can see."""

    def function(point):
        return jnp.sum(point[0] + 1e-3 * jnp.sin(1e12 * point[0]))

    _, (verdict,) = differentiate(function, [np.array([0.7, 1.3])], [np.ones(2)])
    assert verdict.passed is None


def test_a_gradient_that_is_not_a_number_fails():
    _, (verdict,) = differentiate(lambda p: jnp.sum(p[0] ** 2), [np.ones(2)], [np.array([2.0, np.nan])])
    assert verdict.passed is False
