"""A rule may differ from autodiff at a kink, and where autodiff itself is wrong."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import verify
from bpresearch.verify.oracles.kinks import Found, look

SQUARES = optax.losses.squared_error


def batch(features):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(5, n)).astype(np.float32) for n in (features, 3))


def absolute_and_square(point):
    return [jnp.sum(jnp.abs(point[0])) + jnp.sum(point[1] ** 2)]


@pytest.mark.parametrize(
    ("leaf", "found", "expected", "finding"),
    [
        (0, 0.5, 0.0, Found.BETWEEN),  # of |x| at 0 anything from -1 to 1
        (0, -1.0, 0.0, Found.BETWEEN),
        (0, 1.5, 0.0, Found.OUTSIDE),
        (1, 4.0, 3.0, Found.TWIN_WRONG),  # of y^2 at 2: "autodiff" says 3
        (1, 4.0, np.nan, Found.TWIN_WRONG),
        (1, 4.1, 4.0, Found.WRONG),
        (1, 4.1, 4.1, Found.WRONG),
        (1, 4.0, 4.0, Found.UNKNOWN),  # nothing is wrong
    ],
)
def test_what_there_is_at_a_disputed_element(float64, question, leaf, found, expected, finding):
    gradient = [np.zeros(1), np.array([4.0])]
    gradient[leaf] = np.array([found])
    asked = question(
        absolute_and_square, lambda point, y_bar: gradient, [np.zeros(1), np.array([2.0])], found=gradient
    )
    dispute = look(asked, leaf, np.array([0]), np.array([expected]))
    assert dispute.findings == (finding,)


def largest(x):
    return [jnp.max(x[0])]


@pytest.mark.parametrize("n", [2, 5, 80])
@pytest.mark.parametrize(("share", "right"), [("one", True), ("equal", True), ("whole", False)])
def test_tied_elements_share_one_cotangent(float64, question, n, share, right):
    """Each alone lies between both sides; all together, a whole cotangent for each is n times too large."""
    gradient = {"one": np.eye(n)[0], "equal": np.full(n, 1 / n), "whole": np.ones(n)}[share]
    asked = question(largest, lambda point, y_bar: [gradient], [np.zeros(n)], found=[gradient])
    dispute = look(asked, 0, np.arange(n), np.full(n, 1 / n))
    assert set(dispute.findings) == {Found.BETWEEN}
    assert (dispute.joint is Found.BETWEEN) is right


@pytest.mark.parametrize(("share", "right"), [(0.5, True), (1.0, False)])
def test_the_precision_of_the_arguments_is_no_question_at_a_kink(share, right):
    """Half a cotangent for each of two tied elements is right in float32, whatever autodiff gives them."""

    def backward(x, g):
        first, second = x[:2], x[2:]
        of_first = jnp.where(first == second, share, first > second)
        of_second = jnp.where(first == second, share, first < second)
        return (jnp.concatenate([g * of_first, g * of_second]),)

    pooled = jax.custom_vjp(lambda x: jnp.where(x[:2] >= x[2:], x[:2], x[2:]))
    pooled.defvjp(lambda x: (pooled(x), x), backward)
    report = verify.function(pooled, np.array([1.0, 2.0, 1.0, 0.5], np.float32))
    assert report.passed is right, str(report)


def test_kinks_bent_either_way_do_not_hide_each_other(float64, question):
    """f = |x| - |y| is flat along (1, 1), and (1, 1) is one of its subgradients all the same."""
    function = lambda point: [jnp.abs(point[0][0]) - jnp.abs(point[0][1])]  # noqa: E731
    for gradient, right in (([1.0, 1.0], True), ([0.3, -0.9], True)):
        asked = question(
            function,
            lambda point, y_bar, g=gradient: [np.array(g)],
            [np.zeros(2)],
            found=[np.array(gradient)],
        )
        assert (look(asked, 0, np.arange(2), np.zeros(2)).joint is Found.BETWEEN) is right


@pytest.mark.parametrize("order", [[5.0, 1.0, 2.0], [2.0, 5.0, 1.0]])
def test_any_order_of_ties_is_right(float64, order):
    """The middle one of three tied numbers: no side of any coordinate shows the cotangent that it gets."""
    u = jnp.array(order)
    ranked = jax.custom_vjp(lambda x: jnp.sort(x))
    ranked.defvjp(lambda x: (jnp.sort(x), jnp.argsort(x)), lambda at, g: (jnp.zeros(3).at[at].set(g),))
    assert verify.function(lambda x: jnp.sum(u * ranked(x)), np.full(3, 0.5)).passed is True


def test_another_derivative_at_a_kink_is_no_mistake():
    """ReLU's rule may say 1/2 at zero where autodiff says 0; it may not say 2."""
    model = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
    x, y = batch(3)
    x[0] = 0  # the bias is zero too

    def at_zero(slope):
        rule = SimpleNamespace(
            forward=lambda layer, x: (nnx.relu(x), x),
            backward=lambda layer, x, y_bar: ({}, y_bar * jnp.where(x == 0, slope, (x > 0).astype(x.dtype))),
        )
        return lambda e, old: rule if e.name == "relu" else old

    report = verify.model(model, SQUARES, x, y[:, :2], dtype="float64", plant=at_zero(0.5))
    assert report.passed, str(report)
    report = verify.model(model, SQUARES, x, y[:, :2], dtype="float64", plant=at_zero(2.0))
    assert report.culprits == ("layers.1",)


@pytest.mark.full
def test_where_autodiff_is_wrong_differences_decide():
    """The focal loss takes a logsumexp whose derivative with respect to targets of 0 and 1 autodiff loses."""

    class WithTargets(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

        def __call__(self, x, targets):  # as an input, and so with a derivative
            return self.dense(x), targets

    model, y = WithTargets(), ()
    inputs, _ = batch(4)
    x = inputs, np.random.default_rng(1).choice([0.0, 1.0], (5, 3)).astype(np.float32)
    report = verify.model(model, optax.losses.sigmoid_focal_loss, x, y, dtype="float64")
    assert report.passed, str(report)
    (row,) = (row for row in report.rows if row.path == "loss" and row.oracle == "rule")
    assert "autodiff is wrong here" in row.detail

    def wrong_there(e, rule):
        def backward(layer, residuals, y_bar, **options):
            grads, (z_bar, t_bar) = rule.backward(layer, residuals, y_bar, **options)
            return grads, (z_bar, 1.01 * t_bar)

        return SimpleNamespace(forward=rule.forward, backward=backward) if e.layer == "loss" else rule

    report = verify.model(model, optax.losses.sigmoid_focal_loss, x, y, dtype="float64", plant=wrong_there)
    assert report.culprits == ("loss",)
