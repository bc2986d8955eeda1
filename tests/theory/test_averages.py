"""Averages of weights: the exact recursion against closed forms and simulation, and Optax's schedule-free."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpresearch.theory import averages

H, V = np.array([1.0, 0.1]), np.array([0.5, 0.2])


@pytest.mark.parametrize(
    ("average", "closed"),
    [
        (averages.last(), averages.settled_square),
        (averages.exponential(0.9), partial(averages.settled_ema, decay=0.9)),
        (averages.tail(0.5), partial(averages.settled_mean, count=400)),
    ],
)
def test_the_recursion_settles_where_the_closed_forms_say(average, closed):
    squares = averages.expected_squares(H, V, 0.0, np.full(800, 0.3), average)
    expected = [closed(h, v, 0.3) for h, v in zip(H, V, strict=True)]
    np.testing.assert_allclose(squares, expected, rtol=1e-9)


def test_the_tails_weights_make_a_mean():
    weights = averages.tail(0.4).weights(10)
    values, mean = np.arange(10.0), -1.0
    for value, c in zip(values, weights, strict=True):
        mean = (1 - c) * mean + c * value
    assert mean == pytest.approx(values[6:].mean())


def test_without_noise_it_is_the_recursion_squared(float64):
    rates = np.linspace(0.5, 0.1, 12)
    for average in (averages.exponential(0.7), averages.tail(0.5), averages.schedule_free(0.8)):
        end = averages.descend(lambda w, key: H * w, jnp.ones(2), rates, average, jax.random.key(0))
        squares = averages.expected_squares(H, 0 * V, 1.0, rates, average)
        np.testing.assert_allclose(np.asarray(end) ** 2, squares, rtol=1e-9)


def test_with_noise_it_is_the_mean_of_many_runs(float64):
    def slope(w, key):
        return H[None] * w + np.sqrt(V)[None] * jax.random.normal(key, w.shape, w.dtype)

    rates, average, runs = np.full(20, 0.4), averages.schedule_free(), 4000
    run = jax.jit(partial(averages.descend, slope, average=average))
    ends = run(jnp.ones((runs, 2)), rates=jnp.asarray(rates), key=jax.random.key(0))
    squares = averages.expected_squares(H, V, 1.0, rates, average)
    np.testing.assert_allclose(np.mean(np.asarray(ends) ** 2, axis=0), squares, rtol=8 / runs**0.5)


def test_schedule_free_is_optaxs(float64):
    rate, steps = 0.3, 8
    optimizer = optax.contrib.schedule_free(optax.sgd(rate), rate, b1=0.9)
    y = jnp.ones(2)
    state = optimizer.init(y)
    for _ in range(steps):
        updates, state = optimizer.update(H * y, state, y)
        y = optax.apply_updates(y, updates)
    x = optax.contrib.schedule_free_eval_params(state, y)
    ours = averages.descend(
        lambda w, key: H * w,
        jnp.ones(2),
        np.full(steps, rate),
        averages.schedule_free(0.9),
        jax.random.key(0),
    )
    np.testing.assert_allclose(ours, x, rtol=1e-9)
