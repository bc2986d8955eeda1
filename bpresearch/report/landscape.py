"""Pictures of the whole sweep: every run, every axis, and where training diverges."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from bpresearch.report.style import PICKED, axis_at, dotted_line, panels, titled, tooltips
from bpresearch.report.sweeps import Sweeps, coarse

MOST_LINES = 400
MOST_POINTS = 5000
BELOW = -0.1
"""Where runs without a value cross an axis from 0 to 1."""
NONE = "isValid(datum.value) ? datum.label : 'none'"
"""Labels of an axis that some optimizers do not have."""


def all_runs(sweeps: Sweeps) -> alt.FacetChart | None:
    """Every run that did not diverge: the final test metric against any axis. The picture to brush in."""
    metric = sweeps.metric
    runs = sweeps.runs[sweeps.runs.value.notna()]
    rows = thinned(runs, MOST_POINTS).copy()
    if not len(rows):
        return None
    rows["panel"] = ""
    choices = _choices(sweeps, rows)
    across = "lr" if "lr" in choices else next(iter(choices))
    channels = sweeps.channels(rows)
    brush = alt.selection_interval(name="brush", encodings=["x", "y"])
    logarithmic = across == "lr" and rows.lr.min() > 0
    scale = alt.Scale(type="log", padding=16) if logarithmic else alt.Scale(padding=16, zero=False)
    scale["nice"] = False
    layer = (
        alt.Chart()
        .mark_point(filled=True, size=55)
        .encode(
            x=alt.X(
                f"{across}:Q",
                title=choices[across],
                scale=scale,
                axis=alt.Axis(format="~g", labelSeparation=4),
            ),
            y=alt.Y("value:Q", title=metric.title, scale=alt.Scale(zero=False, padding=10)),
            color=channels["color"],
            shape=channels["shape"],
            fillOpacity=alt.condition(PICKED, alt.value(0.75), alt.value(0.07)),
            tooltip=tooltips(rows, [*_told(sweeps), "seed", "valid", "value"]),
        )
        .add_params(brush)
    )
    return panels(
        [layer],
        rows,
        "What did every single run reach?",
        f"Final {metric.name} of {_count(rows, runs)}{sweeps.left_out}",
        toggles=["x"],
        height=340,
        choices={"x": {"now": across, "from": choices}},
        logarithmic={name: _positive(rows, name) for name in choices},
    )


def _choices(sweeps: Sweeps, rows: pd.DataFrame) -> dict[str, str]:
    """The numeric columns that runs differ in, and their titles."""
    names = [n for n in sweeps.axes if n in rows and rows[n].dtype.kind in "if"]
    titles = {name: titled(name) for name in names}
    if rows.seed.nunique() > 1 or not titles:
        titles["seed"] = "seed"
    return titles | {"valid": f"final validation metric{' (%)' if sweeps.metric.percent else ''}"}


def _positive(rows: pd.DataFrame, name: str) -> bool:
    values = rows[name].dropna()
    return bool(len(values)) and bool(values.min() > 0)


def _told(sweeps: Sweeps) -> list[str]:
    """What a hover tells of a run: its place and every axis."""
    names = ["optimizer", "schedule", "lr", *sweeps.axes]
    columns = list(dict.fromkeys([*(["sweep"] if len(sweeps) > 1 else []), *names]))
    return [name for name in columns if name in sweeps.runs]


def _count(shown: pd.DataFrame, of: pd.DataFrame) -> str:
    if len(shown) == len(of):
        return f"{len(of):,} runs"
    return f"{len(shown):,} of {len(of):,} runs, evenly over their ranks"


def thinned(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most `most` rows, the best and the worst among them, evenly over the ranks of `value`."""
    if len(rows) <= most:
        return rows
    ranks = np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))
    return rows.sort_values("value", kind="stable").iloc[ranks].sort_index()


