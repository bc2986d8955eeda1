"""Lines in panels: one helper for the pictures of the theory."""

from typing import Any

import altair as alt
import pandas as pd

from bpresearch.report.style import PALETTE, WIDTH

DASHES = [[1, 0], [6, 3], [2, 2], [10, 3, 2, 3], [4, 2, 1, 2], [12, 3], [1, 4]]


def axis(field: str, title: str, *, log: bool = False, zero: bool = False, **options: Any) -> dict:
    """How a column of numbers becomes an axis; pass it to `lines` as `x` or `y`."""
    scale = alt.Scale(type="log", nice=False, **options) if log else alt.Scale(zero=zero, **options)
    return {"shorthand": f"{field}:Q", "title": title, "scale": scale}


def lines(
    frame: pd.DataFrame,
    *,
    x: dict,
    y: dict,
    line: str,
    title: str,
    subtitle: str | list[str] = "",
    panel: str | None = None,
    points: pd.DataFrame | None = None,
    rules: pd.DataFrame | None = None,
    columns: int = 3,
    shared_x: bool = True,
    shared_y: bool = True,
) -> alt.TopLevelMixin:
    """A line with a colour and a dash for each value of the column `line`, in a panel for each of `panel`.

    Args:
        frame: a row for each point of a line.
        x, y: the axes, as `axis` gives them.
        line: column whose values are the lines.
        title, subtitle: the question, and what is shown.
        panel: column whose values are the panels; without, there is one.
        points: more rows, drawn as points in their line's colour: measurements beside a theory's lines.
        rules: rows with the x column: dashed vertical lines; with the column `line` in its colour.
        columns: panels in a row, at most.
        shared_x, shared_y: whether all panels have the same scale.
    """
    every = frame if points is None else pd.concat([frame, points])
    names, panels = (
        list(dict.fromkeys(every[line])),
        [None] if panel is None else list(dict.fromkeys(every[panel])),
    )
    columns = min(columns, len(panels))
    colour = alt.Color(
        f"{line}:N", sort=names, title=line, scale=alt.Scale(domain=names, range=PALETTE[: len(names)])
    )
    dash = alt.StrokeDash(
        f"{line}:N", sort=names, title=line, scale=alt.Scale(domain=names, range=DASHES[: len(names)])
    )

    def in_panel(part: pd.DataFrame, name: object) -> pd.DataFrame:
        return part if name is None or panel not in part else part[part[panel] == name]

    charts = []
    for number, name in enumerate(panels):
        here = {**y, "title": y["title"] if number % columns == 0 or not shared_y else None}
        across = alt.X(**x, axis=alt.Axis(**_format(x), tickCount=5, labelOverlap=True))
        up = alt.Y(**here, axis=alt.Axis(**_format(y), tickCount=6, labelOverlap=True))
        layers = []
        for part, mark in ((frame, "line"), (points, "point")):
            if part is None or in_panel(part, name).empty:
                continue
            base = alt.Chart(in_panel(part, name))
            drawn = (
                base.mark_line(strokeWidth=2) if mark == "line" else base.mark_point(size=55, strokeWidth=2)
            )
            numeric = {c: part[c].dtype.kind == "f" for c in part}
            tooltip = [alt.Tooltip(f"{c}:Q", format=".4g") if f else f"{c}:N" for c, f in numeric.items()]
            encoding = {"x": across, "y": up, "color": colour, "tooltip": tooltip}
            layers.append(drawn.encode(**encoding, **({"strokeDash": dash} if mark == "line" else {})))
        if rules is not None and not in_panel(rules, name).empty:
            drawn = alt.Chart(in_panel(rules, name)).mark_rule(strokeDash=[3, 3], color="#555555")
            layers.append(drawn.encode(x=across, **({"color": colour} if line in rules else {})))
        width = WIDTH // columns - (40 if shared_y else 60)
        size = {"width": width, "height": max(200, min(width, 300))}
        charts.append(alt.layer(*layers).properties(**size, **({"title": str(name)} if panel else {})))
    return (
        alt.concat(*charts, columns=columns)
        .resolve_scale(x="shared" if shared_x else "independent", y="shared" if shared_y else "independent")
        .properties(title=alt.TitleParams(title, subtitle=subtitle, anchor="start", offset=14))
        .configure_axis(labelFontSize=12, titleFontSize=13, gridColor="#e8e8e8")
        .configure_legend(
            labelFontSize=13, titleFontSize=13, orient="bottom", symbolStrokeWidth=3, labelLimit=300
        )
        .configure_title(fontSize=15, subtitleFontSize=13, subtitleColor="#555555")
        .configure_view(stroke="#cccccc")
    )


def _format(axis: dict) -> dict[str, Any]:
    """Numbers of a logarithmic axis as 0.01, 100 and 10M."""
    if axis["scale"].to_dict().get("type") != "log":
        return {}
    return {"labelExpr": "format(datum.value, datum.value < 1e5 && datum.value > 1e-5 ? '~g' : '~s')"}
