"""Programs that are compiled in little time compute what others compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch import chainrule, verify
from bpresearch.verify.precision import compares, compiled

RNG = np.random.default_rng()  # drawn anew: it must hold for any numbers
SIZES = (2, 3, 5, 3), (1, 1, 1, 3), (1, 1, 1, 3)


def largest(x, a, b):
    return jnp.sum(jnp.max(x * a + b, axis=-1) ** 2)


@pytest.mark.parametrize("differentiate", [jax.grad, chainrule.grad], ids=["autodiff", "chain rule"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_of_products_and_sums_is_found(float64, dtype, differentiate):
    """Computed at two places with other roundings, no element would be equal to it, and shares be 1 / 0."""
    x, a, b = (
        jnp.asarray(RNG.normal(size=size), dtype) for size in ((2, 3, 5, 3), (1, 1, 1, 3), (1, 1, 1, 3))
    )
    found = compiled(differentiate(largest))(x, a, b)
    values = np.asarray(x, np.float64) * a + b
    expected = 2 * values * a * (values == values.max(-1, keepdims=True))
    unit = float(jnp.finfo(dtype).eps) * np.max(np.abs(x * a) + np.abs(b)) * np.max(np.abs(a))
    np.testing.assert_allclose(found, expected, rtol=0, atol=10 * unit)


def test_find_nan_sees_none_where_there_is_none():
    x, a, b = (
        RNG.normal(size=size).astype(np.float32) for size in ((2, 3, 5, 3), (1, 1, 1, 3), (1, 1, 1, 3))
    )
    report = verify.find_nan(largest, x, a, b)
    assert not report, str(report)


def test_what_asks_whether_numbers_are_equal():
    x = jnp.ones(3)
    assert compares(jax.make_jaxpr(jax.grad(lambda x: jnp.max(x)))(x))
    assert compares(jax.make_jaxpr(jax.jit(lambda x: jnp.where(x == x.max(), x, 0)))(x))
    assert not compares(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(jax.nn.relu(x))))(x))
