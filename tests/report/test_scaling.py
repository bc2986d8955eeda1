"""Pictures of size, length, shape, cost and gaps: what their rows say."""

import numpy as np
import pytest
import xarray as xr

from bpresearch import report, statistics
from bpresearch.report import comparisons, pictures, scaling
from bpresearch.statistics import Target

RATES = (0.001, 0.01, 0.1, 1.0, 10.0)


def sweeps(*results, **options):
    named = [report.Sweep(f"sweep {n}", found, **options) for n, found in enumerate(results)]
    return report.Sweeps(named)


def together(axis, parts):
    """The results of several sweeps as one over this axis."""
    listed = [
        part.assign_coords({axis: ("run", np.full(part.sizes["run"], at))}) for at, part in parts.items()
    ]
    both = xr.concat(listed, "run", data_vars="minimal", coords="minimal", compat="override", join="override")
    return both.assign_coords(run=np.arange(both.sizes["run"]))


def test_the_best_rate_follows_the_width(made_up):
    parts = {width: made_up(rates=RATES, best=1 / width, schedules=("constant",)) for width in (1, 10, 100)}
    frame = scaling.best_rates(sweeps(together("width", parts))).data
    assert set(frame.panel) == {"width"} and set(frame.optimizer) == {"sgd", "momentum"}
    np.testing.assert_allclose(frame.lr, 1 / frame["at"])
    assert (frame.edge == "no").all()


def test_widths_of_equal_layers_are_a_size(made_up):
    parts = {
        widths: made_up(rates=RATES, best=best, schedules=("constant",))
        for widths, best in (("8,8", 1.0), ("64,64", 0.1))
    }
    frame = scaling.best_rates(sweeps(together("widths", parts))).data
    assert dict(zip(frame["at"], frame.lr, strict=True)) == {8: 1.0, 64: 0.1}
    deeper = {"8,8": parts["8,8"], "64": parts["64,64"]}  # another depth as well: not one number
    assert scaling.best_rates(sweeps(together("widths", deeper))) is None


def test_what_is_compared_looks_alike_in_every_picture(made_up):
    few = sweeps(made_up(optimizers=("sgd", "momentum", "adam")))
    all_three = few.channels(few.settings)
    late = few.channels(few.settings[few.settings.optimizer != "sgd"])
    for channel in ("color", "dash", "shape"):
        assert late[channel]["scale"]["domain"] == all_three[channel]["scale"]["domain"]
        assert late[channel]["legend"]["values"] == ["momentum", "adam"]


def test_between_rates_the_best_is_that_of_a_parabola_of_the_loss(made_up):
    parts = {}
    for width in (1, 4):
        part = made_up(rates=RATES, schedules=("constant",), accuracy=False)
        loss = np.exp(0.1 * np.log(part.lr.values * width / 0.3) ** 2)
        parts[width] = part.assign(valid_loss=(("run", "eval_step"), np.stack([loss, loss], 1)))
    frame = scaling.best_rates(sweeps(together("width", parts))).data
    np.testing.assert_allclose(frame.lr, 0.3 / frame["at"], rtol=1e-6)


def test_the_ranking_against_the_horizon_is_of_settings_tuned_at_each(made_up):
    short, long = (
        made_up(rates=RATES, best=1.0, schedules=("constant",)),
        made_up(optimizers=("momentum", "sgd"), rates=RATES, best=0.1, schedules=("constant",)),
    )
    frame = scaling.horizon(sweeps(together("steps", {10: short, 40: long}))).data
    best = {(row.optimizer, row.steps): (row.lr, row.value) for row in frame.itertuples()}
    assert best["sgd", 10][0] == 1.0 and best["sgd", 40][0] == 0.1
    assert best["momentum", 10][1] > best["sgd", 10][1] and best["momentum", 40][1] < best["sgd", 40][1]
    assert scaling.horizon(sweeps(short)) is None


