"""Tasks of the user's own: any batch, any loss of model and batch, any option an axis."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import autodiff, chainrule, models, optim, sweep
from bpresearch.data.batches import shuffled_batches
from bpresearch.optim import schedules
from tests.sweep.toy import axes as toy_axes
from tests.sweep.toy import experiment as toy_experiment

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
PARTS = {
    name: {"x": X[part].astype(np.float32), "more": (X[part] @ [[1.0], [2.0], [3.0]]).astype(np.float32)}
    for name, part in (("train", slice(0, 24)), ("valid", slice(24, 30)), ("test", slice(30, 40)))
}


def model(*, rngs, width=3, steps=1):
    return nnx.Sequential(
        nnx.Linear(3, width, rngs=rngs), *[nnx.tanh] * steps, nnx.Linear(width, 1, rngs=rngs)
    )


def loss(model, batch):
    error = model(batch["x"]) - batch["more"]
    return jnp.mean(error**2, axis=-1), {"largest": jnp.max(jnp.abs(error)), "off": jnp.abs(error) > 1}


def scalar(model, batch):
    return jnp.mean(loss(model, batch)[0]) + 0.0


def mine(learning_rate, beta=0.5):
    return optax.sgd(learning_rate, momentum=beta)


def down(steps, bottom=0.1):
    return lambda step: 1 - (1 - bottom) * step / steps


def axes(**changes):
    base = {"optimizer": mine, "schedule": down, "lr": 0.1, "batch_size": 8, "seed": 3, "steps": 12}
    return sweep.grid(**(base | changes))


@pytest.fixture(scope="module")
def results():
    task = sweep.Task(PARTS, model, loss, name="own")
    wide = axes(width=[2, 4], beta=[0.0, 0.5], bottom=[0.1, 1.0], steps=[12, 7])
    return sweep.run(task, wide, quiet=True)


def test_options_of_model_optimizer_and_schedule_are_axes(results):
    assert results.sizes["run"] == 16
    for axis in ("width", "beta", "bottom", "steps"):
        assert len(np.unique(results[axis])) == 2 and results[axis].dims == ("run",)
    assert set(results.model.values) == set(results.dataset.values) == {"own"}


def test_a_run_is_the_loop_that_one_would_write(results):
    chosen = (results.width == 4) & (results.beta == 0.5) & (results.bottom == 0.1) & (results.steps == 12)
    network = model(rngs=nnx.Rngs(jax.random.key(3)), width=4)
    optimizer = nnx.Optimizer(network, optax.sgd(lambda t: 0.1 * down(12)(t), momentum=0.5), wrt=nnx.Param)
    expected = []
    for index in shuffled_batches(3, 24, 8, 1, 12):
        batch = jax.tree.map(lambda array, index=index: array[index], PARTS["train"])
        value, gradient = nnx.value_and_grad(scalar)(network, batch)
        optimizer.update(network, gradient)
        expected.append(float(value))
    run = results.isel(run=chosen.values)
    np.testing.assert_allclose(run.train_loss.values[0], expected, rtol=1e-4)
    np.testing.assert_allclose(run.test_loss.values[0, -1], scalar(network, PARTS["test"]), rtol=1e-4)
    np.testing.assert_allclose(run.valid_loss.values[0, -1], scalar(network, PARTS["valid"]), rtol=1e-4)
    first = jax.tree.map(lambda array: array[:6], PARTS["train"])  # as many as the part that is chosen on
    np.testing.assert_allclose(run.train_eval_loss.values[0, -1], scalar(network, first), rtol=1e-4)
    _, metrics = loss(network, PARTS["test"])
    np.testing.assert_allclose(run.test_largest.values[0, -1], metrics["largest"], rtol=1e-4)
    np.testing.assert_allclose(run.test_off.values[0, -1], jnp.mean(metrics["off"]), rtol=1e-6)


def test_shorter_runs_end_and_keep_what_they_have_reached(results):
    assert results.eval_step.values.tolist() == [0, 7, 12]
    short, long = (
        results.isel(run=(results.steps == 7).values),
        results.isel(run=(results.steps == 12).values),
    )
    assert np.isnan(short.train_loss[:, 7:]).all() and np.isfinite(short.train_loss[:, :7]).all()
    assert np.isfinite(long.train_loss).all() and np.isfinite(long.test_loss).all()
    np.testing.assert_array_equal(short.test_loss[:, 1], short.test_loss[:, 2])
    assert bool(results.finished.all())
    constant = {"run": (short.bottom == 1.0).values}  # their schedule does not see the end
    same = {"run": (long.bottom == 1.0).values}
    np.testing.assert_array_equal(short.test_loss[constant][:, :2], long.test_loss[same][:, :2])


def test_a_scalar_loss_trains_as_one_for_each_example_and_random_ones_draw_anew():
    def noisy(model, batch, rngs):
        drawn = jax.random.normal(rngs(), batch["x"].shape)
        return scalar(model, batch | {"x": batch["x"] + 0 * drawn}), {"drawn": jnp.mean(drawn)}

    choose = {"choose": "-drawn", "eval_every": 3, "steps": 12}
    plain, random = (
        sweep.run(sweep.Experiment(PARTS, model, f, **options), axes(), quiet=True)
        for f, options in ((scalar, {}), (noisy, choose))
    )
    np.testing.assert_allclose(random.train_loss, plain.train_loss, rtol=1e-5)
    np.testing.assert_allclose(random.test_loss[:, -1], plain.test_loss[:, -1], rtol=1e-5)
    assert len(np.unique(random.test_drawn)) == 5  # as many evaluations
    assert random.attrs["chosen_by"] == "valid_drawn" and not random.attrs["higher_is_better"]
    assert plain.attrs["chosen_by"] == "valid_loss"


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
def test_several_outputs_and_targets_are_arguments_of_the_loss():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            y = self.layer(x)
            self.sow(nnx.Intermediate, "seen", y)  # a variable that was not there before
            return y[:, 0], y[:, 1]

    def both(first, second, one, two):
        return (first - one) ** 2 + (second - two) ** 2

    parts = {n: (p["x"], (p["more"][:, 0], p["x"][:, 0])) for n, p in PARTS.items()}
    found = sweep.run(sweep.Task(parts, Two, both), axes(lr=0.03, gradient=[autodiff.gradient]), quiet=True)
    by_rules = sweep.run(
        sweep.Task(parts, Two, both), axes(lr=0.03, gradient=[chainrule.gradient]), quiet=True
    )
    assert found.gradient.values.tolist() == ["autodiff"]
    assert (found.test_loss[:, -1] < found.test_loss[:, 0]).all()
    np.testing.assert_allclose(by_rules.train_loss, found.train_loss, rtol=1e-5)


def test_precisions_are_an_axis():
    wide = toy_axes(optimizer=optim.momentum, schedule=schedules.constant, lr=0.1, seed=0)
    found = sweep.run(
        toy_experiment(), wide | {"precision": ["float32", "float64", "bfloat16"]}, quiet=True, layout="map"
    )
    losses = dict(zip(found.precision.values, found.test_loss.values[:, -1], strict=True))
    alone = sweep.run(toy_experiment(), wide, quiet=True, layout="map")
    assert losses["float32"] == alone.test_loss.values[0, -1]
    assert 0 < abs(losses["float64"] - losses["float32"]) < 1e-5
    assert 1e-5 < abs(losses["bfloat16"] - losses["float32"]) < 0.1


def test_rates_and_initial_weights_are_scaled_by_width():
    """muP by the tables of `optim.mup`: a model of base width stays as it is, and one four times as wide is
    trained as its own optimizer and initial weights, scaled by hand, train it."""
    experiment = sweep.as_experiment(sweep.Task(PARTS, model, loss))
    adam = axes(optimizer=optim.adam, schedule=schedules.constant, lr=0.01, width=[3, 12])
    plain = sweep.run(experiment, adam, quiet=True, layout="map")
    scaled = sweep.run(dataclasses.replace(experiment, mup={"width": 3}), adam, quiet=True, layout="map")
    assert scaled.train_loss.values[0].tolist() == plain.train_loss.values[0].tolist()

    def built(*, rngs, width):
        made = model(rngs=rngs, width=width)
        made.layers[-1].kernel[...] /= 2.0
        return made

    def by_hand(learning_rate):
        labels = {"layers": {0: {"kernel": "in", "bias": "in"}, 2: {"kernel": "out", "bias": "in"}}}
        rates = {"in": optax.adam(learning_rate), "out": optax.adam(learning_rate / 4)}
        return optax.partition(rates, labels)

    task = sweep.Task(PARTS, built, loss)
    wide = axes(optimizer=by_hand, schedule=schedules.constant, lr=0.01, width=12)
    expected = sweep.run(task, wide, quiet=True, layout="map")
    np.testing.assert_allclose(scaled.train_loss.values[1], expected.train_loss.values[0], rtol=1e-5)


def test_options_with_the_name_of_an_axis_or_of_each_other_have_full_names():
    def other(learning_rate, width=0.5):
        return optax.sgd(learning_rate, momentum=width)

    task = sweep.Task(PARTS, model, loss)
    with pytest.raises(
        ValueError, match=r"axis width is an option of model and optimizer: .*model.width and opt"
    ):
        sweep.run(task, axes(optimizer=other, width=3), quiet=True)
    full = axes(optimizer=other, **{"model.width": 2, "optimizer.width": 0.1, "model.steps": 2})
    (settings,) = sweep.expand(full, model)
    training = sweep.Experiment(PARTS, model, loss).training(settings)
    assert len(training.build(nnx.Rngs(0)).layers) == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "takes a dict of parts"),
        ({"train": X}, "lacks the part 'test'"),
        ({"train": X, "test": X, "dev": X}, "'dev' is not a part"),
        ({"train": (X, X[:3]), "test": (X, X)}, "3 and 40 examples: must be equal"),
        ({"train": X, "test": X[:, :2]}, r"shapes \(2,\), one of 'train' \(3,\)"),
        ({"train": X, "test": X[:0]}, "at least one"),
        ({"train": np.array(["a"]), "test": X}, "takes numbers"),
    ],
)
def test_data_that_are_none_are_refused_in_a_line(data, message):
    with pytest.raises(ValueError, match=message):
        sweep.Task(data, model, loss)


def test_what_a_loss_and_a_choice_must_be():
    with pytest.raises(ValueError, match=r"the loss of 6 examples has shape \(2,\)"):
        sweep.run(sweep.Task(PARTS, model, lambda model, batch: jnp.ones(2)), axes(), quiet=True)
    with pytest.raises(ValueError, match="choose=accuracy: evaluations measure largest, loss, off"):
        sweep.run(sweep.Experiment(PARTS, model, loss, choose="accuracy"), axes(), quiet=True)
    with pytest.raises(ValueError, match="the model takes input_shape"):
        sweep.run(sweep.Task(PARTS, models.linear, loss), axes(), quiet=True)


def test_labels_of_the_users_own_have_an_accuracy_and_start_from_0():
    labelled = {name: (p["x"], (p["more"][:, 0] > 0).astype(np.int64)) for name, p in PARTS.items()}
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
    below = labelled | {"test": (PARTS["test"]["x"], labelled["test"][1] - 1)}
    with pytest.raises(ValueError, match="data: a label is -1"):
        sweep.Task(below, models.linear, cross_entropy)
    task = sweep.Task(labelled, models.linear, cross_entropy)
    assert (task.classes, task.input_shape, task.outputs) == (2, (3,), 2)
    found = sweep.run(task, axes(lr=1.0), quiet=True)
    assert found.attrs["chosen_by"] == "valid_accuracy" and found.test_accuracy[0, -1] > 0.8
