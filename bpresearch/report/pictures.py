"""Pictures: one definition each, in Altair, for PNG, SVG and interactive HTML, without a network."""

import itertools
import os
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import vl_convert
import xarray as xr

from bpresearch.analysis import best_settings, mean_and_interval, metric_of, settings_of

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
"""Colours that people tell apart who do not see red and green apart (Okabe and Ito 2008)."""

WIDTH, BINS = 720, 60


def loss_curves(results: xr.Dataset) -> alt.ConcatChart:
    """Training loss of each optimizer's best setting, a panel for each schedule.

    The mean over a bin of steps, then the geometric mean over seeds with its 95 % interval, which is
    Student's of the logarithms (of the values themselves where a loss is not positive).
    """
    positive = bool((results.train_loss.fillna(1) > 0).all())
    frames = []
    for (optimizer, schedule), setting in best_settings(results).items():
        losses = results.train_loss.values[setting.runs]
        ends = np.unique(np.linspace(0, losses.shape[1], BINS + 1).astype(int))
        for begin, end in itertools.pairwise(ends):
            binned = losses[:, begin:end].mean(axis=1)
            interval = mean_and_interval(np.log(binned) if positive else binned)
            bounds = np.array([interval.mean, *interval.bounds])
            loss, low, high = np.exp(bounds) if positive else bounds
            frames.append(
                {
                    "step": float(results.step.values[begin:end].mean()),
                    "loss": loss,
                    "low": low,
                    "high": high,
                    "optimizer": optimizer,
                    "schedule": schedule,
                    "learning rate": setting.values["lr"],
                }
            )
    scale = alt.Scale(type="log", nice=False) if positive else alt.Scale()
    return _panels(
        pd.DataFrame(frames),
        alt.X("step:Q", title="step", axis=alt.Axis(tickCount=4)),
        alt.Y("loss:Q", title="training loss", scale=scale, axis=alt.Axis(format="~g", tickCount=6)),
        "How fast does each optimizer reduce the training loss?",
        f"Mini-batch loss at each optimizer's best setting; {_seeds(results)}",
        points=False,
    )


def learning_rate_sensitivity(results: xr.Dataset) -> alt.ConcatChart:
    """Final test metric against the learning rate, a panel for each schedule.

    Other hyper-parameters have the values that are best at that learning rate.
    """
    metric = metric_of(results)
    factor, sign = (100 if metric.percent else 1), (1 if metric.higher_is_better else -1)
    best: dict[tuple, dict] = {}
    for setting in settings_of(results):
        interval = mean_and_interval(setting.test)
        low, high = np.clip(interval.bounds, 0, 1 if metric.percent else None)
        key = tuple(setting.values[name] for name in ("optimizer", "schedule", "lr"))
        row = {
            "optimizer": key[0],
            "schedule": key[1],
            "lr": key[2],
            "value": factor * interval.mean,
            "low": factor * low,
            "high": factor * high,
            "diverged": f"{setting.diverged} of {len(setting.runs)}",
        }
        if key not in best or not sign * best[key]["value"] >= sign * row["value"]:
            best[key] = row
    frame = pd.DataFrame(best.values())
    rates = sorted(set(frame.lr))
    logarithmic = rates[0] > 0 and len(rates) > 1
    scale = alt.Scale(type="log", nice=False, padding=12) if logarithmic else alt.Scale(padding=12)
    axis = alt.Axis(format="~g", labelOverlap=True)
    if len(rates) <= 9:
        axis["values"] = rates
    diverged = int((results.diverged_at >= 0).sum())
    left_out = f"; {diverged} runs diverged and are left out" if diverged else ""
    return _panels(
        frame,
        alt.X("lr:Q", title="learning rate", scale=scale, axis=axis),
        alt.Y("value:Q", title=metric.title, scale=alt.Scale(zero=False)),
        "How much does the learning rate matter?",
        f"Final {metric.title.removesuffix(' (%)')}; {_seeds(results)}{left_out}",
        points=True,
    )


