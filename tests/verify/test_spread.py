"""Random rounding measures what rounding does: compared with errors that are known exactly."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

from bpresearch.verify.spread import Spreads
from bpresearch.verify.verdict import limit

RNG = np.random.default_rng()  # drawn anew: what it measures must hold for any numbers


def spread(function, *args, rounds=1):
    return [s for s in Spreads(lambda *args: jax.tree.leaves(function(*args)))(args, rounds).sizes]


def variance(x):
    """With the cancellation that textbooks warn of."""
    return jnp.mean(x**2) - jnp.mean(x) ** 2


def recurrence(x):
    return lax.scan(lambda h, x: (3.9 * h * (1 - h), h), 0.5 + 0.3 * jnp.tanh(x[0]), x[:12])[1]


def looped(x):
    return lax.fori_loop(0, 10, lambda i, s: s + jnp.sin(x) * (i + 1.0), jnp.zeros_like(x))


COMPUTATIONS = {
    "sum": lambda x: jnp.sum(x),
    "product of matrices": lambda x: jnp.outer(x, x) @ jnp.outer(x[::-1], x),
    "variance": variance,
    "softmax": lambda x: jax.nn.softmax(5 * x),
    "one less a saturated square": lambda x: 1 - jnp.tanh(4 * x) ** 2,
    "chaos": recurrence,
    "loop": looped,
    "loops that end at different steps": jax.vmap(
        lambda v: lax.while_loop(lambda c: c < 10, lambda c: 1.7 * c + jnp.sin(c), 1 + v**2)
    ),
    "branch": lambda x: lax.cond(x[0] > 0, jnp.exp, jnp.sin, x),
    "quotients": lambda x: jnp.cumsum(x) / (1 + x**2) - x / (1 + x**2),
    "solve": lambda x: jnp.linalg.solve(jnp.outer(x[:4], x[4:8]) + 2 * jnp.eye(4), x[:4]),
}


@pytest.mark.parametrize("name", COMPUTATIONS)
def test_the_error_of_float32_is_within_the_spread(float64, name):
    """Errors against float64, whose own are nothing beside them: covered, and not by far too much."""
    compute = jax.jit(COMPUTATIONS[name])
    spreads = Spreads(lambda x: jax.tree.leaves(compute(x)))
    ratios = []
    for _ in range(8):
        x = jnp.asarray(RNG.uniform(-1, 1, 16), jnp.float32)
        errors = [np.abs(np.asarray(f, np.float64) - e) for f, e in zip(
            jax.tree.leaves(compute(x)), jax.tree.leaves(compute(x.astype(jnp.float64))), strict=True
        )]  # fmt: skip
        for error, size in zip(errors, spreads((x,), 2).sizes, strict=True):
            least = np.finfo(np.float32).tiny
            assert (error <= limit(10, error.size) * size + least).all(), f"{name}: {np.max(error / size)}"
            ratios += [error[size > 0] / size[size > 0]]
    assert np.sqrt(np.mean(np.concatenate([np.ravel(r) for r in ratios]) ** 2)) > 0.02


def test_the_error_of_float64_against_exact_fractions(float64):
    """A sum of products with large terms that cancel, in rational numbers."""
    for _ in range(5):
        a = RNG.normal(size=20)
        b = RNG.normal(size=20) * 10.0 ** RNG.integers(-6, 6, 20)
        a, b = np.concatenate([a, a]), np.concatenate([b, -b * (1 + 1e-12)])
        exact = sum(Fraction(float(p)) * Fraction(float(q)) for p, q in zip(a, b, strict=True))
        found = float(jax.jit(jnp.dot)(a, b))
        (size,) = spread(jnp.dot, a, b)
        assert abs(Fraction(found) - exact) <= Fraction(limit(5, 1) * float(size))
        assert size < 1e-10 * np.abs(a) @ np.abs(b)


def test_decisions_are_not_moved():
    """Lanes differ by rounding, so ties and thresholds would be decided either way; they all stay one way."""
    x = jnp.full(6, 0.1) * 3
    bits = [
        lambda x: jnp.where(x * x / x > 0.3, 1.0, 0.0),
        lambda x: jnp.floor(10 * (x * x / x)),
        lambda x: jnp.argmax(x * x / x).astype(jnp.float32),
        lambda x: jax.nn.one_hot(jnp.argsort(x * x / x), 6),
        lambda x: jax.grad(lambda x: jnp.max(x * x / x))(x) > 0.2,
    ]
    for function in bits:
        for size in spread(lambda x, f=function: f(x).astype(jnp.float32), x, rounds=3):
            assert np.max(size) <= np.finfo(np.float32).eps


def test_every_operation_rounds_in_its_own_precision():
    x = jnp.linspace(0.1, 1, 8)
    in_float32 = spread(lambda x: x * x, x)[0]
    inside = spread(lambda x: (x.astype(jnp.bfloat16) * x.astype(jnp.bfloat16)).astype(jnp.float32), x)[0]
    assert np.median(inside) > 1e3 * np.median(in_float32) > 0


def test_a_kernel_rounds_as_its_narrowest_type():
    def kernel(x_ref, y_ref):
        y_ref[...] = (x_ref[...].astype(jnp.bfloat16) * 2).astype(jnp.float32)

    def doubled(x):
        return pl.pallas_call(kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)

    (size,) = spread(doubled, jnp.linspace(0.1, 1, 8))
    assert 1e-4 < np.median(size) < 1e-1


def test_exact_operations_move_nothing():
    x = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)
    (size,) = spread(lambda x: jnp.concatenate([x[::-1], -x]).T.reshape(2, -1)[:, ::2], x)
    np.testing.assert_array_equal(size, 0)


@pytest.mark.parametrize("scale", [1e-170, 1e-20, 1.0, 1e200])
def test_small_and_large_numbers_have_a_spread_as_well(float64, scale):
    (size,) = spread(lambda x: x / 3, jnp.full(5, scale))
    assert (size > 1e-17 * scale).all() and (size < 1e-15 * scale).all()


def test_where_a_lane_is_not_finite_nothing_is_known(float64):
    tiny = float(np.finfo(np.float64).eps)
    (size,) = spread(
        lambda x: jnp.log((1 + x) * (1 - x / 7) * 7 / 7 - 1 + x / 7), jnp.array([tiny, 0.5]), rounds=4
    )
    assert np.isinf(size[0]) and size[1] < 1e-12
