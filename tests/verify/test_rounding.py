"""The arithmetic of a working precision, judged by autodiff's own rounding error."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bpresearch import models, verify
from bpresearch.verify.rounding import rounding_ratio


def test_ratio_to_autodiffs_own_error():
    exact = np.array([1.0, 2.0, 2.0])
    autodiff = (exact + np.array([1e-6, 0, 0])).astype(np.float32)
    found = exact + np.array([0, 5e-6, 0])
    ratio, passed = rounding_ratio(found, autodiff[None], exact, 0.0, jnp.float32)
    own = np.linalg.norm(autodiff - exact)
    np.testing.assert_allclose(ratio, 5e-6 / own)
    assert passed
    assert not rounding_ratio(exact + 1e-5, autodiff[None], exact, 0.0, jnp.float32)[1]


def test_autodiff_without_any_error_asks_for_no_more_than_a_quarter_of_a_last_place():
    exact = np.full(4, 1.0)
    found = exact * (1 + np.finfo(np.float32).eps)
    ratio, passed = rounding_ratio(found, exact[None], exact, 0.0, jnp.float32)
    np.testing.assert_allclose(ratio, 4.0)
    assert passed


def test_autodiff_that_overflows_decides_nothing():
    ratio, passed = rounding_ratio(np.ones(2), np.array([[1.0, np.inf]]), np.ones(2), 0.0, jnp.float32)
    assert passed is None
    assert np.isnan(ratio)
    ratio, passed = rounding_ratio(np.array([1.0, np.nan]), np.ones((1, 2)), np.ones(2), 0.0, jnp.float32)
    assert passed is False


def test_cancellation_is_found_though_the_mathematics_is_right():
    """1 - tanh^2 as (1 + 1e4) - (tanh^2 + 1e4) loses four digits, and in float64 nobody would notice."""

    def careless(e, rule):
        if e.name != "tanh":
            return rule
        return SimpleNamespace(
            forward=rule.forward,
            backward=lambda layer, y, y_bar: ({}, y_bar * ((1 + 1e4) - (y * y + 1e4))),
        )

    model = models.mlp((6,), 3, widths=(8,), activation=nnx.tanh, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 6)).astype(np.float32), rng.integers(0, 3, 5)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    report = verify.model(
        model, loss, x, y, dtype="float32", oracles=["autodiff", "rounding"], plant=careless
    )
    verdicts = {(row.path, row.oracle): row.passed for row in report.rows}
    assert verdicts["layers.1.kernel", "autodiff"]
    assert verdicts["layers.1.kernel", "rounding"] is False
    assert verdicts["layers.3.kernel", "rounding"]