def _seeds(results: xr.Dataset) -> str:
    seeds = len(np.unique(results.seed))
    return f"mean and 95 % band over {seeds} seeds" if seeds > 1 else "one seed, so no band"


def _panels(
    frame: pd.DataFrame, x: alt.X, y: alt.Y, title: str, subtitle: str, points: bool
) -> alt.ConcatChart:
    """A panel of lines with bands for each schedule, at most three in a row, together `WIDTH` wide.

    Each optimizer has a colour and a dash (and a shape, with `points`), the same in every panel.
    """
    names = list(dict.fromkeys(frame.optimizer))
    schedules = list(dict.fromkeys(frame.schedule))
    columns = min(3, len(schedules))
    width = WIDTH // columns - 40
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(names))]
    domain = alt.Scale(domain=names)
    by_colour = alt.Color("optimizer:N", scale=alt.Scale(domain=names, range=colours), title="optimizer")
    by_dash = alt.StrokeDash("optimizer:N", scale=domain, title="optimizer")
    tooltip = [alt.Tooltip(n, format=".4g") if frame[n].dtype.kind == "f" else n for n in frame]
    panels = []
    for number, schedule in enumerate(schedules):
        y_here = y.copy()
        y_here["title"] = y["title"] if number % columns == 0 else None
        part = frame[frame.schedule == schedule]
        bounds = alt.Y("low:Q", scale=y_here["scale"], title=y_here["title"])
        layers = [
            alt.Chart(part[part.optimizer == name])
            .mark_area(opacity=0.18, fill=colour)
            .encode(x=x, y=bounds, y2="high:Q")
            for name, colour in zip(names, colours, strict=True)
        ]
        base = alt.Chart(part).encode(x=x, y=y_here, color=by_colour, tooltip=tooltip)
        layers.append(base.mark_line(strokeWidth=2).encode(strokeDash=by_dash))
        if points:
            by_shape = alt.Shape("optimizer:N", scale=domain, title="optimizer")
            layers.append(base.mark_point(size=40, filled=True, opacity=1).encode(shape=by_shape))
        panel = alt.layer(*layers).properties(title=schedule, width=width, height=max(180, min(width, 300)))
        panels.append(panel)
    return (
        alt.concat(*panels, columns=columns)
        .resolve_scale(x="shared", y="shared")
        .properties(title=alt.TitleParams(title, subtitle=subtitle, anchor="start", offset=14))
        .configure_axis(labelFontSize=12, titleFontSize=13, gridColor="#e8e8e8")
        .configure_legend(
            labelFontSize=14, titleFontSize=13, orient="bottom", symbolSize=300, symbolStrokeWidth=3
        )
        .configure_title(fontSize=15, subtitleFontSize=13, subtitleColor="#555555")
        .configure_view(stroke="#cccccc")
    )


def save(chart: alt.TopLevelMixin, path: Path) -> Path:
    """Writes a picture as .png, .svg or .html, whole or not at all; nothing is loaded from a network."""
    specification = chart.to_json()
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        match path.suffix:
            case ".png":
                temporary.write_bytes(vl_convert.vegalite_to_png(specification, vl_version=version, scale=2))
            case ".svg":
                temporary.write_text(vl_convert.vegalite_to_svg(specification, vl_version=version))
            case ".html":
                temporary.write_text(_page(specification, version))
            case suffix:
                raise ValueError(f"{path}: a picture's name ends in .png, .svg or .html, not {suffix!r}")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _page(specification: str, version: str) -> str:
    """A page with one picture, in whose names `</script>` is text and not the end of the script.

    The converter writes the specification as it is, so each `<` in it goes through as another character.
    """
    stand_in = "\ue000"
    page = vl_convert.vegalite_to_html(specification.replace("<", stand_in), vl_version=version, bundle=True)
    return page.replace(stand_in, "\\u003c")
