"""The arithmetic of a working precision, judged by autodiff's own rounding error."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bpresearch import models, verify
from bpresearch.verify.oracles.rounding import ratio_rows


def row(found, autodiff, exact, spread=0.0):
    arrays = (np.asarray(a, np.float64) for a in (found, autodiff, exact))
    single = ([a] for a in arrays)
    (made,) = ratio_rows(["x"], *single, lambda: [np.full(np.shape(exact), spread)], [jnp.float32])
    return made


def test_ratio_to_autodiffs_own_error():
    exact = np.array([1.0, 2.0, 2.0])
    autodiff = (exact + np.array([1e-6, 0, 0])).astype(np.float32)
    made = row(exact + np.array([0, 5e-6, 0]), autodiff, exact)
    np.testing.assert_allclose(made.error, 5e-6 / np.linalg.norm(autodiff - exact))
    assert made.passed
    assert row(exact + 1e-5, autodiff, exact).passed is False


def test_autodiff_that_is_right_by_luck_is_measured_by_its_spread():
    exact = np.full(4, 1.0)
    assert row(exact + 1e-5, exact, exact).passed is False
    assert row(exact + 1e-5, exact, exact, spread=4e-6).passed


def test_autodiff_without_any_error_asks_for_no_more_than_a_quarter_of_a_last_place():
    exact = np.full(4, 1.0)
    made = row(exact * (1 + np.finfo(np.float32).eps), exact, exact)
    np.testing.assert_allclose(made.error, 4.0)
    assert made.passed


def test_autodiff_that_overflows_decides_nothing():
    made = row(np.ones(2), np.array([1.0, np.inf]), np.ones(2))
    assert made.passed is None and np.isnan(made.error)
    assert row(np.array([1.0, np.nan]), np.ones(2), np.ones(2)).passed is False


def test_a_function_is_asked_in_the_precision_of_its_arguments():
    """A sum in bfloat16 that is added up one by one, where autodiff's own rounds once."""

    def backward(careful, x, y_bar):
        if careful:
            return (jnp.broadcast_to(y_bar, x.shape) * jnp.sum(x),)
        total = jax.lax.fori_loop(0, x.size, lambda i, s: s + x[i], jnp.zeros((), x.dtype))
        return (jnp.broadcast_to(y_bar, x.shape) * total,)

    x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, 500), jnp.bfloat16)
    for careful in (True, False):
        f = jax.custom_vjp(lambda x: 0.5 * jnp.sum(x) ** 2)
        f.defvjp(lambda x: (0.5 * jnp.sum(x) ** 2, x), partial(backward, careful))
        report = verify.function(f, x)
        assert report.passed is careful, str(report)


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
