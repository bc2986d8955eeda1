"""Pictures of what diagnostics recorded during training."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from bpresearch.analysis import best_settings
from bpresearch.report.pictures import curve_layers, curves
from bpresearch.report.style import panels, titled
from bpresearch.report.sweeps import Sweeps, binned

KNOWN = {"train_loss", "valid_loss", "valid_accuracy", "test_loss", "test_accuracy"}
ALONG = ("step", "eval_step")
MAP_BINS = 30


def diagnostics(sweeps: Sweeps) -> dict[str, alt.FacetChart]:
    """A picture for each variable that runs recorded along their steps, at the best settings.

    A number has a curve. What has one more dimension, such as a norm for each layer or a histogram, has a
    heat map of that dimension against the steps.
    """
    found: dict[str, alt.FacetChart] = {}
    for name in dict.fromkeys(name for sweep in sweeps for name in _recorded(sweep.results)):
        having = Sweeps([sweep for sweep in sweeps if name in sweep.results], sweeps.by)
        values = [sweep.results[name].values for sweep in having]
        finite = np.concatenate([v[np.isfinite(v)] for v in values])
        if not len(finite):
            continue
        positive = bool(finite.min() > 0)
        draw = _curves if values[0].ndim == 2 else _heat_map
        found[name] = draw(having, name, positive)
    return found


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
        curve_layers(rows, sweeps.by, words, scale),
        rows,
        f"Diagnostic: {words}",
        f"At each {sweeps.by}'s best setting; {sweeps.seeds}",
        toggles=["x", "y"] if positive else ["x"],
    )


def _heat_map(sweeps: Sweeps, name: str, positive: bool) -> alt.FacetChart:
    rows: list[dict[str, Any]] = []
    for sweep in sweeps:
        variable = sweep.results[name]
        along, other = map(str, variable.dims[1:])
        for (optimizer, schedule), setting in best_settings(sweep.results).items():
            stratum, mine = (schedule, optimizer) if sweeps.by == "optimizer" else (optimizer, schedule)
            here = {"optimizer": optimizer, "schedule": schedule, "sweep": sweep.name}
            here["panel"] = sweeps.panel(sweep, mine, stratum)
            for place, where in enumerate(variable[other].values.tolist()):
                at, means = binned(variable.values[setting.runs, :, place], variable[along].values, MAP_BINS)
                rows += [
                    {"step": float(step), "where": where, "value": float(value), **here}
                    for step, value in zip(at, means.mean(axis=0), strict=True)
                ]
    frame, words = pd.DataFrame(rows), titled(name)
    numeric = frame["where"].dtype.kind in "if"
    y = alt.Y("where:O", title=titled(other), sort="descending" if numeric else None)
    y["axis"] = alt.Axis(format=".3~g", labelLimit=120) if numeric else alt.Axis(labelLimit=120)
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
    found = sorted(set(steps))
    return found[:: max(1, len(found) // 4)]
