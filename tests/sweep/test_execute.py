"""Sweeps: what they compute, and that they lose nothing."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import optax
import pytest
import xarray as xr

from bpresearch import chainrule, models, optim, sweep
from bpresearch.data import Dataset
from bpresearch.optim import schedules
from bpresearch.sweep import execute
from bpresearch.sweep.store import locked


def dataset(classes=3):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(90, 4)).astype(np.float32)
    rule = x @ generator.normal(size=(4, 3))
    y = rule.argmax(1).astype(np.int32) if classes else rule[:, :1].astype(np.float32)
    return Dataset(
        name="toy",
        x=x[:60],
        y=y[:60],
        x_test=x[60:],
        y_test=y[60:],
        classes=classes,
        description="",
    )


def experiment(**changes):
    settings = {
        "dataset": dataset(),
        "model": models.mlp,
        "model_options": {"widths": (8,)},
        "loss_fn": optax.losses.softmax_cross_entropy_with_integer_labels,
        "steps": 25,
        "eval_every": 10,
    }
    return sweep.Experiment(**(settings | changes))


def axes(**changes):
    base = {
        "optimizer": [optim.sgd, optim.momentum],
        "schedule": [schedules.constant, schedules.cosine],
    }
    base |= {"lr": [0.1, 0.01], "momentum": 0.9, "batch_size": 10, "seed": range(2)}
    return sweep.grid(**(base | changes))


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


def test_a_run_is_the_same_alone_and_in_company_bit_for_bit(results):
    for settings in ({"optimizer": optim.momentum, "schedule": schedules.cosine, "lr": 0.1, "seed": 1},):
        alone = sweep.run(experiment(), axes(**settings), quiet=True)
        chosen = (results.optimizer == "momentum") & (results.schedule == "cosine")
        company = results.isel(run=chosen & (results.lr == 0.1) & (results.seed == 1))
        for name in ("train_loss", "test_loss", "valid_accuracy"):
            np.testing.assert_array_equal(alone[name].values, company[name].values)


def test_seeds_are_paired(results):
    for seed in (0, 1):
        first = results.train_loss.isel(run=results.seed == seed, step=0)
        assert len(np.unique(first)) == 1  # the same weights and the same first batch under every setting
    assert len(np.unique(results.train_loss.isel(step=0))) == 2


def test_a_population_trains_as_the_plain_training_function_does(results):
    from bpresearch import train

    task = experiment()
    training, parts = task.training(optim.momentum), task.examples()
    hyperparameters = {"momentum": np.float32(0.9)}
    run = train.start(training, 1, hyperparameters)
    order = train.shuffled_batches(1, task.training_examples, 10, 1, 25)
    rates = np.float32(0.1) * schedules.table(schedules.cosine(25), 25)
    data = train.Examples(*map(jax.numpy.asarray, parts["train"]))
    _, losses = train.train(training, run, data, order, rates, hyperparameters, 1, 25)
    chosen = (results.optimizer == "momentum") & (results.schedule == "cosine")
    company = results.train_loss.isel(run=chosen & (results.lr == 0.1) & (results.seed == 1))
    np.testing.assert_allclose(company.values[0], losses, rtol=1e-4)


def test_the_chain_rule_engine_trains_the_same(results):
    by_hand = sweep.run(experiment(gradient=chainrule.gradient), axes(), quiet=True)
    np.testing.assert_allclose(by_hand.train_loss, results.train_loss, rtol=1e-3, atol=1e-5)


def test_regression_has_losses_and_no_accuracy():
    task = experiment(dataset=dataset(classes=None), loss_fn=optax.losses.squared_error, validation=0.0)
    found = sweep.run(task, axes(seed=0), quiet=True)
    assert {"test_loss", "train_loss"} <= set(found) and "test_accuracy" not in found
    assert "valid_loss" not in found


def test_a_diverged_run_disturbs_nobody(results):
    mixed = sweep.run(experiment(), axes(lr=[0.1, 1e30, 0.01]), quiet=True)
    assert (mixed.diverged_at[mixed.lr == 1e30] > 0).all()
    healthy = mixed.isel(run=mixed.lr != 1e30)
    assert (healthy.diverged_at == -1).all()
    np.testing.assert_array_equal(healthy.train_loss.values, results.train_loss.values)


def test_finished_runs_are_not_done_again(tmp_path, results, monkeypatch):
    first = sweep.run(experiment(), axes(), tmp_path / "w", quiet=True)
    stored = xr.open_zarr(tmp_path / "w" / "results.zarr", consolidated=False)
    np.testing.assert_array_equal(stored.train_loss, results.train_loss)
    monkeypatch.setattr(execute, "_train", None)  # nothing is left to train
    again = sweep.run(experiment(), axes(), tmp_path / "w", quiet=True)
    xr.testing.assert_identical(again.drop_attrs(), first.drop_attrs())
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    assert config["experiment"]["steps"] == 25
    assert {"versions", "device", "git_revision", "command"} <= set(config["provenance"])


def test_a_stopped_sweep_goes_on_where_it_was(tmp_path, results, monkeypatch):
    monkeypatch.setattr(execute, "RUNS_IN_A_BLOCK", 4)
    train_block, calls = execute.train_block, []

    def stop_at_the_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise sweep.Interrupted
        train_block(*arguments)

    monkeypatch.setattr(execute, "train_block", stop_at_the_third)
    with pytest.raises(sweep.Interrupted, match=r"8 of 16 runs are done, saved in .*same command"):
        sweep.run(experiment(), axes(), tmp_path / "w", quiet=True)
    calls[:] = [1] * 3
    resumed = sweep.run(experiment(), axes(), tmp_path / "w", quiet=True)
    assert len(calls) == 3 + 2
    for name in ("train_loss", "test_loss", "valid_accuracy", "diverged_at"):
        np.testing.assert_array_equal(resumed[name], results[name])


def test_a_workdir_with_another_sweep_is_refused_with_the_difference(tmp_path):
    sweep.run(experiment(), axes(seed=0), tmp_path, quiet=True)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"workdir=.*other settings \(steps: 25 there, 30 here\)"):
        sweep.run(experiment(steps=30), axes(seed=0), tmp_path, quiet=True)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_workdir_in_use_is_refused(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(ValueError, match=r"workdir=.* is in use"),
        locked(tmp_path),
    ):
        pass


@pytest.mark.parametrize("file", ["config.json", "results.zarr/zarr.json", "results.zarr/train_loss/c/0/0"])
def test_a_damaged_workdir_is_one_line_and_stays_as_it_is(tmp_path, file):
    sweep.run(experiment(), axes(seed=0), tmp_path, quiet=True)
    (tmp_path / file).write_bytes(b"\0damaged")
    with pytest.raises(ValueError, match=r"workdir=.*cannot be read.*take another folder") as error:
        sweep.run(experiment(), axes(seed=0), tmp_path, quiet=True)
    assert "\n" not in str(error.value)
    assert (tmp_path / file).read_bytes() == b"\0damaged"


def test_an_unusable_workdir_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"workdir=.*cannot write there"):
        sweep.run(experiment(), axes(seed=0), tmp_path / "file", quiet=True)


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


@pytest.mark.parametrize("changes", [{"steps": 0}, {"eval_every": 0}, {"validation": 1.0}])
def test_experiments_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        experiment(**changes)


def test_the_held_out_examples_are_not_trained_on():
    task = experiment(validation=0.25)
    parts = task.examples()
    assert [len(parts[name].x) for name in ("train", "valid", "test")] == [45, 15, 30]
    together = np.concatenate([parts["train"].x, parts["valid"].x])
    assert {tuple(row) for row in together} == {tuple(row) for row in task.dataset.x}
    assert not {tuple(row) for row in parts["train"].x} & {tuple(row) for row in parts["valid"].x}


def test_bfloat16_trains():
    found = sweep.run(
        dataclasses.replace(experiment(), dtype=jax.numpy.bfloat16),
        axes(seed=0, lr=0.1),
        quiet=True,
    )
    assert np.isfinite(found.test_loss).all()
    assert (found.test_loss[:, -1] < found.test_loss[:, 0]).all()


def test_a_signal_stops_the_sweep_and_it_resumes(tmp_path):
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import test_execute as t
        from bpresearch import platform, sweep
        platform.start("cpu")
        try:
            sweep.run(t.experiment(steps=400_000), t.axes(seed=0), {str(tmp_path / "w")!r})
        except sweep.Interrupted as error:
            print(error)
            sys.exit(130)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:  # wait for the first sign of training
        if "%" in line:
            break
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "the same command goes on" in output
    assert time.monotonic() - begun < 60
