"""Sweeps: what they compute."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

from bpresearch import chainrule, models, optim, sweep, train
from bpresearch.data.batches import shuffled_batches
from bpresearch.optim import schedules
from bpresearch.sweep import execute
from bpresearch.sweep import layout as layouts
from tests.sweep.toy import axes, dataset, experiment


@pytest.fixture(scope="module")
def results():
    return sweep.run(experiment(), axes(), quiet=True)


def test_results_have_a_coordinate_for_every_axis_and_a_value_for_every_step(results):
    assert dict(results.sizes) == {"run": 16, "step": 25, "eval_step": 4}
    assert results.eval_step.values.tolist() == [0, 10, 20, 25]
    for axis in (
        "optimizer",
        "schedule",
        "lr",
        "momentum",
        "batch_size",
        "seed",
        "model",
        "dataset",
        "loss",
    ):
        assert results[axis].dims == ("run",)
    for name in ("train_loss", "valid_loss", "valid_accuracy", "test_loss", "test_accuracy"):
        assert np.isfinite(results[name]).all(), name
    assert (results.diverged_at == -1).all()
    cosine = results.sel(run=results.schedule == "cosine").train_loss.mean("run")
    assert cosine.sizes == {"step": 25}


@pytest.mark.parametrize("layout", ["map", "vmap"])
def test_a_run_is_the_same_alone_and_among_256_bit_for_bit(layout):
    settings = {"optimizer": optim.momentum, "schedule": schedules.cosine}
    lr, seeds = np.geomspace(1e-3, 1.0, 64).tolist(), [3, 0, 1, 2]
    company = sweep.run(experiment(), axes(**settings, lr=lr, seed=seeds), quiet=True, layout=layout)
    assert company.sizes["run"] == 256
    for rate, seed in ((lr[0], 3), (lr[41], 2)):
        alone = sweep.run(experiment(), axes(**settings, lr=rate, seed=seed), quiet=True, layout=layout)
        among = company.isel(run=((company.lr == rate) & (company.seed == seed)).values)
        for name in ("train_loss", "test_loss", "valid_accuracy"):
            np.testing.assert_array_equal(alone[name].values, among[name].values)


def test_sixty_four_learning_rates_and_eight_momenta_are_one_training_program():
    programs = []

    def count(event, seconds, **attributes):
        if event == "/jax/core/compile/backend_compile_duration" and seconds > 0:
            programs.append(attributes.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        lr, momentum = np.geomspace(1e-3, 1.0, 64).tolist(), np.linspace(0.1, 0.9, 8).tolist()
        settings = {"optimizer": optim.momentum, "lr": lr, "momentum": momentum, "seed": 0}
        sweep.run(experiment(steps=26), axes(**settings), quiet=True)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert [sum(name in str(found) for found in programs) for name in ("advance_all", "start_all")] == [1, 1]


def test_a_sweep_is_split_until_it_fits_into_memory(monkeypatch):
    programs, compiled = {}, layouts.population

    def compiled_once(experiment, settings, data, size, *others):
        if size not in programs:
            programs[size] = compiled(experiment, settings, data, size, *others)
        return programs[size]

    monkeypatch.setattr(layouts, "population", compiled_once)
    task, settings = experiment(), axes(optimizer=optim.momentum)
    whole = sweep.run(task, settings, quiet=True, layout="map")
    two = layouts.planned(task, sweep.expand(settings, task.model)[:2], task.examples(), "map")
    for module in (layouts, execute):
        monkeypatch.setattr(module, "memory", lambda: layouts.memory_of(two))
    assert layouts.planned(task, sweep.expand(settings, task.model), task.examples(), "map", 1.0).size == 2
    split = sweep.run(task, settings, quiet=True, layout="map", memory_fraction=1.0)
    np.testing.assert_array_equal(split.train_loss, whole.train_loss)
    with pytest.raises(ValueError, match=r"memory_fraction=0.5: 2 runs at a time take .* GiB are allowed"):
        sweep.run(task, settings, quiet=True, layout="map", memory_fraction=0.5)
    assert sorted(programs) == [2, 4, 8]


def test_seeds_are_paired(results):
    for seed in (0, 1):
        first = results.train_loss.isel(run=results.seed == seed, step=0)
        assert len(np.unique(first)) == 1  # the same weights and the same first batch under every setting
    assert len(np.unique(results.train_loss.isel(step=0))) == 2


def test_a_population_trains_as_the_plain_training_function_does(results):
    task = experiment()
    training, parts = task.training({"optimizer": optim.momentum}), task.examples()
    hyperparameters = {"momentum": np.float32(0.9)}
    run = train.start(training, 1, hyperparameters)
    order = shuffled_batches(1, task.training_examples, 10, 1, 25)
    rates = np.float32(0.1) * schedules.table(schedules.cosine(25), 25)
    data = tuple(map(jnp.asarray, parts["train"]))
    _, losses = train.train(training, run, data, order, {"learning_rate": rates}, hyperparameters, 1, 25)
    chosen = (results.optimizer == "momentum") & (results.schedule == "cosine")
    company = results.train_loss.isel(run=chosen & (results.lr == 0.1) & (results.seed == 1))
    np.testing.assert_allclose(company.values[0], losses, rtol=1e-4)


def test_the_chain_rule_engine_trains_the_same(results):
    by_hand = sweep.run(experiment(gradient=chainrule.gradient), axes(), quiet=True)
    np.testing.assert_allclose(by_hand.train_loss, results.train_loss, rtol=1e-3, atol=1e-5)


def test_regression_has_losses_and_no_accuracy():
    task = experiment(data=dataset(classes=None), loss=optax.losses.squared_error, validation=0.0)
    found = sweep.run(task, axes(seed=0), quiet=True)
    assert {"test_loss", "train_loss"} <= set(found) and "test_accuracy" not in found
    assert "valid_loss" not in found


@pytest.mark.parametrize("layout", ["map", "vmap"])
def test_a_diverged_run_disturbs_nobody(layout):
    results = sweep.run(experiment(), axes(), quiet=True, layout=layout)
    mixed = sweep.run(experiment(), axes(lr=[0.1, 1e30, 0.01]), quiet=True, layout=layout)
    assert (mixed.diverged_at[mixed.lr == 1e30] > 0).all()
    healthy = mixed.isel(run=mixed.lr != 1e30)
    assert (healthy.diverged_at == -1).all()
    np.testing.assert_array_equal(healthy.train_loss.values, results.train_loss.values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 55}, "batch_size=55: takes 1 to 54"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"width": 3}, "axis width is not a hyper-parameter"),
    ],
)
def test_axes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sweep.run(experiment(), axes(**changes), quiet=True)


@pytest.mark.parametrize("missing", ["optimizer", "lr", "seed", "momentum"])
def test_missing_axes_are_named(missing):
    found = {name: values for name, values in axes().items() if name != missing}
    with pytest.raises(ValueError, match=f"lack {missing}"):
        sweep.run(experiment(), found, quiet=True)


@pytest.mark.parametrize(
    "changes",
    [{"steps": 0}, {"eval_every": 0}, {"validation": 1.0}, {"loss": optax.losses.cosine_similarity}],
)
def test_experiments_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        experiment(**changes)


def test_the_held_out_examples_are_not_trained_on():
    task = experiment(validation=0.25)
    parts = task.examples()
    assert [len(parts[name][0]) for name in ("train", "valid", "test")] == [45, 15, 30]
    together = np.concatenate([parts["train"][0], parts["valid"][0]])
    assert {tuple(row) for row in together} == {tuple(row) for row in task.data.x}
    assert not {tuple(row) for row in parts["train"][0]} & {tuple(row) for row in parts["valid"][0]}


def test_bfloat16_trains():
    found = sweep.run(
        dataclasses.replace(experiment(), dtype=jnp.bfloat16),
        axes(seed=0, lr=0.1),
        quiet=True,
    )
    assert np.isfinite(found.test_loss).all()
    assert (found.test_loss[:, -1] < found.test_loss[:, 0]).all()


def test_a_list_of_runs_is_appended_to_a_workdir(tmp_path, results):
    runs = sweep.expand(axes(), models.mlp)
    source = {"sampler": "random"}
    first = sweep.run(experiment(), runs[5:2:-1], tmp_path, source=source, quiet=True)
    assert first.run.values.tolist() == [0, 1, 2]
    again = sweep.run(experiment(), [runs[4], *runs[7:9], runs[4]], tmp_path, source=source, quiet=True)
    assert again.run.values.tolist() == [1, 3, 4, 1]
    np.testing.assert_array_equal(first.train_loss, results.train_loss[5:2:-1])
    np.testing.assert_array_equal(again.train_loss, results.train_loss[[4, 7, 8, 4]])
    stored = xr.open_zarr(tmp_path / "results.zarr", consolidated=False)
    assert stored.sizes["run"] == 5 and bool(stored.finished.all())
    assert stored.optimizer.values.tolist() == ["sgd", "sgd", "sgd", "sgd", "momentum"]
    with pytest.raises(ValueError, match=r'axes.sampler: "random" there, "tpe" here'):
        sweep.run(experiment(), runs[:1], tmp_path, source={"sampler": "tpe"}, quiet=True)
    with pytest.raises(ValueError, match="no runs"):
        sweep.run(experiment(), [], quiet=True)


def test_diagnostics_are_variables_with_their_own_dimensions(results):
    def sizes(moment):
        leaves = dict(jax.tree_util.tree_leaves_with_path(moment.run.params))
        norms = jnp.stack([jnp.linalg.norm(leaf) for leaf in leaves.values()])
        first = train.start(moment.training, moment.seed, moment.hyperparameters)
        moved = optax.tree.norm(jax.tree.map(jnp.subtract, moment.run.params, first.params))
        return {
            "norm": train.Measured(norms, {"leaf": [jax.tree_util.keystr(path) for path in leaves]}),
            "moved": train.Measured(moved),
            "rate": train.Measured(moment.hyperparameters["learning_rate"]),
            "step_loss": train.Measured(
                train.batch_loss(
                    moment.training, moment.run.params, moment.run.state,
                    train.batch_of(moment.training, moment.data, moment.batch),
                )
            ),
        }  # fmt: skip

    measured = sweep.run(experiment(diagnostics=(sizes,)), axes(lr=[0.1, 1e30]), quiet=True)
    assert measured.norm.dims == ("run", "eval_step", "leaf")
    assert measured.leaf.size == 4 and all(
        "kernel" in name or "bias" in name for name in measured.leaf.values
    )
    assert (measured.moved[:, 0] < 1e-6).all()
    chosen = {"run": (measured.lr == 0.1).values}
    assert (measured.moved[chosen][:, 1:] > 1e-3).all()
    assert np.isnan(measured.moved[{"run": (measured.lr == 1e30).values}][:, -1]).all()
    # The next step's batch and learning rate: the loss there is the loss that the step records.
    np.testing.assert_allclose(
        measured.step_loss[chosen][:, :3], measured.train_loss[chosen][:, [0, 10, 20]], rtol=1e-5
    )
    constant = (measured.schedule == "constant").values & chosen["run"]
    np.testing.assert_array_equal(measured.rate[constant], np.float32(0.1))
    untouched = results.train_loss[(results.lr == 0.1).values]
    np.testing.assert_array_equal(measured.train_loss[chosen], untouched)


def test_programs_are_traced_with_the_settings_of_the_thread_that_calls():
    seen = set()

    def loss(outputs, targets):
        seen.add(jax.config.jax_default_matmul_precision)
        return optax.losses.softmax_cross_entropy_with_integer_labels(outputs, targets)

    settings = sweep.grid(optimizer=optim.sgd, schedule=schedules.constant, lr=0.1, batch_size=10, seed=0)
    with jax.default_matmul_precision("highest"):
        sweep.run(experiment(loss=loss), settings, quiet=True)
    assert seen == {"highest"}


def test_optimizers_that_need_the_loss_get_it():
    def polyak(learning_rate):
        return optax.polyak_sgd(scaling=learning_rate / 50, max_learning_rate=1.0)

    def line_search(learning_rate):
        return optax.chain(optax.sgd(learning_rate), optax.scale_by_backtracking_linesearch(60))

    optimizers = [polyak, line_search, optim.sgd]
    settings = sweep.grid(optimizer=optimizers, schedule=schedules.constant, lr=50.0, batch_size=54, seed=0)
    found = sweep.run(experiment(), settings, quiet=True)
    by_polyak, by_search, plain = found.train_loss.values
    assert by_polyak[-1] < 0.7 * by_polyak[0]
    assert by_search[-1] < 0.7 * by_search[0] and (np.diff(by_search) < 1e-6).all()  # of all examples
    assert (np.diff(plain) > 0.1).any()  # steps of this size are too long by themselves


def test_a_scheduled_momentum_follows_its_table():
    constant = sweep.run(experiment(), axes(optimizer=optim.momentum, lr=0.1, seed=0), quiet=True)
    ramp = sweep.run(
        experiment(),
        axes(
            optimizer=optim.momentum, lr=0.1, seed=0, momentum_schedule=[schedules.constant, schedules.cosine]
        ),
        quiet=True,
    )
    same = ramp.sel(run=ramp.momentum_schedule == "constant")
    np.testing.assert_allclose(same.train_loss, constant.train_loss, rtol=1e-4)
    other = ramp.sel(run=ramp.momentum_schedule == "cosine")
    assert (abs(other.train_loss[:, -1] - same.train_loss[:, -1]) > 1e-3).all()


def test_models_and_their_options_are_axes():
    found = sweep.run(
        experiment(),
        axes(
            model=[models.linear, models.mlp], widths=[(8,), (4, 4)], optimizer=optim.momentum, seed=0, lr=0.1
        ),
        quiet=True,
    )
    assert found.sizes["run"] == 2 * 3
    assert set(zip(found.model.values, found.widths.values, strict=True)) == {
        ("linear", ""),
        ("mlp", "8"),
        ("mlp", "4,4"),
    }
    plain = sweep.run(experiment(), axes(optimizer=optim.momentum, seed=0, lr=0.1), quiet=True)
    chosen = found.sel(run=found.widths == "8")
    np.testing.assert_array_equal(chosen.train_loss, plain.train_loss)
