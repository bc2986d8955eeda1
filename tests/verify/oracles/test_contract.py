"""What a backward pass owes, whatever its values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch import verify


def test_what_is_not_finite_is_neither_zero_for_zero_nor_linear():
    """NaN is said once, as not finite, and placed."""
    root = jax.custom_vjp(lambda x: jnp.sqrt(jnp.maximum(x, 0)))
    root.defvjp(lambda x: (root(x), x), lambda x, y_bar: (y_bar * 0.5 * (x > 0) / jnp.sqrt(x),))
    report = verify.function(root, np.array([4.0, 0.0]))
    broken = {row.path: row.detail for row in report.rows if row.oracle == "contract" and row.passed is False}
    assert list(broken) == ["finite"]
    assert "nan at x[1]" in broken["finite"]


def test_a_cotangent_of_another_type_breaks_the_contract():
    scale = jax.custom_vjp(lambda x: 2 * x)
    scale.defvjp(lambda x: (2 * x, None), lambda _, y_bar: (2 * y_bar.astype(jnp.float32),))
    report = verify.function(scale, jnp.ones(3, jnp.bfloat16))
    assert report.passed is False
    (row,) = (row for row in report.rows if row.path == "structure")
    assert row.detail == "a cotangent of type float32 for an argument of type bfloat16"


def test_a_default_type_is_that_of_the_authors_run():
    """`one_hot` gives float64 where double precision is on, as it is here and was not for the author."""

    def loss(logits, labels):
        return -jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(labels, logits.shape[1]))

    f = jax.custom_vjp(loss)
    f.defvjp(
        lambda logits, labels: (loss(logits, labels), (logits, labels)),
        lambda kept, g: (g * (jax.nn.softmax(kept[0]) - jax.nn.one_hot(kept[1], kept[0].shape[1])), None),
    )
    logits = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    report = verify.function(f, logits, np.array([0, 2, 1, 1]))
    assert report.passed, str(report)


def test_the_contract_alone_says_that_it_is_alone():
    report = verify.function(jnp.sin, 1.0, oracles=["contract"])
    assert report.passed is True
    assert report.summary() == "Right as far as asked: contract alone, not the derivative's values."


@pytest.mark.parametrize("order", [1, 2])
def test_nothing_but_an_empty_argument(order):
    @jax.custom_vjp
    def total(x):
        return jnp.sum(x**2)

    total.defvjp(lambda x: (total(x), x), lambda x, y_bar: (2 * x * y_bar,))
    report = verify.function(total, np.zeros((0, 3)), order=order)
    assert report.passed, str(report)
