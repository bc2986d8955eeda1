"""Pictures of the comparison itself: budgets, profiles, intervals."""

import altair as alt
import numpy as np
import pandas as pd

from bpresearch.imports import MissingExtraError
from bpresearch.report.style import band, line, panels, titled, tooltips
from bpresearch.report.sweeps import Sweeps
from bpresearch.statistics import (
    budget_curves,
    differences,
    importance,
    interquartile_mean_interval,
    metric_of,
    performance_profile,
    several,
)

MOST_TRIALS = 200


def budgets(sweeps: Sweeps) -> alt.FacetChart | None:
    """Expected best test metric against the number of settings tried, for each optimizer.

    None where runs were pruned: what those would have reached is not known.
    """
    by = sweeps.by
    if sweeps.lost[1]:
        return None
    rows: list[dict[str, object]] = []
    for sweep in sweeps:
        for name, curve in budget_curves(sweep.results, by).items():
            at = np.unique(np.geomspace(1, len(curve.trials), MOST_TRIALS).round().astype(int)) - 1
            mean, half = sweeps.scaled(curve.mean[at]), sweeps.scaled(curve.half_width[at])
            rows += [
                {"trials": int(n), "value": m, **sweeps.interval(m - h, m + h), by: name, "sweep": sweep.name,
                 "panel": sweeps.panel(sweep)}
                for n, m, h in zip(curve.trials[at], mean, half, strict=True)
            ]  # fmt: skip
    frame = pd.DataFrame(rows)
    if frame.trials.max() < 2:
        return None
    channels = sweeps.channels(frame)
    x = alt.X("trials:Q", title="settings tried", scale=alt.Scale(type="log", nice=False))
    x["axis"] = alt.Axis(format="d", tickCount=6)
    y = alt.Y("value:Q", title=sweeps.metric.title, scale=alt.Scale(zero=False))
    shown = tooltips(frame, [by, "trials", "value", "low", "high"])
    return panels(
        [band(channels, x, y), line(channels, x=x, y=y, tooltip=shown)],
        frame,
        f"How much tuning does each {by} need?",
        f"Expected test result of the best of n random settings, chosen by validation; {sweeps.tuning_seeds}",
        toggles=["x"],
        height=280,
        independent_y=not sweeps.one_metric,
    )


def importances(sweeps: Sweeps) -> alt.FacetChart | None:
    """The share of the variance between settings that each hyper-parameter explains (Hutter et al. 2014).

    None where too few settings were tried, or they were drawn and Optuna is not installed.
    """
    try:
        sweep_shares = [(sweep, importance(sweep.results, sweeps.by)) for sweep in sweeps]
    except MissingExtraError:
        return None
    rows = [
        {"parameter": titled(name), "share": 100 * share, sweeps.by: value, "sweep": sweep.name,
         "panel": sweeps.panel(sweep, value)}
        for sweep, shares in sweep_shares
        for value, of in shares.items()
        for name, share in of.items()
    ]  # fmt: skip
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    colour = sweeps.channels(frame)["color"]
    colour["legend"] = None
    bars = (
        alt.Chart()
        .mark_bar(height=14)
        .encode(
            x=alt.X("share:Q", title="share of variance (%)", scale=alt.Scale(domain=[0, 100])),
            y=alt.Y("parameter:N", title=None, sort="-x", axis=alt.Axis(labelLimit=120)),
            color=colour,
            tooltip=tooltips(frame, [sweeps.by, "parameter", "share"]),
        )
    )
    names = len(set(frame.parameter))
    return panels(
        [bars],
        frame,
        "Which hyper-parameters matter?",
        "Of the differences between the settings tried; what is missing to 100 % lies in interactions",
        height=30 + 24 * names,
        room=120,
    )


def profiles(sweeps: Sweeps) -> alt.FacetChart | None:
    """Performance profiles: the share of tuned runs above each score (Agarwal et al. 2021)."""
    by, stratum = sweeps.by, sweeps.stratum
    scores = _scores(sweeps)
    if not scores:
        return None
    low = min(float(np.concatenate(s).min()) for s in scores.values())
    high = max(float(np.concatenate(s).max()) for s in scores.values())
    thresholds = np.linspace(max(low, -0.2), high, 101) if high > low else np.array([low - 0.01, high])
    rows = []
    for name, per_stratum in scores.items():
        share, below, above = 100 * performance_profile(per_stratum, thresholds)
        rows.append(
            pd.DataFrame({"score": thresholds, "share": share, "low": below, "high": above, by: name})
        )
    frame = pd.concat(rows, ignore_index=True).assign(panel="")
    channels = sweeps.channels(frame)
    x = alt.X("score:Q", title="score (0: untrained, 1: best setting of all)")
    x["scale"] = alt.Scale(nice=False, zero=False)
    x["axis"] = alt.Axis(tickCount=6)
    y = alt.Y("share:Q", title="runs above the score (%)")
    shown = tooltips(frame, [by, "score", "share", "low", "high"])
    what = f"each {stratum}" + (" of each sweep" if len(sweeps) > 1 else "")
    return panels(
        [band(channels, x, y, step=True), line(channels, step=True, x=x, y=y, tooltip=shown)],
        frame,
        "How often is each good?",
        f"Runs at the best settings for {what}; Wilson's 95 % band",
        height=280,
    )


