"""Pictures of what diagnostics recorded during training."""

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from bpresearch.report.pictures import curve_layers, curves
from bpresearch.report.style import DASHES, FOUR_DIGITS, NUMBER, panels, titled, tooltips
from bpresearch.report.sweeps import Sweeps, binned
from bpresearch.statistics import best_settings

KNOWN = {"train_loss", "valid_loss", "valid_accuracy", "test_loss", "test_accuracy"}
ALONG = ("step", "eval_step")
MAP_BINS = 30
BLANK, WIDE = 1e-6, 1e3
"""Where the values of a map span more than WIDE, its colours are logarithmic, and parts below BLANK of the
largest value are left blank."""


def diagnostics(sweeps: Sweeps) -> dict[str, alt.FacetChart]:
    """A picture for each variable that runs recorded along their steps, at the best settings.

    A number has a curve. A number of at least 0 for each layer, such as a norm, has a line for each layer in
    the network's order, on a logarithmic axis, with gaps where it is 0. A number for each rank, such as the
    largest eigenvalues, has a line for each. What has another dimension, such as a histogram, has a heat map
    of that dimension against the steps.
    """
    charts: dict[str, alt.FacetChart] = {}
    for name in dict.fromkeys(name for sweep in sweeps for name in _recorded(sweep.results)):
        having = Sweeps([sweep for sweep in sweeps if name in sweep.results], sweeps.by)
        values = [sweep.results[name].values for sweep in having]
        finite = np.concatenate([v[np.isfinite(v)] for v in values])
        if not len(finite):
            continue
        positive = bool(finite.min() > 0)
        if values[0].ndim == 2:
            charts[name] = _curves(having, name, positive)
        elif having.sweeps[0].results[name].dims[2] == "rank":
            charts[name] = _ranks(having, name, positive)
        elif finite.min() >= 0 and having.sweeps[0].results[name].dims[2] == "layer":
            charts[name] = _layers(having, name)
        else:
            charts[name] = _heat_map(having, name, positive)
    return charts


def _recorded(results: xr.Dataset) -> list[str]:
    """The variables along runs and steps, beside losses and accuracies, with at most one more dimension."""
    return [
        str(name)
        for name, variable in results.data_vars.items()
        if name not in KNOWN
        and not str(name).startswith("train_eval_")
        and variable.dtype.kind == "f"
        and variable.dims[0] == "run"
        and variable.dims[1:2] in [(along,) for along in ALONG]
        and variable.ndim in (2, 3)
    ]


def _curves(sweeps: Sweeps, name: str, positive: bool) -> alt.FacetChart:
    rows, words = curves(sweeps, name, positive), titled(name)
    scale = alt.Scale(type="log", nice=False) if positive else alt.Scale(zero=False)
    return panels(
        curve_layers(sweeps, rows, words, scale),
        rows,
        f"Diagnostic: {words}",
        f"At each {sweeps.by}'s best setting; {sweeps.seeds}",
        toggles=["x", "y"] if positive else ["x"],
    )


def _layers(sweeps: Sweeps, name: str) -> alt.FacetChart:
    """A line for each layer's parameter: colour and legend in the network's order, a dash for each kind.

    The mean over a bin of steps, then the geometric mean over seeds.
    """
    rows: list[dict[str, object]] = []
    for sweep in sweeps:
        variable = sweep.results[name]
        along = str(variable.dims[1])
        for (optimizer, schedule), setting in best_settings(sweep.results).items():
            stratum, mine = (schedule, optimizer) if sweeps.by == "optimizer" else (optimizer, schedule)
            panel = sweeps.panel(sweep, mine, stratum)
            for place, path in enumerate(variable["layer"].values.tolist()):
                layer, _, parameter = path.rpartition(".")
                at, means = binned(variable.values[setting.runs, :, place], variable[along].values)
                course = np.exp(np.log(np.where(means > 0, means, np.nan)).mean(axis=0))
                rows += [
                    {"step": float(step), "value": float(value), "layer": layer or path,
                     "parameter": parameter if layer else "weight", "path": path, "panel": panel,
                     "optimizer": optimizer, "schedule": schedule, "sweep": sweep.name}
                    for step, value in zip(at, course, strict=True)
                ]  # fmt: skip
    frame, words = pd.DataFrame(rows), titled(name)
    layers, kinds = (list(dict.fromkeys(frame[column])) for column in ("layer", "parameter"))
    kinds.sort(key=lambda kind: kind != "kernel")  # which has the whole line
    scale = alt.Scale(domain=layers, range=_shades(len(layers)))
    legend = alt.Legend(title="layer, from the input on", symbolLimit=60, columns=5)
    y_axis = alt.Axis(format="~g", tickCount=6, labelExpr=NUMBER)
    lines = (
        alt.Chart()
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("step:Q", title="step", scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=4)),
            y=alt.Y("value:Q", title=words, scale=alt.Scale(type="log", nice=False), axis=y_axis),
            color=alt.Color("layer:N", sort=layers, scale=scale, legend=legend),
            strokeDash=alt.StrokeDash("parameter:N", scale=alt.Scale(domain=kinds, range=DASHES), title=None),
            detail="path:N",
            tooltip=[*(alt.Tooltip(f"{n}:N") for n in ("optimizer", "schedule", "path", "step")),
                     alt.Tooltip("value:Q", format=".4g")],
        )
    )  # fmt: skip
    return panels(
        [lines],
        frame,
        f"Diagnostic: {words}",
        f"Of each layer, the geometric mean over seeds at each {sweeps.by}'s best setting",
        toggles=["x", "y"],
    )


