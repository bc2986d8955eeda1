"""Pictures of sweeps over size, length and shape: does what is best at one hold at another?"""

import altair as alt
import numpy as np
import pandas as pd

from bpresearch.report.pictures import ONE_RUN, sensitivity
from bpresearch.report.style import (
    FOUR_DIGITS,
    NUMBER,
    band,
    colour_of,
    dotted_line,
    line,
    panels,
    titled,
    tooltips,
)
from bpresearch.report.sweeps import Sweep, Sweeps, column
from bpresearch.statistics import axes_of, best_settings, chosen_by, metric_of, settings_of, tuning
from bpresearch.theory import descent

MOST_VALUES = 12
"""Values of an axis up to which it has a panel."""


def horizon(sweeps: Sweeps) -> alt.FacetChart | None:
    """The final test metric against the length of training, each tuned at that length; None of one length.

    Other hyper-parameters have the values that are best, by validation, of runs as long.
    """
    if "steps" not in sweeps.axes:
        return None
    return sensitivity(sweeps, "steps", "steps of a run", "Does the ranking depend on how long training is?")


def ranking(sweeps: Sweeps) -> alt.FacetChart | None:
    """How far each is behind the one that leads, at each evaluation; None where nothing is compared, or once.

    Of each one's best setting with a schedule, the mean over seeds. As a schedule lowers the rate, those
    catch up whose rates were high: lines that cross are rankings that a shorter training would have given.
    """
    by, rows = sweeps.by, []
    for sweep in sweeps:
        metric = metric_of(sweep.results)
        variable, sign = sweep.results[metric.variable], 1 if metric.higher_is_better else -1
        strata: dict[str, dict[str, np.ndarray]] = {}
        for key, setting in best_settings(sweep.results, (by, sweeps.stratum)).items():
            if setting.scored:
                means = np.nanmean(variable.values[setting.runs].astype(np.float64), axis=0)
                strata.setdefault(key[1], {})[key[0]] = sign * means
        for stratum, courses in strata.items():
            if len(courses) > 1:
                rows += _behind(sweeps, sweep, stratum, courses)
    frame = pd.DataFrame(rows)
    if not len(frame) or frame.step.nunique() < 2:  # a line takes two
        return None
    unit = "points" if sweeps.metric.percent else sweeps.metric.name
    x = alt.X("step:Q", title="step", scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=4))
    y = alt.Y("behind:Q", title=f"behind the leader ({unit})", scale=alt.Scale(reverse=True))
    y["axis"] = alt.Axis(format="~g", labelExpr=FOUR_DIGITS, tickCount=6)
    shown = tooltips(frame, [by, "step", "behind", "place"])
    return panels(
        [line(sweeps.channels(frame), x=x, y=y, tooltip=shown)],
        frame,
        "Does the ranking change while training goes on and its rate decays?",
        f"{sweeps.metric.name} at each evaluation, at each {by}'s best setting; 0: the one that leads",
        toggles=["x"],
        independent_y=not sweeps.one_metric,
    )


def _behind(
    sweeps: Sweeps, sweep: Sweep, stratum: str, courses: dict[str, np.ndarray]
) -> list[dict[str, object]]:
    steps = sweep.results.eval_step.values
    values = np.array(list(courses.values()))
    values = np.where(np.isfinite(values), values, -np.inf)
    places = 1 + (values[:, None] < values[None]).sum(axis=1)
    behind = values.max(axis=0) - values
    return [
        {"step": float(step), "behind": float(sweeps.scaled(behind[number, at])),
         "place": int(places[number, at]), sweeps.by: name, "sweep": sweep.name,
         "panel": sweeps.panel(sweep, stratum)}
        for number, name in enumerate(courses)
        for at, step in enumerate(steps)
        if step > 0 and np.isfinite(behind[number, at])
    ]  # fmt: skip


def best_rates(sweeps: Sweeps) -> alt.FacetChart | None:
    """The best learning rate against every other number that was swept: width, length, batch size.

    For each optimizer and schedule the rate at which the metric that settings are chosen by is best, all
    other hyper-parameters at their best, by a parabola through the best three rates where that is a loss.
    With muP (--mup) it should not depend on the width. None where there are no such numbers, or too few
    rates.
    """
    frame = pd.DataFrame([row for sweep in sweeps for row in _rates(sweeps, sweep)])
    if not len(frame):
        return None
    stratum = [sweeps.stratum] if frame[sweeps.stratum].nunique() > 1 else []
    rows = frame.to_dict("records")
    frame["panel"] = [sweeps.panel(r["sweep"], titled(r["axis"]), *(r[s] for s in stratum)) for r in rows]
    channels = sweeps.channels(frame)
    logarithmic = bool(frame["at"].min() > 0)
    scale = alt.Scale(type="log", nice=False, padding=12) if logarithmic else alt.Scale(padding=12)
    x = alt.X("at:Q", title=None, scale=scale)
    x["axis"] = alt.Axis(format="~g", labelExpr=FOUR_DIGITS, tickCount=5)
    y = alt.Y("lr:Q", title="best learning rate", scale=alt.Scale(type="log", nice=False, padding=12))
    y["axis"] = alt.Axis(format="~g", labelExpr=NUMBER, tickCount=5)
    shown = tooltips(frame, ["optimizer", "schedule", "at", "lr", "edge"])
    return panels(
        dotted_line(channels, x=x, y=y, tooltip=shown),
        frame,
        "Does the best learning rate move?",
        "Against each number that was swept beside it, which heads its panel; all else at its best",
        height=260,
        independent_x=True,
    )