def interquartile_means(sweeps: Sweeps) -> alt.FacetChart | None:
    """The interquartile mean of each optimizer's tuned runs, with its stratified bootstrap interval where
    each stratum has 5 runs."""
    by, stratum = sweeps.by, sweeps.stratum
    scores = _scores(sweeps)
    if not scores:
        return None
    rows = [
        {by: name, **interquartile_mean_interval(per_stratum)._asdict(), "panel": ""}
        for name, per_stratum in scores.items()
    ]
    frame = pd.DataFrame(rows)
    strata = len(next(iter(scores.values())))
    y = alt.Y(f"{by}:N", title=None, sort=[row[by] for row in rows], axis=alt.Axis(labelLimit=160))
    scale = alt.Scale(zero=False, padding=10)
    title = "interquartile mean of the score"
    channels = sweeps.channels(frame)
    colour = channels["color"]
    colour["legend"] = None
    tip = tooltips(frame, [by, "estimate", "low", "high"])
    low = alt.X("low:Q", scale=scale, title=title, axis=alt.Axis(tickCount=6))
    layers = [
        alt.Chart().mark_rule(strokeWidth=3).encode(x=low, x2="high:Q", y=y, color=colour, tooltip=tip),
        alt.Chart()
        .mark_point(filled=True, size=110, opacity=1)
        .encode(x=alt.X("estimate:Q", scale=scale, title=title), y=y, color=colour, tooltip=tip),
    ]
    strata_text = f"{strata} {stratum}{'s' * (strata != 1)}" + (" and sweeps" if len(sweeps) > 1 else "")
    return panels(
        layers,
        frame,
        "Which is best over all conditions?",
        f"Tuned runs over {strata_text}, 95 % interval; 0: untrained, 1: best setting of all",
        height=30 + 34 * len(rows),
    )


def _scores(sweeps: Sweeps) -> dict[str, list[np.ndarray]]:
    scores = several([sweep.results for sweep in sweeps], sweeps.by, sweeps.stratum)
    return scores if all(scores.values()) else {}


def intervals(sweeps: Sweeps) -> alt.FacetChart | None:
    """The best setting against the best of each other optimizer: paired and unpaired intervals."""
    by = sweeps.by
    rows: list[dict[str, object]] = []
    for sweep in sweeps:
        metric = metric_of(sweep.results)
        for difference in differences(sweep.results, by)[1]:
            for kind, interval in (("paired by seed", difference.paired), ("unpaired", difference.unpaired)):
                low, high = interval.bounds
                scaled = {
                    name: sweeps.scaled(value)
                    for name, value in (("difference", interval.mean), ("low", low), ("high", high))
                }
                rows.append(
                    {"against": difference.name, "kind": kind, **scaled, "sweep": sweep.name,
                     "panel": sweeps.panel(sweep), "unit": metric.title}
                )  # fmt: skip
    frame = pd.DataFrame(rows)
    if not len(frame) or frame.difference.isna().all():
        return None
    y = alt.Y("against:N", title=None, sort=None, axis=alt.Axis(labelLimit=160))
    y["axis"]["labelExpr"] = "split(datum.label, ', ')"
    offset = alt.YOffset("kind:N", sort=["paired by seed", "unpaired"])
    title = f"better by ({'points' if sweeps.metric.percent else sweeps.metric.title})"
    colour = alt.Color("kind:N", title=None, scale=alt.Scale(domain=["paired by seed", "unpaired"]))
    shape = alt.Shape("kind:N", title=None, scale=alt.Scale(domain=["paired by seed", "unpaired"]))
    tip = tooltips(frame, ["against", "kind", "difference", "low", "high"])
    x = alt.X("low:Q", title=title, axis=alt.Axis(tickCount=7))
    base = alt.Chart().encode(y=y, yOffset=offset, color=colour, tooltip=tip)
    layers = [
        alt.Chart().mark_rule(strokeDash=[4, 3]).encode(x=alt.datum(0)),
        base.mark_rule(strokeWidth=3).encode(x=x, x2="high:Q"),
        base.mark_point(filled=True, size=100, opacity=1).encode(
            x=alt.X("difference:Q", title=title), shape=shape
        ),
    ]
    return panels(
        layers,
        frame,
        "How sure is the difference?",
        f"The best setting against the best of every other {by}; 95 % intervals",
        height=30 + 50 * int(frame.groupby("panel").against.nunique().max()),
        columns=1,
        room=130,
        independent_y=len(sweeps) > 1,
    )
