"""How pictures look: colours, sizes, panels; and how they are written to files."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from bpresearch import files

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
"""Colours that people tell apart who do not see red and green apart (Okabe and Ito 2008)."""

PALETTE_ON_DARK = ["#56B4E9", "#E69F00", "#2BC79B", "#E3A3C6", "#F0E442", "#E2764A", "#F5F5F5"]

DASHES = [[1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [5, 2, 1, 2]]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
"""Five dashes and seven shapes beside seven colours: 35 names before two look alike."""

WIDTH = 720


def config(dark: bool = False) -> dict[str, Any]:
    """Vega-Lite's configuration for a light or a dark page."""
    ink, faint, grid = ("#e8e8ea", "#a9a9b2", "#3a3a42") if dark else ("#1d1d21", "#55555e", "#e6e6ea")
    return {
        "background": "transparent" if dark else "white",
        "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
        "range": {"category": PALETTE_ON_DARK if dark else PALETTE, "symbol": SHAPES},
        "axis": {
            "labelFontSize": 12, "titleFontSize": 13, "gridColor": grid, "domainColor": faint,
            "tickColor": faint, "labelColor": ink, "titleColor": ink, "titleFontWeight": 600,
            "labelOverlap": True,
        },
        "legend": {
            "labelFontSize": 13, "titleFontSize": 13, "orient": "bottom", "symbolSize": 250, "columns": 5,
            "symbolStrokeWidth": 3, "labelColor": ink, "titleColor": ink, "labelLimit": 300,
        },
        "header": {"labelFontSize": 13, "labelFontWeight": 600, "labelColor": ink, "titleColor": ink},
        "title": {
            "fontSize": 15, "subtitleFontSize": 13, "color": ink, "subtitleColor": faint, "anchor": "start",
            "offset": 14, "subtitlePadding": 6,
        },
        "text": {"color": ink, "fontSize": 12},
        "rule": {"color": faint},
        "style": {"halo": {"stroke": "#18181c" if dark else "white", "strokeWidth": 4}},
        "view": {"stroke": grid},
    }  # fmt: skip


SHOWN = (
    "!hidden['optimizer ' + datum.optimizer] && !hidden['schedule ' + datum.schedule] "
    "&& !hidden['sweep ' + datum.sweep]"
)
"""Rows that the page's legend has not hidden; a field that a picture lacks hides nothing."""

PICKED = "!picked || picked[datum.run]"
"""Rows of the runs that were brushed in any picture; all of them while none is."""


def parameters() -> list[alt.Parameter]:
    """What the page tells every picture: the legend's entries that are hidden, and the runs picked."""
    names = {"hidden": {}, "picked": False, "picked_settings": False}
    return [alt.param(name=name, value=value) for name, value in names.items()]


