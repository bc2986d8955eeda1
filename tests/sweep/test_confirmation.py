"""The chosen settings are trained again with fresh seeds, and nothing of the tuning changes."""

import jax
import numpy as np
import pytest
import xarray as xr

from bpresearch import optim, statistics, sweep
from bpresearch.optim import schedules
from bpresearch.sweep import confirmation, execute, layout
from bpresearch.sweep.axes import groups
from bpresearch.sweep.population import Population
from tests.sweep.toy import axes, experiment

AXES = axes(lr=[0.1, 0.01, 1.0])
SIX = {"seeds": 6, "quiet": True}


@pytest.fixture(scope="module")
def runs():
    return sweep.expand(AXES, experiment().model)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, runs):
    """The tuning runs, and the fresh runs of what was chosen."""
    path = tmp_path_factory.mktemp("confirmed")
    tuned = sweep.run(experiment(), AXES, path, quiet=True)
    sweep.confirm(experiment(), runs, tuned, workdir=path, **SIX)
    return path


def test_the_best_of_each_optimizer_has_all_fresh_seeds_and_its_other_schedules_half(workdir):
    tuned, both = sweep.read(workdir), sweep.read_confirmed(workdir)
    fresh = both.isel(run=np.flatnonzero(both.fresh.values))
    assert both.sizes["run"] - fresh.sizes["run"] == tuned.sizes["run"] == 24
    best = statistics.best_settings(both)
    ahead = [setting.values for setting in statistics.best_settings(tuned, ("optimizer",)).values()]
    assert len(best) == 4 and all(setting.fresh for setting in best.values())
    for key, setting in best.items():
        assert setting.values == statistics.best_settings(tuned)[key].values
        count = 6 if setting.values in ahead else 3
        assert setting.seeds.tolist() == list(range(10_000, 10_000 + count))
    assert fresh.sizes["run"] == 2 * (6 + 3) and len(np.unique(both.run)) == both.sizes["run"]
    before = both.isel(run=np.flatnonzero(~both.fresh.values)).drop_vars("fresh")
    xr.testing.assert_identical(before.drop_attrs(), tuned.drop_attrs())
    assert both.attrs["chosen_by"] == "valid_accuracy"


def test_a_fresh_run_is_that_of_a_sweep_with_its_seed(workdir):
    both = sweep.read_confirmed(workdir)
    best = statistics.best_settings(both)["momentum", "cosine"]
    again = axes(optimizer=optim.momentum, schedule=schedules.cosine, lr=best.values["lr"], seed=[10_001])
    alone = sweep.run(experiment(), again, quiet=True)
    np.testing.assert_array_equal(alone.train_loss[0], both.train_loss[best.runs[1]])


def test_what_is_confirmed_is_not_trained_again_and_more_seeds_are_added(workdir, runs, monkeypatch):
    tuned = sweep.read(workdir)
    trained = []
    monkeypatch.setattr(execute, "_train", lambda _, choice, todo, *rest, **how: trained.append(todo))
    found = sweep.confirm(experiment(), runs, tuned, workdir=workdir, **SIX)
    xr.testing.assert_identical(found.load().drop_attrs(), sweep.read_confirmed(workdir).drop_attrs())
    assert trained == []
    more = {"seeds": 8, "quiet": True}
    both = sweep.confirm(experiment(), runs, tuned, workdir=workdir, **more)
    assert len(trained) == 1 and int((~both.finished).sum()) == 2 * (2 + 1)
    assert "fresh" not in sweep.read_confirmed(workdir)  # not whole: the tuning runs are reported


def test_where_nothing_was_chosen_nothing_is_trained_again(made_up, runs):
    one = made_up(schedules=("constant",), rates=(0.1,))
    assert sweep.confirm(experiment(), runs, one) is one and statistics.apart(one)
    assert confirmation.expected([runs[0], runs[0] | {"seed": 1}], 6) == []
    many = made_up()
    assert sweep.confirm(experiment(), runs, many, seeds=0) is many and not statistics.apart(many)
    with pytest.raises(ValueError, match="confirm_seeds=-1: takes a number of at least 0"):
        sweep.confirm(experiment(), runs, many, seeds=-1)


def test_the_programs_of_tuning_and_of_fresh_runs_have_one_shape(runs, monkeypatch):

    def shaped(experiment, one, data, size, seeds, width, shard):
        return Population(None, None, size, seeds, width, None, None, None)

    monkeypatch.setattr(layout, "population", shaped)
    monkeypatch.setattr(layout, "memory_of", lambda program: 0)
    task = experiment()
    tuned, *_ = groups(runs)
    again = [s for s in confirmation.expected(runs, 6) if s["optimizer"] is tuned[0]["optimizer"]]
    assert len(again) == 6 + 3 and len(tuned) == 12
    of_tuning = layout.laid_out(task, tuned, {}, beside=again)
    assert of_tuning == layout.laid_out(task, again, {}, beside=tuned)
    assert of_tuning.size == max(16, of_tuning.width * jax.device_count()) and of_tuning.seeds == 8


def test_columns_of_text_keep_their_kind_where_the_chosen_have_none(workdir):
    tuned = sweep.read(workdir)
    some = np.where(tuned.optimizer == "sgd", "", "up").astype(object)
    tuned = tuned.assign_coords(momentum_schedule=("run", some))
    of_sgd = sweep.read(workdir / "confirm")
    of_sgd = of_sgd.isel(run=np.flatnonzero(of_sgd.optimizer == "sgd"))
    of_sgd = of_sgd.assign_coords(momentum_schedule=("run", np.full(of_sgd.sizes["run"], np.nan)))
    both = confirmation.joined(tuned, of_sgd)
    assert set(both.momentum_schedule.values.tolist()) == {"", "up"}
    assert statistics.best_settings(both)["sgd", "cosine"].fresh
