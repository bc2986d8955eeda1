"""Searches: what samplers draw, what is kept, and that nothing is lost."""

import math
import sys

import numpy as np
import optax
import pytest
import xarray as xr

from bpresearch import models, optim, sweep
from bpresearch.data import Dataset
from bpresearch.optim import schedules
from bpresearch.sweep import Uniform, ask_and_tell, sample

optuna = pytest.importorskip("optuna")


def experiment(**changes):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 3)).astype(np.float32)
    y = (x @ generator.normal(size=(3, 3))).argmax(1).astype(np.int32)
    data = Dataset(name="toy", x=x[:40], y=y[:40], x_test=x[40:], y_test=y[40:], classes=3, description="")
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return sweep.Experiment(
        **({"data": data, "model": models.linear, "loss": loss, "steps": 6, "validation": 0.4} | changes)
    )


def axes(**changes):
    base = {"optimizer": [optim.sgd, optim.momentum], "schedule": schedules.constant}
    base |= {"lr": Uniform(1e-4, 1.0, log=True), "momentum": Uniform(0.0, 0.9), "batch_size": 5}
    return sweep.grid(**(base | {"seed": [0, 1]} | changes))


def drawn(name, trials, *, score=lambda run: 0.0, size=None, **changes):
    """The runs of trials that are scored without training."""
    study = sample.study(sample.Journal(None), maximize=True)
    found = []
    while batch := sample.next_batch(study, name, 0, size or trials, trials):
        for trial in batch:
            runs = sample.runs_of(trial, axes(**changes), models.linear, all_axes=name == "qmc")
            found.append(runs)
        for trial, runs in zip(batch, found[-len(batch) :], strict=True):
            sample.tell(study, trial, score(runs[0]), {})
    return found


@pytest.mark.parametrize("name", sample.SAMPLERS)
def test_a_trial_has_a_value_from_each_axis_and_every_seed(name):
    trials = drawn(name, 20, batch_size=Uniform(2, 9), size=10)
    assert len(trials) == 20
    for runs in trials:
        assert [run["seed"] for run in runs] == [0, 1]
        assert {repr({**run, "seed": 0}) for run in runs} == {repr({**runs[0], "seed": 0})}
        assert 1e-4 <= runs[0]["lr"] <= 1
        assert isinstance(runs[0]["batch_size"], int) and 2 <= runs[0]["batch_size"] <= 9
        assert math.isnan(runs[0]["momentum"]) == (runs[0]["optimizer"] is optim.sgd)
    assert len({runs[0]["lr"] for runs in trials}) == 20
    assert {runs[0]["optimizer"] for runs in trials} == {optim.sgd, optim.momentum}


def test_quasi_random_trials_fill_the_space_evenly():
    runs = [trial[0] for trial in drawn("qmc", 33, optimizer=optim.momentum)][1:]  # the first is random
    for place in ([math.log10(run["lr"]) / 4 + 1 for run in runs], [run["momentum"] / 0.9 for run in runs]):
        assert sorted(math.floor(32 * value) for value in place) == list(range(32))


def test_tpe_learns_from_the_trials_before():
    distance = lambda run: abs(math.log10(run["lr"] / 0.03))  # noqa: E731
    runs = [trial[0] for trial in drawn("tpe", 96, score=lambda run: -distance(run), size=12)]
    assert np.median([*map(distance, runs[-12:])]) < 0.4 * np.median([*map(distance, runs[:12])])


@pytest.fixture(scope="module")
def whole():
    return sweep.search(experiment(), axes(), trials=6, batch=3, quiet=True)


def test_the_study_is_optunas_own_and_holds_what_the_results_say(tmp_path, whole):
    results = sweep.search(experiment(), axes(), trials=6, batch=3, workdir=tmp_path, quiet=True)
    np.testing.assert_array_equal(results.train_loss, whole.train_loss)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    assert study.direction.name == "MAXIMIZE"
    final = results.valid_accuracy.values[:, -1].reshape(6, 2).mean(1)
    np.testing.assert_allclose([trial.value for trial in study.trials], final)
    lr = [trial.params["lr"] for trial in study.trials]
    np.testing.assert_allclose(lr, results.lr.values[::2])
    assert results.optimizer.values[::2].tolist() == [trial.params["optimizer"] for trial in study.trials]
    stored = xr.open_zarr(tmp_path / "results.zarr", consolidated=False)
    assert stored.sizes["run"] == 12