def channels_by(frame: pd.DataFrame, field: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """The channels that tell a column's values apart: colour and, on lines, dash; shape for points.

    Args:
        frame: the rows.
        field: the column.
        names: all values that it has in any picture, so that each looks alike in all; by default the frame's.
    """
    present = set(frame[field])
    names = list(names or dict.fromkeys(frame[field]))
    kind, legend = f"{field}:N", alt.Legend(values=[name for name in names if name in present])
    shared: dict[str, Any] = {"title": field, "legend": legend}
    return {
        "color": alt.Color(kind, scale=alt.Scale(domain=names), **shared),
        "detail": alt.Detail(kind),
        "dash": alt.StrokeDash(kind, scale=alt.Scale(domain=names, range=DASHES), **shared),
        "shape": alt.Shape(kind, scale=alt.Scale(domain=names, range=SHAPES), **shared),
    }


def band(
    channels: dict[str, Any], x: alt.X, y: alt.Y, base: alt.Chart | None = None, step: bool = False
) -> alt.Chart:
    """An area between the columns `low` and `high` around the line of `y`."""
    low = alt.Y("low:Q", title=y["title"], scale=y["scale"], axis=y["axis"])
    area = (base or alt.Chart()).mark_area(
        opacity=0.18, fill=colour_of(channels), interpolate="step-after" if step else "linear"
    )
    return area.encode(x=x, y=low, y2="high:Q", detail=channels["detail"])


def line(
    channels: dict[str, Any], base: alt.Chart | None = None, step: bool = False, **encoding: Any
) -> alt.Chart:
    """A line for each value that the channels tell apart, in steps if asked for."""
    drawn = (base or alt.Chart()).mark_line(strokeWidth=2.2, interpolate="step-after" if step else "linear")
    return drawn.encode(color=channels["color"], strokeDash=channels["dash"], **encoding)


def dotted_line(channels: dict[str, Any], base: alt.Chart | None = None, **encoding: Any) -> list[alt.Chart]:
    """A line for each value that the channels tell apart, and a point for each row.

    The line has its dash by an expression, as a channel would put dashes around the legend's points.
    """
    base, names = base or alt.Chart(), channels["dash"]["scale"]["domain"]
    dash = alt.expr(f"{DASHES}[indexof({json.dumps(names)}, {_datum(channels)}) % {len(DASHES)}]")
    encoding |= {"color": channels["color"]}
    points = base.mark_point(size=42, filled=True, opacity=1).encode(shape=channels["shape"], **encoding)
    return [base.mark_line(strokeWidth=2, strokeDash=dash).encode(**encoding), points]


def colour_of(channels: dict[str, Any]) -> alt.ExprRef:
    """The colour of a row, for marks that shall not change the legend's symbols as a channel would."""
    return alt.expr(f"scale('color', {_datum(channels)})")


def _datum(channels: dict[str, Any]) -> str:
    """The value of a row that the channels tell apart, as Vega's expressions write it."""
    return f"datum[{json.dumps(channels['detail']['shorthand'].removesuffix(':N'))}]"


def axis_at(values: Iterable[float]) -> alt.Axis:
    """An axis of numbers with its labels at the values that occur, if they are few."""
    distinct = sorted(set(values))
    if len(distinct) > 9:
        return alt.Axis(format="~g", labelExpr=FOUR_DIGITS, tickCount=5)
    return alt.Axis(format="~g", labelExpr=FOUR_DIGITS, values=distinct)


FOUR_DIGITS = "datum.label && format(datum.value, '.4~g')"
"""Labels of an axis, which by itself would give them twelve digits, or call 10 1e+1."""

NUMBER = "datum.label && abs(log(abs(datum.value))) > 11.6 ? format(datum.value, '.0e') : datum.label"
"""Labels of a logarithmic axis: 0.01, 100 and 1e+10, where it has labels."""


def titled(name: str) -> str:
    """A column's name as words."""
    return {"lr": "learning rate"}.get(name, name.replace("_", " "))


def tooltips(frame: pd.DataFrame, names: Sequence[str]) -> list[alt.Tooltip]:
    """What a hover shows of a row."""
    return [
        alt.Tooltip(f"{name}:Q", format=".4g") if frame[name].dtype.kind == "f" else alt.Tooltip(f"{name}:N")
        for name in names
    ]


def panels(
    layers: Sequence[alt.Chart], frame: pd.DataFrame, title: str, subtitle: str, *, columns: int = 3,
    height: int | None = None, room: int = 30, independent_x: bool = False, independent_y: bool = False,
    toggles: Sequence[str] = (), **meta: Any,
) -> alt.FacetChart:  # fmt: skip
    """A picture: layers over one frame, a panel for each value of its column `panel`.

    Args:
        layers: charts without data.
        frame: the rows, with the columns `panel`, and `optimizer`, `schedule` and `sweep` where they have
            one.
        title: the question that the picture answers.
        subtitle: what exactly is drawn.
        columns: panels in a row at the full width.
        height: of a panel.
        room: pixels to the left of the panels.
        independent_x, independent_y: whether every panel has its own horizontal, or vertical, scale.
        toggles: the channels, "x" and "y", that the page can switch between log and linear.
        **meta: more for the page (see page.js).
    """
    names = list(dict.fromkeys(frame.panel))
    columns = 2 if len(names) == 4 else max(1, min(columns, len(names)))
    width = (WIDTH - room) // columns - 30
    header = alt.Header(title=None, labels=len(names) > 1 or names != [""], labelLimit=width)
    chart = (
        alt.layer(*layers, data=frame)
        .properties(width=width, height=height or max(170, min(width, 300)))
        .facet(facet=alt.Facet("panel:N", sort=names, header=header), columns=columns)
        .resolve_axis(x="independent")
        .transform_filter(SHOWN)
        .properties(title=alt.TitleParams(title, subtitle=subtitle))
        .add_params(*parameters())
    )
    apart = (["x"] if independent_x else []) + (["y", "yOffset"] if independent_y else [])
    if apart:
        chart = chart.resolve_scale(**dict.fromkeys(apart, "independent"))
    return chart.properties(usermeta={"toggles": list(toggles), "columns": columns, "room": room, **meta})


def specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """A picture as Vega-Lite's JSON, with its data."""
    with alt.data_transformers.disable_max_rows():
        picture: dict[str, Any] = chart.to_dict()
    picture.pop("config", None)  # Altair's own
    return picture


def vega_lite_version() -> str:
    """The version of Vega-Lite that pictures are written in, as vl-convert names it."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def save_drawings(found: dict[str, object], folder: Path, name: str) -> Path:
    """Writes a picture's .svg and .png; returns the PNG."""
    drawing = svg(found)
    files.write(folder / f"{name}.svg", drawing)
    return files.write(folder / f"{name}.png", png(drawing))


def svg(found: dict[str, object]) -> str:
    """A picture as SVG, drawn without a network."""
    return vl_convert.vegalite_to_svg(found, vl_version=vega_lite_version(), config=config())


def png(drawing: str) -> bytes:
    """An SVG as PNG, two pixels for each of its own."""
    return vl_convert.svg_to_png(drawing, scale=2)
