"""NaN and Inf are followed where they matter, and left alone where they are meant and go away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpresearch.verify import find_nan, nan_search

ZEROS = np.zeros(3, np.float32)


def harmless_mask(x):
    weights = jax.nn.softmax(jnp.where(jnp.arange(3) < 2, x, -jnp.inf))
    return jnp.sum(weights * x)


def harmless_log(x):
    mask = jnp.log(jnp.array([1.0, 0.0, 1.0]))
    return jnp.sum(jax.nn.softmax(x + mask) * x)


def harmless_branch(x):
    return jnp.where(x > 0, jnp.log(lax.stop_gradient(x)), 0.0) + x


def safe_root(x):
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def masked_log_probabilities(x):
    return jax.nn.log_softmax(jnp.where(jnp.arange(3) < 2, x, -jnp.inf))


def running_maximum(x):
    return lax.scan(lambda m, t: (jnp.maximum(m, t), m), -jnp.inf, x)[0]


@pytest.mark.parametrize(
    "f",
    [harmless_mask, harmless_log, harmless_branch, safe_root, masked_log_probabilities, running_maximum],
)
def test_what_is_meant_and_harmless_is_not_reported(f):
    report = find_nan(f, ZEROS)
    assert not report
    assert str(report) == "No equation makes NaN or Inf that reaches a result."
    assert report.to_json()["found"] is False


def test_a_while_loop_under_vmap_is_searched_step_by_step():
    def halved(carry):
        x, y = carry
        return x / 2, y / jnp.where(x > 5, x, 0.0)  # 0 / 0 in the second step of the second loop

    def f(x):
        return jax.vmap(lambda x: lax.while_loop(lambda c: c[0] > 3, halved, (x, 0 * x))[1])(x)

    said = str(find_nan(f, jnp.array([2.0, 8.0])))
    assert "div" in said and "test_nan_search.py" in said


def test_a_harmless_infinity_does_not_hide_what_is_wrong():
    def f(x):
        mask = jnp.log(jnp.array([1.0, 0.0, 1.0]))
        y = jnp.sqrt(x)
        return jnp.sum(jax.nn.softmax(y + mask))

    report = find_nan(f, jnp.array([1.0, 2.0, -3.0]))
    assert (report.primitive, report.value, report.index) == ("sqrt", "NaN", (2,))


def test_what_an_operand_brings_is_told_by_ordinary_numbers_in_its_place():
    """Both infinities make their difference NaN; of a choice only what is chosen counts."""
    inf, ones = jnp.array([jnp.inf, 1.0]), jnp.ones(2)

    def brought(function, *ins):
        outs = (function(*ins),)
        call = nan_search.Call(lambda *ins: (function(*ins),), ins, outs)
        return nan_search.brought(call, nan_search.not_finite(outs))

    both = {0: frozenset({"Inf"}), 1: frozenset({"Inf"})}
    assert brought(jnp.subtract, inf, inf) == both
    assert brought(lambda a, b: jnp.where(True, a, b), inf, inf) == {0: frozenset({"Inf"})}
    assert brought(jnp.add, inf * 0, ones) == {0: frozenset({"NaN"})}
    assert brought(lambda a, b: a / (b - 1), inf, ones) == {0: frozenset({"Inf"})}


def test_values_keep_their_own_precision_and_order():
    """What a compiler may do to float16, or to a product of constants, is not done."""

    def f(x):
        y = x.astype(jnp.float16) * 300 * 300
        return y.astype(jnp.float32) / 300

    report = find_nan(f, jnp.ones(()))
    assert (report.value, report.primitive, report.operands) == ("Inf", "mul", ("300.0", "300.0"))
    assert not find_nan(lambda x: x * 1e25 * 1e20 * 1e-30, jnp.float32(1e-30), backward=False)
