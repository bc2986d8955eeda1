"""The rules of functions that make one number of many."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")


def test_logsumexp_with_every_option(normal, assert_rules_right):
    x, b = normal(0, 2, 3, 4), normal(1, 2, 3, 4)
    where = jnp.abs(normal(2, 2, 3, 4)) < 1
    options = {
        "all": {},
        "axis": {"axis": -1},
        "axes": {"axis": (0, 2), "keepdims": True},
        "scaled": {"axis": 1, "b": jnp.abs(b)},
        "where": {"axis": 2, "where": where.at[:, :, 0].set(True)},
    }
    problems = {name: (partial(nnx.logsumexp, **given), (x,), [0]) for name, given in options.items()}
    assert assert_rules_right(problems) <= 1e-12


def test_the_sign_of_a_sum_has_no_derivative(normal, ask_rule):
    x, b = normal(0, 3, 4), normal(1, 3, 4)
    signed = partial(nnx.logsumexp, axis=0, b=b, return_sign=True)
    (y, sign), back = ask_rule(signed, x)
    _, x_bar = back((jnp.ones(4), jnp.ones(4)))
    total = np.sum(np.asarray(b) * np.exp(x), axis=0)
    np.testing.assert_allclose(sign * jnp.exp(y), total, rtol=1e-13)
    np.testing.assert_allclose(x_bar, np.asarray(b) * np.exp(x) / total, rtol=1e-12)
