"""Pictures: one definition each, in Altair, for PNG, SVG and interactive HTML, without a network."""

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

WIDTH, POINTS = 720, 200


def loss_curves(results: xr.Dataset) -> alt.FacetChart:
    """Training loss of each optimizer's best setting, a panel for each schedule."""
    frames = []
    for (optimizer, schedule), setting in best_settings(results).items():
        losses = results.train_loss.values[setting.runs]
        ends = np.unique(np.linspace(0, losses.shape[1], min(POINTS, losses.shape[1]) + 1).astype(int))
        for begin, end in zip(ends, ends[1:], strict=False):
            interval = mean_and_interval(losses[:, begin:end].mean(axis=1))
            frames.append(
                {
                    "step": float(results.step.values[begin:end].mean()),
                    "loss": interval.mean,
                    "low": interval.mean - interval.half_width,
                    "high": interval.mean + interval.half_width,
                    "optimizer": optimizer,
                    "schedule": schedule,
                    "lr": setting.values["lr"],
                }
            )
    frame = pd.DataFrame(frames)
    seeds = results.seed.to_series().nunique()
    chart = _lines(
        frame,
        alt.X("step:Q", title="step"),
        "loss",
        "training loss",
        alt.Scale(type="log", nice=False) if (frame.low.fillna(frame.loss) > 0).all() else alt.Scale(),
    )
    return _panels(
        chart,
        frame,
        "How fast does each optimizer reduce the training loss?",
        f"Mini-batch loss at each optimizer's best learning rate; mean and 95 % band over {seeds} seeds",
    )


def learning_rate_sensitivity(results: xr.Dataset) -> alt.FacetChart:
    """Final test metric against the learning rate, a panel for each schedule.

    Other hyper-parameters have the values that are best at that learning rate.
    """
    metric = metric_of(results, "test")
    factor = 100 if metric.percent else 1
    sign = 1 if metric.higher_is_better else -1
    best: dict[tuple, dict] = {}
    for setting in settings_of(results):
        interval = mean_and_interval(setting.test)
        key = tuple(setting.values[name] for name in ("optimizer", "schedule", "lr"))
        row = {
            "optimizer": key[0],
            "schedule": key[1],
            "lr": key[2],
            "value": factor * interval.mean,
            "low": factor * (interval.mean - interval.half_width),
            "high": factor * (interval.mean + interval.half_width),
            "diverged": f"{setting.diverged} of {len(setting.runs)}",
        }
        if key not in best or not sign * best[key]["value"] >= sign * row["value"]:
            best[key] = row
    frame = pd.DataFrame(best.values())
    seeds = results.seed.to_series().nunique()
    scale = alt.Scale(type="log", nice=False, padding=10) if (frame.lr > 0).all() else alt.Scale()
    chart = _lines(
        frame,
        alt.X("lr:Q", title="learning rate", scale=scale, axis=alt.Axis(format="~g", labelOverlap=True)),
        "value",
        metric.title,
        alt.Scale(zero=False),
        points=True,
    )
    return _panels(
        chart,
        frame,
        "How much does the learning rate matter?",
        f"Final {metric.title.removesuffix(' (%)')}; mean and 95 % band over {seeds} seeds; diverged runs left out",
    )


def _lines(
    frame: pd.DataFrame, x: alt.X, column: str, title: str, scale: alt.Scale, points: bool = False
) -> alt.LayerChart:
    """Lines with bands, a colour and a dash for each optimizer."""
    names = list(dict.fromkeys(frame.optimizer))
    colour = alt.Color(
        "optimizer:N", scale=alt.Scale(domain=names, range=PALETTE[: len(names)]), title="optimizer"
    )
    base = alt.Chart(frame).encode(x=x, color=colour)
    y = alt.Y(f"{column}:Q", title=title, scale=scale)
    tooltip = [alt.Tooltip(f"{name}", format=".4g") if frame[name].dtype.kind == "f" else name for name in frame]
    band = base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", scale=scale, title=title), y2="high:Q")
    dash = alt.StrokeDash("optimizer:N", scale=alt.Scale(domain=names), title="optimizer")
    line = base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash, tooltip=tooltip)
    layers = [band, line]
    if points:
        shape = alt.Shape("optimizer:N", scale=alt.Scale(domain=names), title="optimizer")
        layers.append(base.mark_point(size=45, filled=True, opacity=1).encode(y=y, shape=shape, tooltip=tooltip))
    return alt.layer(*layers)


def _panels(chart: alt.LayerChart, frame: pd.DataFrame, title: str, subtitle: str) -> alt.FacetChart:
    """A panel for each schedule, at most three in a row, as wide together as `WIDTH` pixels."""
    schedules = list(dict.fromkeys(frame.schedule))
    columns = min(3, len(schedules))
    width = WIDTH // columns - 40
    panel = chart.properties(width=width, height=max(180, min(width, 320)))
    return (
        panel.facet(facet=alt.Facet("schedule:N", sort=schedules, title=None), columns=columns)
        .properties(title=alt.TitleParams(title, subtitle=subtitle, anchor="start", offset=12))
        .configure_axis(labelFontSize=12, titleFontSize=13, gridColor="#e5e5e5")
        .configure_header(labelFontSize=14, labelFontWeight="bold")
        .configure_legend(labelFontSize=13, titleFontSize=13, orient="bottom", symbolStrokeWidth=3, symbolSize=200)
        .configure_title(fontSize=17, subtitleFontSize=13, subtitleColor="#555555")
        .configure_view(stroke="#cccccc")
    )


def save(chart: alt.TopLevelMixin, path: Path) -> Path:
    """Writes a picture as .png, .svg or .html, whole or not at all; nothing is loaded from a network."""
    specification = chart.to_json()
    version = {"vl_version": ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        match path.suffix:
            case ".png":
                temporary.write_bytes(vl_convert.vegalite_to_png(specification, scale=2, **version))
            case ".svg":
                temporary.write_text(vl_convert.vegalite_to_svg(specification, **version))
            case ".html":
                temporary.write_text(vl_convert.vegalite_to_html(specification, bundle=True, **version))
            case suffix:
                raise ValueError(f"{path}: a picture's name ends in .png, .svg or .html, not {suffix!r}")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
