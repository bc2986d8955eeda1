"""A rule may differ from autodiff at a kink, and where autodiff itself is wrong."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import verify
from bpresearch.verify.kinks import AUTODIFF_WRONG, BETWEEN, excuse

SQUARES = optax.losses.squared_error


def batch(features):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(5, n)).astype(np.float32) for n in (features, 3))


def absolute_and_square(point):
    x, y = point
    return jnp.sum(jnp.abs(x)) + jnp.sum(y**2)


@pytest.mark.parametrize(
    ("at_zero", "of_square", "expected", "reason"),
    [
        (0.5, 4.0, 4.0, BETWEEN),  # of |x| at 0 anything from -1 to 1
        (1.5, 4.0, 4.0, ""),
        (0.0, 4.0, 3.0, AUTODIFF_WRONG),  # of y^2 at 2: "autodiff" says 3
        (0.5, 4.0, 3.0, AUTODIFF_WRONG),
        (0.0, 4.1, 3.0, ""),
        (0.0, 4.0 + 4e-8, 4.0, ""),  # closer together than differences can tell
        (0.0, 4.0, np.nan, AUTODIFF_WRONG),
        (0.0, 4.0, 4.0, ""),  # nothing differs
    ],
)
def test_differences_decide_between_a_gradient_and_autodiffs(float64, at_zero, of_square, expected, reason):
    point = [jnp.array([0.0, 1.0]), jnp.array([2.0])]
    found = [np.array([at_zero, 1.0]), np.array([of_square])]
    autodiffs = [np.array([0.0, 1.0]), np.array([expected])]
    assert excuse(absolute_and_square, point, found, autodiffs, 1e-10) == reason


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
    assert any("not differentiable" in row.detail for row in report.rows)
    report = verify.model(model, SQUARES, x, y[:, :2], dtype="float64", plant=at_zero(2.0))
    assert report.culprits == ("layers.1",)


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
    assert row.error > 1e-3 and row.detail.startswith("autodiff is wrong at some inputs of the layer")

    def wrong_there(e, rule):
        def backward(layer, residuals, y_bar, **options):
            grads, (z_bar, t_bar) = rule.backward(layer, residuals, y_bar, **options)
            return grads, (z_bar, 1.01 * t_bar)

        return SimpleNamespace(forward=rule.forward, backward=backward) if e.layer == "loss" else rule

    report = verify.model(model, optax.losses.sigmoid_focal_loss, x, y, dtype="float64", plant=wrong_there)
    assert report.culprits == ("loss",)
