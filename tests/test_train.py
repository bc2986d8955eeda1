"""The training function against plain loops written out in numpy, and its own promises."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from bpresearch import autodiff, chainrule, losses, models, optim, train
from bpresearch.data.batches import shuffled_batches
from bpresearch.evaluation import evaluate

ACCURACY = {"accuracy": losses.accuracy}
CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels


def regression(optimizer, dtype=jnp.float64):
    build = lambda rngs: models.linear((3,), 2, rngs=rngs)  # noqa: E731
    return train.Training(build, optax.losses.l2_loss, autodiff.gradient, optimizer, dtype)


def examples(count=20, features=3, outputs=2):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(count, features))
    return (jnp.asarray(x), jnp.asarray(generator.normal(size=(count, outputs))))


def trained(training, data, rates, hyperparameters, batch=5, seed=0, last=None):
    steps = len(rates)
    run = jax.jit(partial(train.start, training))(seed, hyperparameters)
    order = shuffled_batches(seed, len(data[0]), batch, 1, steps)
    advance = jax.jit(partial(train.train, training))
    last = steps if last is None else last
    return (
        run,
        order,
        *advance(run, data, order, {"learning_rate": jnp.asarray(rates)}, hyperparameters, 1, last),
    )


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov"])
def test_a_run_follows_the_published_recursion(float64, name):
    data, beta, rates = examples(), 0.8, np.linspace(0.1, 0.01, 12)
    hyperparameters = {} if name == "sgd" else {"momentum": jnp.asarray(beta)}
    run, order, after, losses = trained(regression(getattr(optim, name)), data, rates, hyperparameters)

    layer = run.params["layers"][1]
    w, b = np.array(layer["kernel"]), np.array(layer["bias"])
    x, y = np.array(data[0]), np.array(data[1])
    m_w, m_b, expected = 0 * w, 0 * b, []
    for index, rate in zip(order, rates, strict=True):
        difference = x[index] @ w + b - y[index]
        expected.append(np.mean(difference**2 / 2))
        g_w, g_b = x[index].T @ difference / difference.size, difference.sum(0) / difference.size
        m_w, m_b = beta * m_w + g_w, beta * m_b + g_b
        step = {
            "sgd": (g_w, g_b),
            "momentum": (m_w, m_b),
            "nesterov": (g_w + beta * m_w, g_b + beta * m_b),
        }
        w, b = w - rate * step[name][0], b - rate * step[name][1]
    layer = after.params["layers"][1]
    np.testing.assert_allclose(layer["kernel"], w, rtol=1e-12)
    np.testing.assert_allclose(layer["bias"], b, rtol=1e-12)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)  # losses are recorded in float32


@pytest.mark.parametrize("model", [models.mlp, models.residual_mlp, models.cnn])
def test_both_engines_give_the_same_trajectory(float64, model):
    generator = np.random.default_rng(1)
    data = (jnp.asarray(generator.normal(size=(60, 12, 1))), jnp.asarray(generator.integers(0, 4, 60)))
    build = lambda rngs: model((12, 1), 4, rngs=rngs)  # noqa: E731
    runs = []
    for engine in (autodiff, chainrule):
        training = train.Training(build, CROSS_ENTROPY, engine.gradient, optim.momentum, jnp.float64)
        *_, after, losses = trained(
            training, data, np.full(40, 0.02), {"momentum": jnp.asarray(0.9)}, batch=10
        )
        runs.append((after.params, losses))
        assert losses[-6:].mean() < losses[:6].mean()  # one epoch each
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), *runs)


def test_steps_after_the_last_change_nothing(float64):
    data, training = examples(), regression(optim.sgd)
    *_, whole, _ = trained(training, data, np.full(7, 0.1), {})
    *_, longer, _ = trained(training, data, np.full(12, 0.1), {}, last=7)
    jax.tree.map(np.testing.assert_array_equal, whole.params, longer.params)


def test_two_calls_are_one(float64):
    data, training, rates = examples(), regression(optim.momentum), {"learning_rate": jnp.full(6, 0.1)}
    hyperparameters = {"momentum": jnp.asarray(0.9)}
    run, order, whole, losses = trained(training, data, np.full(12, 0.1), hyperparameters)
    advance = jax.jit(partial(train.train, training))
    half, first = advance(run, data, order[:6], rates, hyperparameters, 1, 12)
    both, second = advance(half, data, order[6:], rates, hyperparameters, 7, 12)
    jax.tree.map(np.testing.assert_array_equal, whole.params, both.params)
    np.testing.assert_array_equal(losses, jnp.concatenate([first, second]))


def test_a_run_that_diverges_is_frozen_and_marked_with_the_step(float64):
    data = examples()
    *_, after, losses = trained(regression(optim.sgd), data, np.full(400, 1e4), {}, batch=20)
    step = int(after.diverged_at)
    assert 1 < step < 400
    assert np.isfinite(losses[: step - 1]).all()
    assert np.isnan(losses[step - 1 :]).all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
    assert np.isnan(evaluate(regression(optim.sgd), after, data)["loss"])


@pytest.mark.parametrize("block", [1, 7, 20, 1000])
def test_evaluation_in_blocks_is_the_mean_over_all_examples(float64, block):
    training, data = regression(optim.sgd), examples()
    run = train.start(training, 3, {})
    layer = run.params["layers"][1]
    outputs = np.array(data[0]) @ np.array(layer["kernel"]) + np.array(layer["bias"])
    expected = np.mean((outputs - np.array(data[1])) ** 2 / 2)
    np.testing.assert_allclose(evaluate(training, run, data, block=block)["loss"], expected, rtol=1e-6)


def test_accuracy_counts_the_largest_output_for_labels_and_for_one_hot_rows():
    generator = np.random.default_rng(2)
    x, labels = generator.normal(size=(50, 3)).astype(np.float32), generator.integers(0, 2, 50)
    training = dataclasses.replace(regression(optim.sgd, jnp.float32), loss=CROSS_ENTROPY, metrics=ACCURACY)
    run = train.start(training, 0, {})
    layer = run.params["layers"][1]
    right = np.argmax(x @ np.array(layer["kernel"]) + np.array(layer["bias"]), axis=1) == labels
    data = (jnp.asarray(x), jnp.asarray(labels))
    np.testing.assert_allclose(evaluate(training, run, data)["accuracy"], right.mean(), rtol=1e-6)
    one_hot = (data[0], jnp.eye(2, dtype=jnp.float32)[labels])
    squared = dataclasses.replace(training, loss=optax.losses.squared_error)
    np.testing.assert_allclose(evaluate(squared, run, one_hot)["accuracy"], right.mean(), rtol=1e-6)


def test_dropout_and_batch_statistics_change_in_training_and_not_in_evaluation():
    def build(rngs):
        return nnx.Sequential(
            nnx.Linear(3, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs),
            nnx.Linear(8, 2, rngs=rngs),
        )  # fmt: skip

    training = train.Training(build, optax.losses.l2_loss, autodiff.gradient, optim.sgd, jnp.float32)
    data = jax.tree.map(lambda a: a.astype(jnp.float32), examples())
    run, _, after, _ = trained(training, data, np.full(6, 0.01, np.float32), {})
    assert int(after.state["layers"][2]["rngs"]["count"]) == int(run.state["layers"][2]["rngs"]["count"]) + 6
    assert not np.allclose(after.state["layers"][1]["mean"], run.state["layers"][1]["mean"])
    first, second = (evaluate(training, after, data)["loss"] for _ in range(2))
    assert first == second


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 60),
    st.integers(1, 30),
)
def test_every_epoch_is_a_permutation_cut_into_batches(seed, count, batch, first, steps):
    batch = min(batch, count)
    per_epoch = count // batch
    whole = shuffled_batches(seed, count, batch, 1, first + steps)
    assert whole.shape == (first + steps, batch)
    for begin in range(0, first + steps, per_epoch):
        epoch = whole[begin : begin + per_epoch].ravel()
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(range(count))
    np.testing.assert_array_equal(
        shuffled_batches(seed, count, batch, first, steps),
        whole[first - 1 : first - 1 + steps],
    )


def test_seeds_and_epochs_have_different_orders():
    orders = {tuple(shuffled_batches(seed, 30, 30, epoch, 1)[0]) for seed in (0, 1) for epoch in (1, 2)}
    assert len(orders) == 4


def test_a_language_models_accuracy_is_the_mean_over_positions():
    """A model that repeats its input is right where the next token is the same."""

    class Repeat(nnx.Module):
        def __call__(self, x):
            return nnx.one_hot(x, 3)

    loss_fn = optax.losses.softmax_cross_entropy_with_integer_labels
    training = train.Training(lambda rngs: Repeat(), loss_fn, autodiff.gradient, optax.sgd, metrics=ACCURACY)
    x, y = jnp.array([[0, 1, 2, 2, 2], [1, 1, 1, 1, 0]]), jnp.array([[1, 1, 2, 2, 1], [1, 1, 1, 0, 0]])
    run = train.start(training, 0, {})
    found = evaluate(training, run, (x, y), block=1)
    np.testing.assert_allclose(found["accuracy"], (3 / 5 + 4 / 5) / 2, rtol=1e-6)


def test_a_recurrent_model_is_trained_and_evaluated():
    """Its layers have random streams for their first carry, which move on inside of the loops."""
    loss_fn = optax.losses.softmax_cross_entropy_with_integer_labels
    build = partial(models.bidirectional_gru, (3, 1), 2, width=2)
    training = train.Training(lambda rngs: build(rngs=rngs), loss_fn, chainrule.gradient, optax.sgd)
    examples = (jnp.ones((4, 3, 1)), jnp.zeros(4, jnp.int32))
    order, rates = jnp.zeros((5, 2), jnp.int32), jnp.full(5, 0.1)
    scheduled = {"learning_rate": rates}
    run = train.start(training, 0, {})
    run, losses = train.train(training, run, examples, order, scheduled, {}, 1, 5)
    assert losses[-1] < losses[0]
    assert evaluate(training, run, examples, block=2)["loss"] < losses[0]
