"""Faults in single operations: what is changed is what the name says."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch.verify.detection.operations import CHANGES, change_operation, count_operations

X, Y_BAR = np.array([[0.5, -1.0], [2.0, 0.25]]), np.array([[1.0, 3.0], [-2.0, 0.5]])


def rule(backward):
    return SimpleNamespace(forward=None, backward=lambda layer, x, y_bar: ({}, backward(x, y_bar)))


FORMULAS = {
    "term_dropped": (lambda x, u: x + u, lambda x, u: x),
    "other_term_dropped": (lambda x, u: x - u, lambda x, u: -u),
    "factor_dropped": (lambda x, u: x * u, lambda x, u: x),
    "other_factor_dropped": (lambda x, u: x * u, lambda x, u: u),
    "factor_squared": (lambda x, u: x * u, lambda x, u: x * u**2),
    "term_sign_wrong": (lambda x, u: x - u, lambda x, u: x + u),
    "mean_in_place_of_sum": (lambda x, u: jnp.sum(x, axis=0), lambda x, u: np.mean(x, axis=0)),
    "sum_over_wrong_axis": (lambda x, u: jnp.sum(x, axis=0), lambda x, u: np.sum(x, axis=1)),
    "matrix_transposed": (lambda x, u: u @ x, lambda x, u: u @ x.T),
    "mask_ignored": (lambda x, u: jnp.where(x > 0, x, u), lambda x, u: x),
    "other_mask_ignored": (lambda x, u: jnp.where(x > 0, x, u), lambda x, u: u),
    "function_at_wrong_point": (lambda x, u: jnp.tanh(u), lambda x, u: np.tanh(0.9 * u)),
    "constant_rounded": (lambda x, u: 0.044715 * u, lambda x, u: 0.045 * u),
    "small_constant_dropped": (lambda x, u: u + 1e-5, lambda x, u: u),
}


def test_every_kind_has_a_formula():
    assert set(FORMULAS) == set(CHANGES)


@pytest.mark.parametrize("name", FORMULAS)
def test_change(float64, name):
    right, wrong = FORMULAS[name]
    changed = change_operation(rule(right), name, 0)
    _, found = changed.backward(None, jnp.asarray(X), jnp.asarray(Y_BAR))
    np.testing.assert_allclose(found, wrong(X, Y_BAR), rtol=1e-14)
    _, same = change_operation(rule(right), name, 9).backward(None, jnp.asarray(X), jnp.asarray(Y_BAR))
    np.testing.assert_allclose(same, right(jnp.asarray(X), jnp.asarray(Y_BAR)), rtol=1e-14)
    assert count_operations(rule(right), None, jnp.asarray(X), jnp.asarray(Y_BAR), {})[name] == 1


def test_operations_in_loops_and_calls_count(float64):
    def backward(x, u):
        return jax.lax.scan(lambda carry, _: (jax.jit(lambda c: 2 * c)(carry), None), u, length=3)[0] + x

    counts = count_operations(rule(backward), None, jnp.asarray(X), jnp.asarray(Y_BAR), {})
    assert (counts["factor_squared"], counts["term_dropped"]) == (1, 1)
    _, found = change_operation(rule(backward), "term_dropped", 0).backward(None, jnp.asarray(X), Y_BAR)
    np.testing.assert_allclose(found, 8 * Y_BAR)