def _rates(sweeps: Sweeps, sweep: Sweep) -> list[dict[str, object]]:
    """The best rate of each optimizer and schedule at each value of each axis that is a size."""
    results = tuning(sweep.results)
    metric = chosen_by(results)
    sign = -1 if metric.higher_is_better else 1
    settings, rows = settings_of(results), []
    for axis in axes_of(results):
        sizes = {} if axis == "lr" else _sizes(results[axis].values)
        if not sizes:
            continue
        groups: dict[tuple[str, str, float], dict[float, float]] = {}
        for setting in settings:
            rate, at = setting.values.get("lr"), sizes.get(setting.values.get(axis))
            if rate is None or at is None or not rate > 0:
                continue
            key = str(setting.values["optimizer"]), str(setting.values["schedule"]), at
            losses = groups.setdefault(key, {})
            loss = sign * float(setting.chosen_by.mean())
            losses[rate] = np.nanmin([losses.get(rate, np.inf), loss if np.isfinite(loss) else np.inf])
        for (optimizer, schedule, at), losses in groups.items():
            rates = np.array(sorted(losses))
            curve = np.array([losses[rate] for rate in rates])
            if len(rates) < 3 or not np.isfinite(curve).any():
                continue
            best = int(np.argmin(curve))
            rate = descent.lowest(rates, curve)[0] if curve[np.isfinite(curve)].min() > 0 else rates[best]
            rows.append({"axis": column(axis), "at": at, "lr": float(rate),
                         "edge": "yes" if best in (0, len(rates) - 1) else "no", "sweep": sweep.name,
                         "optimizer": optimizer, "schedule": schedule})  # fmt: skip
    return [row for row in rows if len({r["at"] for r in rows if r["axis"] == row["axis"]}) > 1]


def _sizes(values: np.ndarray) -> dict[object, float]:
    """What number each value of an axis is: itself; of widths "64,64", 64. None of others."""
    if values.dtype.kind in "if":
        return {value: float(value) for value in values.tolist()}
    texts = [str(value) for value in values.tolist()]
    parts = [set(text.split(",")) for text in texts if text]
    layers = {text.count(",") for text in texts if text}
    if len(layers) > 1 or not all(len(part) == 1 and min(part).isdecimal() for part in parts):
        return {}
    return {text: float(text.split(",")[0]) for text in texts if text}


def shapes(sweeps: Sweeps) -> alt.FacetChart | None:
    """The final test metric against every axis but the learning rate, at the rate that is best for each.

    So the base rate is factored out of what a schedule's shape, a warm-up or any other option gains. A panel
    for each axis that has a few values; all other hyper-parameters have their best values, by validation.
    """
    axes = [name for name in sweeps.axes if name not in (sweeps.by, "lr") and name in sweeps.settings]
    axes = [name for name in axes if sweeps.settings[name].dropna().nunique() in range(2, MOST_VALUES + 1)]
    frames = []
    for axis in axes if "lr" in sweeps.axes else []:
        for sweep in sweeps:
            mine = sweeps.settings[sweeps.settings.sweep == sweep.name].dropna(subset=[axis])
            order = mine.sort_values(
                ["share_diverged", "choosing"],
                ascending=[True, not chosen_by(sweep.results).higher_is_better],
                kind="stable",
            )
            best = order.drop_duplicates([sweeps.by, axis]).sort_index()
            sizes = _sizes(best[axis].to_numpy())
            at = best[axis].map(sizes) if sizes else best[axis].astype(str)
            labels = [f"{v:.4g}" if isinstance(v, float | int) else str(v) for v in best[axis]]
            # Names, of schedules say, have no order that a line could follow: each is a line of its own.
            of_line = best[sweeps.by] if sizes else best[sweeps.by] + " " + at
            frames.append(
                best.assign(
                    at=labels, place=at.rank(method="dense"), named=not sizes, of_line=of_line,
                    panel=sweeps.panel(sweep, titled(axis)), run=ONE_RUN,
                )
            )  # fmt: skip
    if not frames:
        return None
    frame = pd.concat(frames, ignore_index=True)
    columns = [sweeps.by, "at", "place", "named", "of_line", "panel", "sweep", "value", "low", "high", "lr"]
    channels = sweeps.channels(frame)
    x = alt.X("at:O", title=None, sort=alt.EncodingSortField("place", op="min"))
    x["axis"] = alt.Axis(labelAngle=0, labelLimit=90)
    y = alt.Y("value:Q", title=sweeps.metric.title, scale=alt.Scale(zero=False))
    shown = tooltips(frame, [sweeps.by, "at", "lr", "value", "low", "high"])
    lines = [alt.Detail(f"{sweeps.by}:N"), alt.Detail("of_line:N")]
    intervals = alt.Chart().transform_filter("datum.named")
    intervals = intervals.mark_rule(strokeWidth=5, opacity=0.25, stroke=colour_of(channels))
    low = alt.Y("low:Q", title=y["title"], scale=y["scale"])
    return panels(
        [
            band(channels, x, y).encode(detail=lines),
            intervals.encode(x=x, y=low, y2="high:Q", detail=channels["detail"]),
            *dotted_line(channels, x=x, y=y, tooltip=shown, detail=lines),
        ],
        frame[columns],
        "What does each setting gain, at the learning rate that is best for it?",
        f"Final {sweeps.metric.name}, all else at its best; {sweeps.tuning_seeds}",
        height=240,
        independent_x=True,
        independent_y=not sweeps.one_metric,
    )
