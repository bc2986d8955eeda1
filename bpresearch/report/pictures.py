"""Pictures of training and tuning: loss curves, sensitivity to the learning rate."""

from dataclasses import replace

import altair as alt
import numpy as np
import pandas as pd

from bpresearch.report.style import (
    FOUR_DIGITS,
    NUMBER,
    axis_at,
    band,
    dotted_line,
    line,
    panels,
    tooltips,
)
from bpresearch.report.sweeps import Sweeps, binned, coarse
from bpresearch.statistics import best_settings, describe, mean_and_interval
from bpresearch.statistics import generalisation_gap as generalisation_gap_of

FLOOR = 1e-8
"""What smaller losses count as where logarithms are taken: float32 rounds them to 0."""

ONE_RUN = -1
"""`run` in the rows of a mean over runs; the page adds rows of single runs that were picked."""


def loss_curves(sweeps: Sweeps) -> alt.FacetChart:
    """Training loss of each optimizer's best setting, a panel for each schedule (or the other way round).

    The mean over a bin of steps, then the geometric mean over seeds with its 95 % interval, which is
    Student's of the logarithms (of the values themselves where a loss is negative).
    """
    positive = all(bool((sweep.results.train_loss.fillna(1) >= 0).all()) for sweep in sweeps)
    rows = curves(sweeps, "train_loss", positive)
    scale = alt.Scale(type="log", nice=False) if positive else alt.Scale()
    return panels(
        curve_layers(sweeps, rows, "training loss", scale),
        rows,
        f"How fast does each {sweeps.by} reduce the training loss?",
        f"Mini-batch loss at each {sweeps.by}'s best setting; {sweeps.seeds}",
        toggles=["x", "y"] if positive else ["x"],
        overlay="curves",
    )


def loss_over_seconds(sweeps: Sweeps) -> alt.FacetChart | None:
    """The same against the seconds of training, at what a step takes alone; None where no step was timed."""
    timed = Sweeps([sweep for sweep in sweeps if sweep.seconds], sweeps.by)
    if not timed.sweeps:
        return None
    positive = all(bool((sweep.results.train_loss.fillna(1) >= 0).all()) for sweep in timed)
    rows = curves(timed, "train_loss", positive)
    of_step = {(sweep.name, *key): times[0] for sweep in timed for key, times in sweep.seconds.items()}
    places = zip(rows.sweep, rows.optimizer, rows.schedule, strict=True)
    rows["seconds"] = rows.step * np.array([of_step.get(place, np.nan) for place in places])
    rows = rows.dropna(subset=["seconds"])
    scale = alt.Scale(type="log", nice=False) if positive else alt.Scale()
    return panels(
        curve_layers(sweeps, rows, "training loss", scale, x="seconds"),
        rows,
        f"How fast in seconds does each {sweeps.by} reduce the training loss?",
        f"At what a step takes one run alone; mini-batch loss at each best setting; {timed.seeds}",
        toggles=["x", "y"] if positive else ["x"],
    )


def generalisation_gap(sweeps: Sweeps) -> alt.FacetChart | None:
    """How much worse the test part is than examples that were trained on, at each best setting."""
    metric = sweeps.metric
    gaps = [generalisation_gap_of(sweep.results) for sweep in sweeps]
    if not sweeps.one_metric or any(gap is None for gap in gaps):
        return None
    with_gaps = [
        replace(sweep, results=sweep.results.assign(gap=sweeps.scaled(1) * gap))
        for sweep, gap in zip(sweeps, gaps, strict=True)
    ]
    rows = curves(Sweeps(with_gaps, sweeps.by), "gap", logarithmic=False)
    title = f"gap in {metric.name.partition(' ')[2]}{' (points)' if metric.percent else ''}"
    return panels(
        curve_layers(sweeps, rows, title, alt.Scale(zero=True)),
        rows,
        "How much is learned by heart?",
        f"Examples trained on against the test part, at each {sweeps.by}'s best setting; {sweeps.seeds}",
        toggles=["x"],
    )


def curve_layers(
    sweeps: Sweeps, rows: pd.DataFrame, title: str, scale: alt.Scale, x: str = "step"
) -> list[alt.Chart]:
    """Lines with bands over the steps, from rows as `curves` gives them, and thin ones for single runs."""
    channels = sweeps.channels(rows)
    across = alt.X(f"{x}:Q", title=x, scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=4))
    y = alt.Y("value:Q", title=title, scale=scale, axis=alt.Axis(format="~g", tickCount=6))
    y["axis"]["labelExpr"] = NUMBER if scale["type"] == "log" else FOUR_DIGITS
    mean = alt.Chart().transform_filter(f"datum.run === {ONE_RUN}")
    single = alt.Chart().transform_filter(f"datum.run !== {ONE_RUN}")
    shown = tooltips(
        rows, ["optimizer", "schedule", "setting", *dict.fromkeys(["step", x]), "value", "low", "high"]
    )
    return [
        band(channels, across, y, mean),
        line(channels, mean, x=across, y=y, tooltip=shown),
        single.mark_line(strokeWidth=1, strokeOpacity=0.55).encode(
            x=across, y=y, color=channels["color"], detail="run:N", tooltip=shown
        ),
    ]


