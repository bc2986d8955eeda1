"""Pruning: who goes on, that the survivors train as ever, and that nothing is lost."""

import numpy as np
import optax
import pytest
from scipy import stats

from bpresearch import models, optim, sweep
from bpresearch.data import Dataset
from bpresearch.optim import schedules
from bpresearch.sweep import blocks, prune

pytest.importorskip("optuna")

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.03, 0.1, 0.3)


def experiment(**changes):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 3)).astype(np.float32)
    y = (x @ generator.normal(size=(3, 2))).astype(np.float32)
    data = Dataset(name="toy", x=x[:40], y=y[:40], x_test=x[40:], y_test=y[40:], classes=None, description="")
    settings = {"data": data, "model": models.linear, "loss": optax.losses.squared_error}
    return sweep.Experiment(**(settings | {"steps": 16, "eval_every": 2, "validation": 0.4} | changes))


def axes(**changes):
    base = {"optimizer": optim.sgd, "schedule": schedules.constant, "lr": RATES}
    return sweep.grid(**(base | {"batch_size": 5, "seed": [0, 1]} | changes))


def runs(**changes):
    return sweep.run(experiment(), axes(lr=list(RATES)), quiet=True, **changes)


@pytest.fixture(scope="module")
def whole():
    return runs()


@pytest.fixture(scope="module")
def halved():
    return runs(prune="halving")


@pytest.mark.parametrize("name", prune.BY_MEAN)
@pytest.mark.parametrize("maximize", [False, True])
def test_the_better_settings_go_on_whatever_their_order(name, maximize):
    generator = np.random.default_rng(0)
    for _ in range(3):
        order = generator.permutation(16)
        values = (order if maximize else -order)[:, None] / 7.0
        goes = prune.survivors(name, 800, [100], values, maximize=maximize)
        assert goes[order == 15].all()  # the best, wherever it stands
        if name == "hyperband":  # some brackets begin to judge later
            assert 8 <= goes.sum() < 16
        else:
            assert order[goes].tolist() == [place for place in order if place >= 8]


def test_each_rung_halves_those_that_came_to_it():
    values = np.full((16, 3), np.nan)
    goes = np.ones(16, bool)
    for rung, expected in enumerate((8, 4, 2)):
        values[goes, rung] = np.arange(16)[goes]
        goes = prune.survivors(
            "halving", 800, [100, 200, 400][: rung + 1], values[:, : rung + 1], maximize=True
        )
        assert goes.tolist() == [False] * (16 - expected) + [True] * expected


def test_one_always_goes_on_unless_all_have_diverged():
    for name in prune.BY_MEAN:
        assert prune.survivors(name, 80, [10], np.array([[1.0]]), maximize=False).all()
        values = np.array([[np.nan], [2.0]])
        assert prune.survivors(name, 80, [10], values, maximize=False).tolist() == [False, True]
        assert not prune.survivors(name, 80, [10], np.full((3, 1), np.nan), maximize=False).any()


@pytest.mark.parametrize("maximize", [False, True])
def test_paired_seeds_end_what_a_signed_rank_test_finds_worse(maximize):
    """Against SciPy's test of each setting's differences from the best."""
    generator = np.random.default_rng(0)
    seeds, ahead = 20 * generator.normal(size=8), np.linspace(0, 2, 12)
    values = seeds + ahead[:, None] + 0.5 * generator.normal(size=(12, 8))
    values[3, 2] = np.nan  # diverged
    goes = prune.paired_survivors(values if maximize else -values, maximize=maximize)
    best = int(np.nanargmax(np.where(np.isnan(values).any(1), np.nan, values.mean(1))))
    expected = [
        number == best or stats.wilcoxon(row - values[best], alternative="less").pvalue >= 0.1
        for number, row in enumerate(values)
    ]
    expected[3] = False
    assert goes.tolist() == expected and 0 < sum(expected) < 8
    unpaired = stats.ttest_ind(values[0], values[best], alternative="less").pvalue
    assert unpaired > 0.1 and not goes[0]  # what seeds do to both hides the difference


def test_seeds_that_do_not_tell_settings_apart_end_none():
    values = np.array([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.1]])
    assert prune.paired_survivors(values, maximize=True).all()
    assert not prune.paired_survivors(np.full((2, 4), np.nan), maximize=True).any()


