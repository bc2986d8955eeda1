"""Finite differences against closed forms, and how well they know their own error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch import verify
from bpresearch.verify.directions import choose_directions
from bpresearch.verify.ladder import step_scale
from bpresearch.verify.oracles.finite_differences import SAFETY, estimates, kinked, measure
from bpresearch.verify.question import Derivative, Question
from bpresearch.verify.verdict import decide


def differentiate(function, point, gradient=None):
    """The question, finite differences of `function`, and a verdict for each leaf."""
    with jax.enable_x64(True):
        point = [jnp.asarray(leaf, jnp.float64) for leaf in point]
        gradient = [np.asarray(g) for g in gradient or [np.zeros(leaf.shape) for leaf in point]]

        def values(point, others):
            return [function(point)]

        derivative = Derivative(values, lambda *_: gradient, None, values)
        directions = choose_directions([leaf.size for leaf in point])
        names = [f"arg{i}" for i in range(len(point))]
        ones = [[jnp.ones(())]]
        made = Question(derivative, point, (), names, ones, directions, 0, float(np.finfo(float).eps))
        made = made.with_answer(gradient, float(function(point)))
        found = measure(made)
        return made, found, [decide(e).row for e in estimates(made, found)]


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
    _, found, _ = differentiate(lambda point: jnp.sum(function(point[0])), [t])
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
        _, _, (verdict,) = differentiate(lambda point: jnp.sum(jnp.sin(point[0])), [t], [gradient])
        assert verdict.passed is passed
        assert verdict.detail == "20 random directions, a wrong element missed with probability 1e-06"


def test_every_coordinate_of_small_leaves():
    t = np.arange(1.0, 7.0).reshape(2, 3)
    _, found, (verdict,) = differentiate(lambda point: jnp.sum(jnp.log(point[0])), [t], [1 / t])
    np.testing.assert_allclose(found["estimate"], (1 / t).ravel(), rtol=1e-9)
    assert verdict.passed
    assert "every coordinate (6)" in verdict.detail


def test_leaves_without_elements_and_scalars():
    point = [np.zeros((0, 3)), np.array(2.0)]
    _, _, verdicts = differentiate(
        lambda p: p[1] ** 2 + jnp.sum(p[0]), point, [np.zeros((0, 3)), np.array(4.0)]
    )
    assert [v.passed for v in verdicts] == [True, True]


def test_both_sides_of_a_kink_are_measured_and_nothing_is_said_of_it():
    """f(t) = e^(2 t) for t > 0 and e^(-t) for t < 0: slopes 2 and -1 at zero."""

    def function(point):
        t = point[0]
        return jnp.sum(jnp.where(t > 0, jnp.exp(2 * t), jnp.exp(-t)))

    made, found, (verdict,) = differentiate(function, [np.zeros(1)], [np.array([0.5])])
    np.testing.assert_allclose([found["left"][0], found["right"][0]], [-1, 2], atol=1e-6)
    assert kinked(made, found).all()
    assert verdict.passed is None and "not differentiable" in verdict.detail


def test_noise_is_undecided():
    """A function that shakes by 1e-3 at every step has no derivative that differences can see."""

    def function(point):
        return jnp.sum(point[0] + 1e-3 * jnp.sin(1e12 * point[0]))

    _, _, (verdict,) = differentiate(function, [np.array([0.7, 1.3])], [np.ones(2)])
    assert verdict.passed is None


def test_elements_at_infinity_are_left_out_and_the_others_decided():
    """A step from minus infinity leads nowhere; the other elements have their own scale."""
    t = np.array([0.5, -np.inf, 2.0])
    for factor, passed in ((1.0, True), (1.01, False)):
        _, _, (verdict,) = differentiate(lambda point: jnp.sum(jnp.exp(point[0])), [t], [factor * np.exp(t)])
        assert verdict.passed is passed, verdict


@pytest.mark.parametrize("summed", [True, False], ids=["a number", "an array"])
def test_a_function_that_is_infinite_a_step_away_is_measured_closer_by(summed):
    """Beyond t = 0.001 it is no number; that it goes there must not look like a derivative of zero."""

    def near(t):
        y = jnp.where(t < 1e-3, jnp.sin(t), jnp.inf)
        return jnp.sum(y) if summed else y

    for factor, passed in ((1.0, True), (1 + 1e-5, False), (0.0, False)):
        f = jax.custom_vjp(near)
        f.defvjp(lambda t: (near(t), t), lambda t, g, factor=factor: (factor * g * jnp.cos(t),))
        report = verify.function(f, np.zeros(2), oracles=("finite differences",))
        assert report.passed is passed, str(report)


@pytest.mark.parametrize(("dtype", "size"), [("float16", 300), ("float32", 1e25), ("float64", 1e200)])
def test_elements_whose_squares_overflow_have_a_scale(float64, dtype, size):
    leaf = jnp.asarray(np.array([1.0, -2.0, 0.0, np.inf]) * size, dtype)
    np.testing.assert_allclose(step_scale(leaf), size * np.sqrt(5 / 3), rtol=2 * jnp.finfo(dtype).eps)


def test_a_gradient_that_is_not_a_number_fails():
    _, _, (verdict,) = differentiate(lambda p: jnp.sum(p[0] ** 2), [np.ones(2)], [np.array([2.0, np.nan])])
    assert verdict.passed is False
