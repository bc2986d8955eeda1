"""Runs that are taught wrong labels: which are wrong, and that a network learns them by heart."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpresearch import models, optim, sweep
from bpresearch.optim import schedules
from bpresearch.theory import taught

LABELS = np.arange(4000, dtype=np.int32) % 10


def made(noise, seed=0):
    return taught.Taught(
        nnx.Linear(2, 10, rngs=nnx.Rngs(0)), jnp.asarray(LABELS), 3000, noise, 10, nnx.Rngs(seed)
    )


def test_nine_tenths_of_the_labels_drawn_anew_are_wrong_and_those_after_the_first_stay():
    wrong = np.asarray(made(0.5).labels[...]) != LABELS
    assert wrong[:3000].mean() == pytest.approx(0.45, abs=0.04)  # four standard deviations
    assert not wrong[3000:].any() and not (np.asarray(made(0.0).labels[...]) != LABELS).any()
    assert (np.asarray(made(0.5, seed=1).labels[...]) != made(0.5).labels[...]).any()


def test_the_error_is_against_the_labels_taught_and_wrong_against_the_right_ones():
    model = made(1.0)
    example = jnp.arange(5)
    right = jnp.asarray(LABELS[:5])
    model.network.kernel[...], model.network.bias[...] = jnp.zeros((2, 10)), jnp.eye(10)[3]
    values, metrics = taught.loss(model, {"signal": jnp.ones((5, 2)), "label": right, "example": example})
    told = np.asarray(model.labels[...])[:5]
    np.testing.assert_array_equal(metrics["error"], told != 3)
    np.testing.assert_array_equal(metrics["wrong"], told != LABELS[:5])
    np.testing.assert_allclose(values, np.log(9 + np.e) - (told == 3), rtol=1e-6)


def test_a_wide_network_learns_wrong_labels_by_heart_and_a_narrow_one_does_not():
    """The reduced form of `experiments/double_descent.py`: what stands at both ends of its picture."""
    random = np.random.default_rng(0)
    x = random.normal(size=(160, 8)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32) + 2 * (x[:, 1] > 0).astype(np.int32)
    numbers = np.arange(160, dtype=np.int32)
    parts = {
        name: {"signal": x[rows], "label": y[rows], "example": numbers[rows]}
        for name, rows in (("train", slice(80)), ("test", slice(80, 160)))
    }

    def network(*, rngs, width):
        return taught.Taught(
            models.mlp((8,), 4, widths=(width,), rngs=rngs), jnp.asarray(y), 80, 0.5, 4, rngs
        )

    experiment = sweep.Experiment(parts, network, taught.loss, steps=600, eval_every=600, validation=0.0)
    axes = sweep.grid(
        optimizer=optim.momentum, schedule=schedules.constant, lr=0.1, momentum=0.9, batch_size=40,
        width=[2, 128], seed=range(2),
    )  # fmt: skip
    last = sweep.run(experiment, axes, quiet=True).isel(eval_step=-1)
    errors, wide = last.train_eval_error.values, last["width"].values == 128
    assert (errors[wide] == 0).all() and (errors[~wide] > 0.2).all()
    assert (last.train_eval_wrong.values > 0.2).all() and (last.test_wrong.values == 0).all()
    assert (last.test_error.values > 0.1).all()