def curves(sweeps: Sweeps, variable: str, logarithmic: bool) -> pd.DataFrame:
    """Rows of a variable's course at each optimizer's best setting: the mean over seeds and its interval."""
    rows: list[dict[str, object]] = []
    for sweep in sweeps:
        values = sweep.results[variable]
        along = next(str(name) for name in values.dims if name != "run")
        for (optimizer, schedule), setting in best_settings(sweep.results).items():
            at, means = binned(values.values[setting.runs], values[along].values)
            for step, run_means in zip(at, means.T, strict=True):
                scaled = np.log(np.maximum(run_means, FLOOR)) if logarithmic else run_means
                interval = mean_and_interval(scaled)
                bounds = np.array([interval.mean, *interval.bounds])
                value, low, high = np.exp(bounds) if logarithmic else bounds
                rows.append(
                    {
                        "step": float(step),
                        "value": value,
                        "low": low,
                        "high": high,
                        "run": ONE_RUN,
                        "optimizer": optimizer,
                        "schedule": schedule,
                        "sweep": sweep.name,
                        "panel": sweeps.panel(sweep, schedule if sweeps.by == "optimizer" else optimizer),
                        "setting": describe(setting),
                    }
                )
    return pd.DataFrame(rows)


def learning_rate_sensitivity(sweeps: Sweeps) -> alt.FacetChart | None:
    """Final test metric against the learning rate, a panel for each schedule.

    Other hyper-parameters have the values that are best, by validation, at that learning rate.
    """
    return sensitivity(sweeps, "lr", "learning rate", "How much does the learning rate matter?")


def effective_learning_rate(sweeps: Sweeps) -> alt.FacetChart | None:
    """The same against lr / (1 - beta), at which momentum and SGD take equal steps along a constant
    gradient; None where there is nothing to compare.
    """
    settings = sweeps.settings
    both = settings[settings.effective_lr.notna()].optimizer.nunique() > 1 and "momentum" in settings
    if sweeps.by != "optimizer" or not both:
        return None
    title = "Is momentum more than a larger learning rate?"
    return sensitivity(sweeps, "effective_lr", "lr / (1 - momentum)", title)


def sensitivity(sweeps: Sweeps, field: str, label: str, title: str) -> alt.FacetChart | None:
    """Final test metric against a column of the settings, all others at their best at each of its values."""
    metric = sweeps.metric
    if field not in sweeps.settings or sweeps.settings[field].isna().all():
        return None
    rows = _best_at_each(sweeps, field).assign(run=ONE_RUN)
    rates = sorted(set(rows[field].astype(float)))
    logarithmic = rates[0] > 0 and len(rates) > 1
    scale = alt.Scale(type="log", nice=False, padding=12) if logarithmic else alt.Scale(padding=12)
    channels = sweeps.channels(rows)
    x = alt.X(f"{field}:Q", title=label, scale=scale, axis=axis_at(rates))
    y = alt.Y("value:Q", title=metric.title, scale=alt.Scale(zero=False))
    others = [name for name in sweeps.axes if name not in ("optimizer", "schedule", field)]
    shown = tooltips(rows, ["optimizer", "schedule", field, *others, "value", "low", "high", "diverged"])
    mean = alt.Chart().transform_filter(f"datum.run === {ONE_RUN}")
    single = alt.Chart().transform_filter(f"datum.run !== {ONE_RUN}")
    layers = [
        band(channels, x, y, mean),
        *dotted_line(channels, mean, x=x, y=y, tooltip=shown),
        single.mark_point(size=70, strokeWidth=1.5).encode(
            x=x, y=y, color=channels["color"], shape=channels["shape"], tooltip=shown
        ),
    ]
    return panels(
        layers,
        rows,
        title,
        f"Final {metric.name}; {sweeps.tuning_seeds}{sweeps.left_out}",
        toggles=["x"] if logarithmic else [],
        independent_y=not sweeps.one_metric,
        overlay="runs",
    )


def _best_at_each(sweeps: Sweeps, field: str) -> pd.DataFrame:
    """For each optimizer, schedule and value of a field the setting that is best by validation."""
    settings = sweeps.settings.dropna(subset=[field])
    if settings[field].nunique() > 25:  # of a random search
        settings = settings.assign(**{field: coarse(settings[field])})
    sign = 1 if sweeps.metric.higher_is_better else -1
    order = settings.assign(order=(sign * settings.choosing).fillna(-np.inf))
    order = order.sort_values(["share_diverged", "order"], ascending=[True, False], kind="stable")
    best = order.drop_duplicates(["panel", sweeps.by, field]).sort_index()
    return best.drop(columns=["order", "setting"])