def heat_maps(sweeps: Sweeps) -> alt.FacetChart | None:
    """The best mean over seeds for each pair of values of two axes, a panel for each that is compared."""
    metric, axes = sweeps.metric, [name for name in sweeps.axes if name not in (sweeps.by, "dataset")]
    rows = sweeps.settings[sweeps.settings.value.notna()].copy()
    empty = len(rows) < len(sweeps.settings)
    if len(axes) < 2 or not len(rows):
        return None
    for name in axes:
        rows[name] = coarse(rows[name])
    rows["panel"] = [
        f"{s} · {o}" if len(sweeps) > 1 else o for s, o in zip(rows.sweep, rows[sweeps.by], strict=True)
    ]
    numeric = [name for name in axes if rows[name].dtype.kind in "if"]
    across = "lr" if "lr" in axes else (numeric or axes)[0]
    others = [name for name in [*numeric, *axes] if name != across]
    down = next((name for name in others if rows[name].notna().all()), others[0])
    best = "max" if metric.higher_is_better else "min"
    middle = float((rows.value.max() + rows.value.min()) / 2)
    x = alt.X(f"{across}:O", title=titled(across), axis=alt.Axis(labelAngle=-40, format="~g", labelExpr=NONE))
    y = alt.Y(f"{down}:O", title=titled(down), axis=alt.Axis(labelLimit=110, labelExpr=NONE))
    if rows[down].dtype.kind in "if":
        y["sort"] = "descending"
        y["axis"]["format"] = "~g"
    shown = alt.Chart().transform_filter("!picked_settings || picked_settings[datum.setting]")
    fill = alt.Color(
        f"{best}(value):Q",
        title=metric.title,
        scale=alt.Scale(scheme="viridis", reverse=not metric.higher_is_better),
        legend=alt.Legend(orient="bottom", gradientLength=220),
    )
    tip = [f"{across}:N", f"{down}:N", alt.Tooltip(f"{best}(value):Q", title="best mean", format=".4g")]
    tip += [alt.Tooltip("count():Q", title="settings")]
    layers = [shown.mark_rect().encode(x=x, y=y, color=fill, tooltip=tip)]
    if rows[across].nunique() <= 10:
        dark = f"datum['{best}_value'] {'<' if metric.higher_is_better else '>'} {middle}"
        layers.append(
            shown.mark_text(fontSize=10).encode(
                x=x,
                y=y,
                text=alt.Text(f"{best}(value):Q", format=".1f" if metric.percent else ".2g"),
                color=alt.condition(dark, alt.value("white"), alt.value("black")),
            )
        )
    choices = {name: titled(name) for name in axes}
    columns = ["panel", "optimizer", "schedule", "sweep", "setting", "value", *axes]
    return panels(
        layers,
        rows[list(dict.fromkeys(columns))],
        "Which settings work together?",
        f"Best mean {metric.name} over all other settings{'; empty: no run came to its end' * empty}",
        height=max(120, min(26 * rows[down].nunique(), 330)),
        room=90,
        choices={
            "x": {"now": across, "from": choices},
            "y": {"now": down, "from": choices},
        },
    )


def parallel_coordinates(sweeps: Sweeps) -> alt.FacetChart | None:
    """A line for each run across all axes, coloured by the test metric it ended with."""
    metric = sweeps.metric
    runs = sweeps.runs[sweeps.runs.value.notna()]
    rows = thinned(runs, MOST_LINES)
    axes = [name for name in sweeps.axes if name in rows]
    if not len(rows) or not axes:
        return None
    frames, labels = [], []
    for name in [*axes, "value"]:
        title = metric.title if name == "value" else titled(name)
        position, marks = _positions(rows[name], name)
        if position.isna().any():  # of an optimizer without this axis
            position, marks = position.fillna(BELOW), [*marks, (BELOW, "none")]
        told = rows[list(dict.fromkeys(["run", "setting", *_told(sweeps), "sweep", "seed", "value"]))]
        frames.append(told.assign(axis=title, position=position, panel="", label=""))
        labels += [{"axis": title, "position": p, "label": text, "panel": ""} for p, text in marks]
    frame = pd.concat([*frames, pd.DataFrame(labels)], ignore_index=True)
    order = list(dict.fromkeys(frame.axis))
    x = alt.X("axis:N", sort=order, title=None, axis=alt.Axis(labelAngle=0, orient="top", domain=False))
    x["scale"] = alt.Scale(type="point", padding=0.6)
    y = alt.Y(
        "position:Q",
        title=None,
        axis=None,
        scale=alt.Scale(domain=[float(frame.position.min()) - 0.04, 1.04], nice=False),
    )
    scheme = alt.Scale(scheme="viridis", reverse=not metric.higher_is_better)
    lines = (
        alt.Chart()
        .transform_filter("datum.label === ''")
        .mark_line(strokeWidth=1.3, interpolate="monotone")
        .encode(
            x=x,
            y=y,
            detail="run:N",
            order=alt.Order("order:Q"),
            color=alt.Color(
                "value:Q", title=metric.title, scale=scheme, legend=alt.Legend(gradientLength=220)
            ),
            strokeOpacity=alt.condition(PICKED, alt.value(0.6), alt.value(0.03)),
            tooltip=tooltips(rows, [*_told(sweeps), "seed", "value"]),
        )
    )
    frame["order"] = [order.index(name) for name in frame.axis]
    marked = alt.Chart().transform_filter("datum.label !== ''").encode(x=x, y=y)
    ticks = marked.mark_point(shape="stroke", size=80, color="#888888", opacity=1)
    words: dict[str, Any] = {"align": "left", "dx": 8, "fontSize": 12, "fontWeight": 600}
    text = [marked.mark_text(**words | halo).encode(text="label:N") for halo in ({"style": "halo"}, {})]
    return panels(
        [lines, ticks, *text],
        frame,
        "What do good runs have in common?",
        f"A line for each of {_count(rows, runs)}, coloured by {metric.title}",
        height=330,
        brush_axes=True,
    )