def _ranks(sweeps: Sweeps, name: str, positive: bool) -> alt.FacetChart:
    """A line for each rank, from dark, the first, to light: the mean over a bin of steps and over seeds."""
    rows: list[dict[str, object]] = []
    for sweep in sweeps:
        variable = sweep.results[name]
        along, ranks = str(variable.dims[1]), variable["rank"].values.tolist()
        for (optimizer, schedule), setting in best_settings(sweep.results).items():
            stratum, mine = (schedule, optimizer) if sweeps.by == "optimizer" else (optimizer, schedule)
            labels = {"optimizer": optimizer, "schedule": schedule, "sweep": sweep.name}
            labels["panel"] = sweeps.panel(sweep, mine, stratum)
            for place, rank in enumerate(ranks):
                at, means = binned(variable.values[setting.runs, :, place], variable[along].values)
                rows += [
                    {"step": float(step), "value": float(value), "rank": rank, **labels}
                    for step, value in zip(at, means.mean(axis=0), strict=True)
                ]
    frame, words = pd.DataFrame(rows).dropna(), titled(name)
    ranks = sorted(set(frame["rank"]))
    scale = alt.Scale(domain=ranks, range=_shades(len(ranks))[::-1])
    y_scale = alt.Scale(type="log", nice=False) if positive else alt.Scale(zero=False)
    y_axis = alt.Axis(format="~g", tickCount=6, labelExpr=NUMBER if positive else FOUR_DIGITS)
    lines = (
        alt.Chart()
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("step:Q", title="step", scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=4)),
            y=alt.Y("value:Q", title=words, scale=y_scale, axis=y_axis),
            color=alt.Color("rank:N", sort=ranks, scale=scale, legend=alt.Legend(title="rank")),
            tooltip=tooltips(frame, ["optimizer", "schedule", "rank", "step", "value"]),
        )
    )
    return panels(
        [lines],
        frame,
        f"Diagnostic: {words}",
        f"The mean over seeds at each {sweeps.by}'s best setting",
        toggles=["x", "y"] if positive else ["x"],
    )


def _shades(count: int) -> list[str]:
    """So many colours in an order that is seen, also without colours: from light to dark."""
    light, dark = np.array([246, 190, 80]), np.array([40, 20, 110])
    middle = np.array([205, 70, 110])
    at = np.linspace(0, 1, count) if count > 1 else np.array([1.0])
    colours = [np.interp(at, [0, 0.5, 1], channel) for channel in zip(light, middle, dark, strict=True)]
    return [f"rgb({r:.0f},{g:.0f},{b:.0f})" for r, g, b in zip(*colours, strict=True)]


def _heat_map(sweeps: Sweeps, name: str, positive: bool) -> alt.FacetChart:
    rows: list[dict[str, object]] = []
    for sweep in sweeps:
        variable = sweep.results[name]
        along, other = map(str, variable.dims[1:])
        for (optimizer, schedule), setting in best_settings(sweep.results).items():
            stratum, mine = (schedule, optimizer) if sweeps.by == "optimizer" else (optimizer, schedule)
            labels = {"optimizer": optimizer, "schedule": schedule, "sweep": sweep.name}
            labels["panel"] = sweeps.panel(sweep, mine, stratum)
            for place, where in enumerate(variable[other].values.tolist()):
                at, means = binned(variable.values[setting.runs, :, place], variable[along].values, MAP_BINS)
                rows += [
                    {"step": float(step), "where": where, "value": float(value), **labels}
                    for step, value in zip(at, means.mean(axis=0), strict=True)
                ]
    frame, words = pd.DataFrame(rows), titled(name)
    seen = frame.value[frame.value > BLANK * frame.value.max()]
    if not positive and frame.value.min() >= 0 and seen.max() > WIDE * seen.min():
        frame, positive = frame.assign(value=frame.value.where(frame.value >= seen.min())), True
    numeric = frame["where"].dtype.kind in "if"
    y = alt.Y("where:O", title=titled(other), sort="descending" if numeric else None)
    y["axis"] = alt.Axis(labelExpr=FOUR_DIGITS, labelLimit=120) if numeric else alt.Axis(labelLimit=120)
    scale = alt.Scale(scheme="viridis", type="log" if positive else "linear")
    legend = alt.Legend(orient="bottom", gradientLength=220, format=".2~g")
    layer = (
        alt.Chart()
        .mark_rect()
        .encode(
            x=alt.X(
                "step:O", title="step", axis=alt.Axis(format="~g", labelAngle=0, values=_some(frame.step))
            ),
            y=y,
            color=alt.Color("value:Q", title=words, scale=scale, legend=legend),
            tooltip=[
                *(alt.Tooltip(f"{n}:N") for n in ("optimizer", "schedule", "step", "where")),
                alt.Tooltip("value:Q", format=".4g"),
            ],
        )
    )
    return panels(
        [layer],
        frame,
        f"Diagnostic: {words}",
        f"The mean over seeds at each {sweeps.by}'s best setting, against {titled(other)} and step",
        height=max(90, min(18 * frame["where"].nunique(), 300)),
        room=110,
    )


def _some(steps: pd.Series) -> list[float]:
    """A few of the steps, for an axis's labels."""
    distinct = sorted(set(steps))
    return distinct[:: max(1, len(distinct) // 4)]