def test_paired_pruning_ends_settings_that_are_worse_with_every_seed():
    found = sweep.run(experiment(), axes(lr=[1e-4, 0.1], seed=range(4)), quiet=True, prune="wilcoxon")
    assert found.pruned_at.values[found.lr.values == 1e-4].tolist() == [2] * 4
    assert (found.pruned_at.values[found.lr.values == 0.1] == -1).all()
    with pytest.raises(ValueError, match=r"prune=wilcoxon: 2 seeds .* take at least 4"):
        runs(prune="wilcoxon")


def test_rungs_are_at_evaluations():
    assert prune.rungs_of(experiment(steps=800, eval_every=50)) == [100, 200, 400]
    assert prune.rungs_of(experiment(steps=100, eval_every=30)) == [30, 60]
    assert prune.rungs_of(experiment(steps=10, eval_every=10)) == []


def test_those_that_go_on_train_as_they_do_without_pruning_and_the_others_until_their_rung(whole, halved):
    steps = whole.step.values
    pruned_at = halved.pruned_at.values
    assert set(pruned_at) == {-1, 2, 4, 8} and halved.finished.values.all()
    until = np.where(pruned_at < 0, 16, pruned_at)
    expected = np.where(steps[None] <= until[:, None], whole.train_loss.values, np.nan)
    np.testing.assert_array_equal(halved.train_loss.values, expected)
    expected = np.where(whole.eval_step.values[None] <= until[:, None], whole.valid_loss.values, np.nan)
    np.testing.assert_array_equal(halved.valid_loss.values, expected)
    assert (pruned_at.reshape(-1, 2).std(1) == 0).all()  # a setting's seeds end together
    assert until.reshape(-1, 2)[:, 0].tolist().count(16) == 1
    assert (whole.pruned_at == -1).all()


def test_the_winner_is_that_of_the_full_sweep(whole, halved):
    scores = [r.valid_loss.values[:, -1].reshape(-1, 2).mean(1) for r in (whole, halved)]
    assert np.nanmin(scores[1]) == scores[0].min()


def test_a_pruned_sweep_that_was_stopped_goes_on_to_the_same_results(tmp_path, halved, monkeypatch):
    train, calls = blocks.Job.train, []

    def stop_at_the_third(*arguments, **stage):
        calls.append(1)
        if len(calls) == 3:
            raise sweep.Interrupted
        train(*arguments, **stage)

    monkeypatch.setattr(blocks.Job, "train", stop_at_the_third)
    with pytest.raises(sweep.Interrupted, match="of 16 runs are done"):
        runs(prune="halving", workdir=tmp_path)
    monkeypatch.undo()
    resumed = runs(prune="halving", workdir=tmp_path)
    for name in ("train_loss", "valid_loss", "pruned_at", "diverged_at", "finished"):
        np.testing.assert_array_equal(resumed[name], halved[name])
    with pytest.raises(ValueError, match="prune"):
        runs(workdir=tmp_path)


def test_a_run_that_diverges_before_its_rung_is_marked_so():
    found = sweep.run(experiment(), axes(lr=[0.1, 1e30, 0.01, 0.03]), prune="median", quiet=True)
    wild = found.lr.values == 1e30
    assert (found.diverged_at.values[wild] > 0).all() and (found.pruned_at.values[wild] == -1).all()
    assert (found.diverged_at.values[~wild] == -1).all() and found.finished.values.all()


def test_a_search_reports_what_its_trials_reached(tmp_path):
    space = sweep.grid(
        optimizer=optim.sgd,
        schedule=schedules.constant,
        lr=sweep.Uniform(1e-4, 1.0, log=True),
        batch_size=5,
        seed=0,
    )
    found = sweep.search(
        experiment(), space, trials=8, sampler="random", prune="halving", workdir=tmp_path, quiet=True
    )
    import optuna

    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    pruned = [trial.state.name == "PRUNED" for trial in study.trials]
    assert pruned == (found.pruned_at.values > 0).tolist() and 3 <= sum(pruned) < 8
    for trial, curve in zip(study.trials, found.valid_loss.values, strict=True):
        reached = [step for step in (2, 4, 8) if np.isfinite(curve[step // 2])]
        assert trial.intermediate_values == {step: curve[step // 2] for step in reached}


def test_an_unknown_pruner_is_named():
    with pytest.raises(ValueError, match="prune=quarter is not one of halving, hyperband, median"):
        runs(prune="quarter")