def _positions(values: pd.Series, name: str) -> tuple[pd.Series, list[tuple[float, str]]]:
    """Where values stand on an axis from 0 to 1, and its labels; few values stand evenly."""
    present = values.dropna()
    kinds = sorted(present.unique()) if values.dtype.kind in "if" else list(dict.fromkeys(present))
    if name != "value" and (len(kinds) <= 8 or values.dtype.kind not in "if"):
        step = 1 / max(len(kinds) - 1, 1)
        at = {kind: i * step if len(kinds) > 1 else 0.5 for i, kind in enumerate(kinds)}
        texts = [f"{k:.4g}" if isinstance(k, int | float | np.number) else str(k) for k in kinds]
        return values.map(at), list(zip(at.values(), texts, strict=True))
    low, high = float(present.min()), float(present.max())
    logarithmic = name != "value" and low > 0 and high / low >= 10
    scaled = np.log10(values) if logarithmic else values
    ends = (np.log10(low), np.log10(high)) if logarithmic else (low, high)
    span = ends[1] - ends[0] or 1.0
    marks = [ends[0] + span * part for part in (0, 0.25, 0.5, 0.75, 1)]
    texts = [f"{10**m if logarithmic else m:.3g}" for m in marks]
    return (scaled - ends[0]) / span, [((m - ends[0]) / span, t) for m, t in zip(marks, texts, strict=True)]


def diverged(sweeps: Sweeps) -> alt.FacetChart | None:
    """The share of runs that diverged at each learning rate; None where none did."""
    runs = sweeps.runs
    if not (runs.diverged_at >= 0).any() or "lr" not in runs:
        return None
    rows = runs.assign(
        lr=coarse(runs.lr), lost=runs.diverged_at >= 0, when=runs.diverged_at.where(lambda d: d >= 0)
    )
    keys = ["panel", "sweep", "schedule", "optimizer", "lr"]
    rows = rows.groupby(keys, sort=False).agg(
        share=("lost", "mean"), lost=("lost", "sum"), runs=("lost", "size"), step=("when", "median")
    )
    frame = rows.reset_index()
    frame["share"] *= 100
    channels = sweeps.channels(frame)
    positive = frame.lr.min() > 0
    shared: dict[str, Any] = {
        "x": alt.X("lr:Q", title="learning rate", axis=axis_at(frame.lr),
                   scale=alt.Scale(type="log" if positive else "linear", nice=False, padding=12)),
        "y": alt.Y("share:Q", title="diverged (% of runs)", scale=alt.Scale(domain=[0, 100], padding=6)),
        "tooltip": tooltips(frame, ["optimizer", "schedule", "lr", "lost", "runs", "step"]),
    }  # fmt: skip
    return panels(
        dotted_line(channels, **shared),
        frame,
        "Where does training diverge?",
        f"{int((runs.diverged_at >= 0).sum())} of {len(runs):,} runs",
        toggles=["x"] if positive else [],
    )
