"""Diagnostics against dense Hessians, closed forms and plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from bpresearch import autodiff, data, diagnostics, models, optim, sweep, train
from bpresearch.data import Dataset
from bpresearch.optim import schedules

RATE = 0.05


def moment(x, y, *, build=None, optimizer=optim.sgd, batch=None, steps=0):
    """A run that has trained for `steps` steps on these examples, all of them in each batch."""
    outputs = y.shape[1]
    build = build or (lambda rngs: models.linear((x.shape[1],), outputs, rngs=rngs))
    training = train.Training(build, optax.losses.l2_loss, autodiff.gradient, optimizer, jnp.float64)
    run = train.start(training, 0, {})
    data, index = (jnp.asarray(x), jnp.asarray(y)), jnp.arange(len(x))
    if steps:
        order = jnp.broadcast_to(index, (steps, len(x)))
        rates = {"learning_rate": jnp.full(steps, RATE)}
        run_after, _ = train.train(training, run, data, order, rates, {}, 1, steps)
    after = run_after if steps else run
    index = index if batch is None else jnp.asarray(batch)
    rate = {"learning_rate": jnp.asarray(RATE)}
    return train.Moment(
        *(training, after, jnp.uint32(0), run.params, jnp.int32(steps), data, index, rate),
        train.next_step(training, after, data, index, rate),
    )


def values(diagnostic, at):
    return {name: np.asarray(found.values) for name, found in diagnostic(at).items()}


def examples(count=8, features=3, outputs=2, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, features)), generator.normal(size=(count, outputs))


def dense_hessian(at):
    flat, unravel = ravel_pytree(at.run.params)
    loss = diagnostics.loss_of(at, at.batch)
    return np.asarray(jax.hessian(lambda w: loss(unravel(w)))(flat))


def by_hand(at):
    """Gradient of the kernel and the bias of a linear model under half the mean squared error."""
    layer = at.run.params["layers"][1]
    x, y = np.asarray(at.data[0])[at.batch], np.asarray(at.data[1])[at.batch]
    error = (x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]) - y) / y.size
    return {"layers.1.bias": error.sum(0), "layers.1.kernel": x.T @ error}


def test_norms_are_those_of_each_layers_gradient_and_update(float64):
    at = moment(*examples())
    expected = {name: np.linalg.norm(g) for name, g in by_hand(at).items()}
    for diagnostic, factor in ((diagnostics.gradient_norms, 1), (diagnostics.update_norms, RATE)):
        ((_, found),) = diagnostic(at).items()
        assert list(found.coordinates["layer"]) == list(expected)
        np.testing.assert_allclose(found.values, factor * np.array(list(expected.values())), rtol=1e-10)
    signs = moment(*examples(), optimizer=optim.sign_sgd)
    np.testing.assert_allclose(
        values(diagnostics.update_norms, signs)["update_norm"], RATE * np.sqrt([2, 6]), rtol=1e-10
    )


def test_distance_is_from_the_initial_weights(float64):
    assert values(diagnostics.distance, moment(*examples()))["distance"] == 0
    one_step = moment(*examples(), steps=1)
    before = moment(*examples())
    length = np.sqrt(sum((g**2).sum() for g in by_hand(before).values()))
    np.testing.assert_allclose(values(diagnostics.distance, one_step)["distance"], RATE * length, rtol=1e-6)


def test_fidelity_on_a_quadratic_is_one_minus_half_the_curvature_over_the_slope(float64):
    at = moment(*examples())
    found = values(diagnostics.step_fidelity, at)
    g = np.concatenate([part.ravel() for part in by_hand(at).values()])
    curvature = RATE**2 * g @ dense_hessian(at) @ g
    np.testing.assert_allclose(found["predicted_decrease"], RATE * g @ g, rtol=1e-10)
    np.testing.assert_allclose(found["observed_decrease"], RATE * g @ g - curvature / 2, rtol=1e-9)
    np.testing.assert_allclose(found["step_fidelity"], 1 - curvature / 2 / (RATE * g @ g), rtol=1e-9)


@pytest.mark.parametrize(("batch", "part"), [(2, 1), (3, 1), (8, 2), (40, 4)])
def test_the_noise_of_a_batch_is_how_far_a_part_of_it_is_from_the_whole(float64, batch, part):
    at = moment(*examples(batch))
    g, first = (
        np.concatenate([g.ravel() for g in by_hand(at._replace(batch=jnp.arange(size))).values()])
        for size in (batch, part)
    )
    trace = ((first - g) ** 2).sum() / (1 / part - 1 / batch)
    square = max(g @ g - trace / batch, 0)
    found = values(diagnostics.gradient_noise, at)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(found["noise_scale"], trace / square, rtol=1e-9)
    np.testing.assert_allclose(found["signal_to_noise"], square / (trace / batch), rtol=1e-9)


def test_a_single_example_tells_nothing_of_the_noise(float64):
    found = values(diagnostics.gradient_noise, moment(*examples(1)))
    assert np.isnan(found["noise_scale"]) and np.isnan(found["signal_to_noise"])


@pytest.mark.parametrize("size", [1, 2, 6])
def test_the_noise_estimates_are_right_on_average(size):
    generator = np.random.default_rng(0)
    truth, spread = np.array([1.0, -2.0, 0.5]), np.array([0.5, 2.0, 1.0])
    batches = jnp.asarray(generator.normal(truth, spread, (8000, 12, 3)), jnp.float32)

    def estimate(examples):
        of_part, of_batch = {"w": examples[:size].mean(0)}, {"w": examples.mean(0)}
        return diagnostics.noise_estimates(of_part, of_batch, size, 12)

    trace, square = (np.asarray(found, np.float64) for found in jax.vmap(estimate)(batches))
    for found, expected in ((trace, (spread**2).sum()), (square, truth @ truth)):
        assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(len(found))


def test_the_largest_eigenvalue_is_that_of_the_dense_hessian(float64):
    x, y = examples(20)
    x = x * [3.0, 1.0, 0.3]  # a gap for the power method
    found = values(diagnostics.hessian_eigenvalue, moment(x, y))["hessian_eigenvalue"]
    expected = np.linalg.eigvalsh(dense_hessian(moment(x, y)))[-1]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_hessian_products_are_those_of_the_dense_hessian_of_a_network(float64):
    build = lambda rngs: models.mlp((3,), 2, widths=(4,), activation=jax.nn.tanh, rngs=rngs)  # noqa: E731
    at = moment(*examples(), build=build)
    flat, unravel = ravel_pytree(at.run.params)
    v = np.random.default_rng(0).normal(size=flat.shape)
    found, _ = ravel_pytree(diagnostics.hessian_product(at)(unravel(jnp.asarray(v))))
    np.testing.assert_allclose(found, dense_hessian(at) @ v, rtol=1e-9, atol=1e-12)


def test_the_trace_is_exact_where_the_hessian_is_diagonal_and_right_on_average(float64):
    x = np.concatenate([np.eye(3), -np.eye(3)]) * np.array([1.0, 2.0, 3.0])  # orthogonal, with mean zero
    at = moment(x, np.zeros((6, 1)))
    hessian = dense_hessian(at)
    np.testing.assert_allclose(hessian, np.diag(np.diag(hessian)), atol=1e-12)
    np.testing.assert_allclose(
        values(diagnostics.hessian_trace, at)["hessian_trace"], np.trace(hessian), rtol=1e-12
    )
    at = moment(*examples())
    one = lambda step: diagnostics.hessian_trace(at._replace(steps=step))["hessian_trace"].values  # noqa: E731
    found = np.asarray(jax.lax.map(one, jnp.arange(400)))
    assert found.std() > 0
    assert abs(found.mean() - np.trace(dense_hessian(at))) < 4 * found.std() / 20


def test_the_histogram_counts_every_element_once(float64):
    at = moment(*examples())
    ((_, found),) = diagnostics.gradient_histogram(at).items()
    g = np.abs(np.concatenate([part.ravel() for part in by_hand(at).values()]))
    ends = [*found.coordinates["log10_gradient"], 2.0]
    expected, _ = np.histogram(np.log10(g), ends)
    np.testing.assert_allclose(found.values, expected / g.size, rtol=1e-6)
    none = at._replace(next=jax.tree.map(jnp.zeros_like, at.next))
    assert values(diagnostics.gradient_histogram, none)["gradient_histogram"][0] == 1


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
    for name in ("gradient_norm", "update_norm", "predicted_decrease", "hessian_eigenvalue", "hessian_trace"):
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
