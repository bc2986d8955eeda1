"""The weights to evaluate at against the recursions of their papers, written out in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpresearch import optim
from bpresearch.optim import evaluation_params
from bpresearch.optim.evaluation import ema_share

WEIGHTS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5], [3.0]])}


def gradient(w, step):
    return np.sin(3 * w + step) + w


def courses(optimizer, steps=6, weights=WEIGHTS):
    """The weights trained, and those to evaluate at, before the first and after every step."""

    @jax.jit
    def after(weights, state, gradients):
        updates, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    state, found = optimizer.init(weights), []
    for step in range(steps + 1):
        found.append((weights, evaluation_params(state, weights)))
        gradients = {name: jnp.asarray(gradient(w, step)) for name, w in weights.items()}
        weights, state = after(weights, state, gradients)
    return found


def schedule_free(w, steps, rates, adam, b1=0.9, b2=0.999, wd=0.1):
    """Defazio et al. 2024, algorithm 1, in float64: x after every step."""
    x, z, y, v, total, courses = w, w, w, 0.0, 0.0, [w]
    for step in range(steps):
        lr = max(rates[: step + 1])
        g = gradient(y, step)
        v = b2 * v + (1 - b2) * g**2
        size = np.sqrt(v / (1 - b2 ** (step + 1))) + 1e-8 if adam else 1.0
        z = z - lr * (g / size + wd * y)
        total += lr**2
        x = (1 - lr**2 / total) * x + lr**2 / total * z
        y = b1 * x + (1 - b1) * z
        courses.append(x)
    return courses


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("wrapped", [lambda o: o, optim.frozen, optim.clipped, optim.grouped])
def test_a_schedule_free_run_is_evaluated_at_its_mean(float64, adam, wrapped):
    function = wrapped(optim.schedule_free_adamw if adam else optim.schedule_free_sgd)
    more = {"frozen": "b"} if wrapped is optim.frozen else {}
    more |= {"clip_norm": np.inf} if wrapped is optim.clipped else {}
    more |= {"lr_multipliers": "b:2"} if wrapped is optim.grouped else {}
    weights = jax.tree.map(lambda w: w.astype(jnp.float64), WEIGHTS)
    found = courses(function(0.1, weight_decay=0.1, **more), weights=weights)
    for name, rate in (("a", 0.1), ("b", {optim.frozen: 0.0, optim.grouped: 0.2}.get(wrapped, 0.1))):
        start = np.asarray(weights[name])
        expected = schedule_free(start, 6, [rate] * 6, adam) if rate else [start] * 7
        np.testing.assert_allclose([at[name] for _, at in found], expected, rtol=1e-9)
    assert not np.allclose(found[-1][0]["a"], found[-1][1]["a"])


def test_other_optimizers_are_evaluated_where_they_are():
    for _, (trained, at) in zip(range(2), courses(optim.adam(0.1)), strict=False):
        jax.tree.map(np.testing.assert_array_equal, at, trained)


def test_an_exponential_mean_forgets_where_it_began():
    optimizer = optim.averaged(optim.momentum)
    found = courses(optimizer(0.1, momentum=0.9, average="ema:0.7"))
    plain = courses(optim.momentum(0.1, momentum=0.9))
    trained = np.stack([weights["a"] for weights, _ in found])
    np.testing.assert_array_equal(trained, np.stack([weights["a"] for weights, _ in plain]))
    for step in range(1, 7):
        parts = 0.7 ** np.arange(step)[::-1]
        expected = np.average(trained[1 : step + 1], axis=0, weights=parts)
        np.testing.assert_allclose(found[step][1]["a"], expected, rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.9999, 0.9999999])
def test_the_latest_weights_share_does_not_cancel(decay):
    counts = np.array([1, 2, 3, 10, 1000, 10**6])
    expected = 1 / np.array([1.0 if decay == 0 else np.sum(decay ** np.arange(n)) for n in counts])
    shares = jax.vmap(partial(ema_share, decay))(jnp.asarray(counts, jnp.int32))
    np.testing.assert_allclose(shares, expected, rtol=1e-6)


@pytest.mark.parametrize(("fraction", "first"), [("0.5", 4), ("1.0", 1), ("0.01", 6), ("0.34", 5)])
def test_a_tails_mean_is_of_its_last_steps(fraction, first):
    found = courses(optim.averaged(optim.sgd)(0.1, average=f"tail:{fraction}", steps=6))
    trained = [weights["b"] for weights, _ in found]
    for step in range(7):
        expected = np.mean(trained[first : step + 1], axis=0) if step >= first else trained[step]
        np.testing.assert_allclose(found[step][1]["b"], expected, rtol=1e-5)


def test_the_mean_of_a_schedule_free_run_is_of_what_it_would_be_evaluated_at():
    plain = courses(optim.schedule_free_sgd(0.1))
    found = courses(optim.averaged(optim.schedule_free_sgd)(0.1, average="tail:0.5", steps=6))
    expected = np.mean([at["a"] for _, at in plain[4:]], axis=0)
    np.testing.assert_allclose(found[-1][1]["a"], expected, rtol=1e-5)


def test_a_mean_of_short_floats_is_kept_in_longer_ones():
    weights = jax.tree.map(lambda w: w.astype(jnp.bfloat16), WEIGHTS)
    optimizer = optim.averaged(optim.sgd)(0.1, average="ema:0.999")
    state = optimizer.init(weights)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.mean))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(evaluation_params(state, weights)))


@pytest.mark.parametrize("average", ["ema", "ema:1", "tail:0", "tail:1.1", "mean:0.5", "ema:nan"])
def test_an_average_that_is_none_is_one_line(average):
    with pytest.raises(ValueError, match=f"average={average}: takes ema:DECAY") as error:
        optim.averaged(optim.sgd)(0.1, average=average, steps=5)
    assert "\n" not in str(error.value)


def test_a_tail_needs_to_know_the_end():
    with pytest.raises(ValueError, match=r"average=tail:0.5 needs steps"):
        optim.averaged(optim.sgd)(0.1, average="tail:0.5")