def test_the_ranking_on_the_way_is_the_distance_to_the_leader(made_up):
    results = made_up(schedules=("cosine",)).assign_coords(eval_step=[20, 40])
    values = results.test_accuracy.values.copy()
    values[:, 0] = np.where(results.optimizer.values == "sgd", 0.4, 0.3)  # ahead on the way
    frame = scaling.ranking(sweeps(results.assign(test_accuracy=(("run", "eval_step"), values)))).data
    rows = {(row.optimizer, row.step): (row.behind, row.place) for row in frame.itertuples()}
    assert rows["sgd", 20] == (0, 1) and rows["momentum", 20][0] == pytest.approx(10)
    assert rows["momentum", 40] == (0, 1) and rows["sgd", 40] == (pytest.approx(10), 2)
    assert scaling.ranking(sweeps(made_up(optimizers=("sgd",)))) is None
    assert scaling.ranking(sweeps(made_up())) is None  # one evaluation, at the end: no way to it


def test_shapes_are_compared_at_the_rate_that_is_best_for_each(made_up):
    parts = {
        at: made_up(rates=RATES, best=best, schedules=("cosine",)) for at, best in ((0.0, 1.0), (0.5, 0.01))
    }
    frame = scaling.shapes(sweeps(together("warmup", parts))).data
    assert set(frame.panel) == {"warmup"} and frame["at"].tolist().count("0.5") == 2
    assert {(row.at, row.lr) for row in frame.itertuples()} == {("0", 1.0), ("0.5", 0.01)}
    np.testing.assert_allclose(frame.value[frame.optimizer == "sgd"], 51)


def test_seconds_are_steps_times_what_a_step_takes(made_up, tmp_path):
    results = made_up()
    times = {(o, s): (cost, cost / 2, 2 * cost) for o, cost in (("sgd", 0.1), ("momentum", 0.25))
             for s in ("constant", "cosine")}  # fmt: skip
    timed = report.Sweep("a", results, seconds=times)
    frame = pictures.loss_over_seconds(report.Sweeps([timed])).data
    cost = np.where(frame.optimizer == "sgd", 0.1, 0.25)
    np.testing.assert_allclose(frame.seconds, cost * frame.step)
    assert pictures.loss_over_seconds(sweeps(results)) is None
    page = report.write(timed, tmp_path, drawings=False, target=Target("accuracy", 0.5)).read_text()
    text = page.partition("<script")[0]
    assert "250 (125 to 500)" in text and "2.50" in text  # milliseconds, and over the fastest
    target, per_step = Target("accuracy", 0.55), {key: time[0] for key, time in times.items()}
    figures = statistics.target_figures(results, target, seconds=per_step)
    assert figures["momentum.seconds_to_target"] == pytest.approx(40 * 0.25)
    assert "sgd.seconds_to_target" not in figures  # which is never there
    assert "median 40 steps or 10 s" in statistics.reaching(results, target, seconds=per_step)


def test_the_gap_is_between_examples_trained_on_and_the_test_part(made_up):
    results = made_up()
    assert pictures.generalisation_gap(sweeps(results)) is None  # nothing was measured of training
    accuracy = results.assign(train_eval_accuracy=results.test_accuracy + 0.05)
    np.testing.assert_allclose(statistics.generalisation_gap(accuracy), 0.05)
    np.testing.assert_allclose(pictures.generalisation_gap(sweeps(accuracy)).data.value, 5)
    losses = made_up(accuracy=False)
    losses = losses.assign(train_eval_loss=losses.test_loss - 0.3)
    np.testing.assert_allclose(statistics.generalisation_gap(losses), 0.3)


def test_importances_have_a_bar_each(made_up):
    pytest.importorskip("optuna")
    frame = comparisons.importances(sweeps(made_up(rates=RATES))).data
    assert set(frame.parameter) == {"learning rate", "schedule"} and set(frame.panel) == {"sgd", "momentum"}
    assert (frame.share[frame.parameter == "learning rate"] > 80).all()


@pytest.mark.parametrize("positive", [True, False])
def test_numbers_by_rank_have_a_line_each(made_up, positive):
    results = made_up()
    values = np.arange(1.0, 4)[::-1] - 2 * (not positive)
    eigenvalues = np.broadcast_to(values, (results.sizes["run"], 2, 3))
    results = results.assign(top=(("run", "eval_step", "rank"), eigenvalues)).assign_coords(rank=[1, 2, 3])
    frame = report.sections.recorded.diagnostics(sweeps(results))["top"].data
    assert {(row.rank, row.value) for row in frame.itertuples()} == set(enumerate(values, 1))