def test_what_is_factored_out_is_trained_whole_and_trials_are_judged_by_its_best(tmp_path):
    listed = axes(optimizer=optim.momentum, lr=sweep.Every([1e-4, 0.1, 1.0]))
    assert isinstance(listed["lr"], sweep.Every)
    results = sweep.search(experiment(), listed, trials=4, sampler="random", workdir=tmp_path, quiet=True)
    of_trials = results.valid_accuracy.values[:, -1].reshape(4, 3, 2)
    np.testing.assert_allclose(results.lr.values.reshape(4, 3, 2)[:, :, 0], [[1e-4, 0.1, 1.0]] * 4)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    np.testing.assert_allclose([trial.value for trial in study.trials], of_trials.mean(2).max(1))
    assert {frozenset(trial.params) for trial in study.trials} == {frozenset(["momentum"])}
    assert sweep.source_of(listed, "random", 0)["factor_out"] == ["lr"]


@pytest.mark.parametrize("stop_at", ["training", "telling"])
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, whole, monkeypatch, stop_at):
    calls = []

    def stopped(name, function):
        def maybe(*arguments, **options):
            calls.append(name)
            if calls.count(stop_at) == 2 and name == stop_at:
                raise sweep.Interrupted
            return function(*arguments, **options)

        return maybe

    monkeypatch.setattr(ask_and_tell, "run", stopped("training", ask_and_tell.run))
    monkeypatch.setattr(sample, "tell", stopped("telling", sample.tell))
    with pytest.raises(sweep.Interrupted):
        sweep.search(experiment(), axes(), trials=6, batch=3, workdir=tmp_path, quiet=True)
    monkeypatch.undo()
    resumed = sweep.search(experiment(), axes(), trials=6, batch=3, workdir=tmp_path, quiet=True)
    for name in ("lr", "momentum", "train_loss", "valid_accuracy"):
        np.testing.assert_array_equal(resumed[name], whole[name])


def test_a_search_can_be_made_longer_and_a_different_one_is_refused(tmp_path, whole):
    sweep.search(experiment(), axes(), trials=3, batch=3, workdir=tmp_path, quiet=True)
    longer = sweep.search(experiment(), axes(), trials=6, batch=3, workdir=tmp_path, quiet=True)
    np.testing.assert_array_equal(longer.train_loss, whole.train_loss)
    with pytest.raises(ValueError, match=r"other settings \(axes.sampler: .*tpe.*random"):
        sweep.search(experiment(), axes(), trials=3, sampler="random", workdir=tmp_path, quiet=True)
    (tmp_path / "study.journal").write_text('{"op_code": 4}\n')
    with pytest.raises(ValueError, match="not a journal"):
        sweep.search(experiment(), axes(), trials=3, batch=3, workdir=tmp_path, quiet=True)


def test_a_task_is_searched_and_runs_may_be_of_several_lengths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    like = experiment()
    options = {"trials": 2, "batch": 1, "sampler": "random", "sampler_seed": 1, "quiet": True}
    wide = sweep.grid(optimizer=optim.sgd, schedule=schedules.constant, lr=Uniform(0.1, 1.0), batch_size=5,
                      seed=0, steps=[4, 6])  # fmt: skip
    found = sweep.search(sweep.Task(like.data, like.model, like.loss), wide, workdir="~/w", **options)
    assert set(found.steps.values) == {4, 6} and found.eval_step.values.tolist() == [0, 4, 6]
    with pytest.raises(ValueError, match="axis steps is a distribution"):
        sweep.search(like, wide | {"steps": [Uniform(4, 6)]}, **options)
    assert (tmp_path / "w" / "study.journal").exists() and (tmp_path / "w" / "results.zarr").exists()


def test_a_trial_that_diverged_counts_as_pruned():
    study = sample.study(sample.Journal(None), maximize=False)
    for value in (1.0, math.nan):
        sample.tell(study, study.ask(), value, {})
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]


def test_without_optuna_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match="EXTRAS=optuna scripts/run"):
        sweep.search(experiment(), axes(), trials=2, quiet=True)


@pytest.mark.parametrize("bad", [{"sampler": "grid"}, {"trials": 0}, {"batch": 0}])
def test_bad_arguments_are_named(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}="):
        sweep.search(experiment(), axes(), **({"trials": 2} | bad), quiet=True)


def test_a_grid_of_distributions_is_refused():
    with pytest.raises(ValueError, match=r"axis lr is a distribution: sweep\.search draws from it"):
        sweep.run(experiment(), axes(momentum=0.5), quiet=True)
