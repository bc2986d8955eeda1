"""All diagnostics inside a sweep."""

import functools

import numpy as np
import optax

from bpresearch import data, diagnostics, models, optim, sweep
from bpresearch.data import Dataset
from bpresearch.optim import schedules
from tests.diagnostics.moments import examples


def test_a_sweep_measures_them_all_at_each_evaluation():
    x, y = (array.astype(np.float32) for array in examples(40))
    data = Dataset(name="toy", x=x, y=y, x_test=x, y_test=y, classes=None, description="")
    task = functools.partial(
        sweep.Experiment, data, models.linear, optax.losses.l2_loss, steps=4, eval_every=2
    )
    optimizer = optim.polyak_sgd  # one that needs the loss
    axes = sweep.grid(optimizer=optimizer, schedule=schedules.cosine, lr=0.1, batch_size=8, seed=[0, 1])
    found = sweep.run(task(diagnostics=diagnostics.DIAGNOSTICS), axes, quiet=True)
    assert found.gradient_norm.dims == ("run", "eval_step", "layer")
    assert found.gradient_histogram.dims == ("run", "eval_step", "log10_gradient")
    for name in ("gradient_norm", "update_norm", "predicted_decrease", "hessian_density", "hessian_trace"):
        assert np.isfinite(found[name].values).all(), name
    assert (found.distance.values[:, 0] < 1e-5).all() and (found.distance.values[:, 1:] > 1e-3).all()
    plain = sweep.run(task(), axes, quiet=True)
    np.testing.assert_array_equal(found.train_loss, plain.train_loss)  # to measure changes nothing


def test_a_run_has_the_same_bits_with_and_without():
    """Although it goes on from the step that they looked at."""
    task, loss = data.load("mnist1d"), optax.losses.softmax_cross_entropy_with_integer_labels
    axes = sweep.grid(optimizer=optim.adam, schedule=schedules.constant, lr=0.01, batch_size=100, seed=0)
    along = (diagnostics.gradient_norms, diagnostics.update_norms, diagnostics.step_fidelity)
    without, measured = (
        sweep.run(
            sweep.Experiment(task, models.cnn, loss, steps=60, eval_every=10, diagnostics=chosen),
            axes,
            quiet=True,
        )
        for chosen in ((), along)
    )
    for name in ("train_loss", "test_loss"):
        np.testing.assert_array_equal(without[name], measured[name])
