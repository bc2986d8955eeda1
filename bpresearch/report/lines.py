"""Lines in panels, with points beside them: one helper for the pictures of the theory."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from bpresearch.report.style import NUMBER, band, channels_by, panels, tooltips


def axis(field: str, title: str, *, log: bool = False, zero: bool = False, **options: Any) -> dict[str, Any]:
    """How a column of numbers becomes an axis; pass it to `lines` as `x` or `y`."""
    scale = alt.Scale(type="log", nice=False, **options) if log else alt.Scale(zero=zero, **options)
    return {"shorthand": f"{field}:Q", "title": title, "scale": scale}


def lines(
    frame: pd.DataFrame,
    *,
    x: dict[str, Any],
    y: dict[str, Any],
    line: str,
    title: str,
    subtitle: str,
    panel: str | None = None,
    points: pd.DataFrame | None = None,
) -> alt.FacetChart:
    """A line with a colour and a dash for each value of the column `line`, in a panel for each of `panel`.

    Args:
        frame: a row for each point of a line; with columns `low` and `high`, a band is drawn between them.
        x, y: the axes, as `axis` gives them.
        line: column whose values are the lines.
        title, subtitle: the question, and what is shown.
        panel: column whose values are the panels; without, there is one.
        points: more rows, drawn as points in their line's colour: measurements beside a theory's lines.
    """
    rows = pd.concat([frame.assign(mark="line"), *([] if points is None else [points.assign(mark="point")])])
    channels = channels_by(rows, line)
    encoding: dict[str, Any] = {
        "x": alt.X(**x, axis=_labels(x, rows)),
        "y": alt.Y(**y, axis=_labels(y, rows)),
    }
    encoding["color"] = channels["color"]
    encoding["tooltip"] = tooltips(rows, [name for name in rows if name != "mark"])
    drawn = alt.Chart().transform_filter("datum.mark === 'line'").mark_line(strokeWidth=2, clip=True)
    beside = alt.Chart().transform_filter("datum.mark === 'point'").mark_point(size=55, strokeWidth=2)
    within = alt.Chart().transform_filter("datum.mark === 'line'")
    layers = [band(channels, encoding["x"], encoding["y"], within)] if "low" in rows else []
    layers += [drawn.encode(**encoding, strokeDash=channels["dash"])]
    layers += [] if points is None else [beside.encode(**encoding)]
    return panels(layers, rows.assign(panel="" if panel is None else rows[panel]), title, subtitle)


def _labels(axis: dict[str, Any], rows: pd.DataFrame) -> alt.Axis:
    """Labels at the powers of ten of a logarithmic axis, where there are two at least."""
    scale, values = axis["scale"].to_dict(), rows[axis["shorthand"].removesuffix(":Q")]
    if scale.get("type") != "log":
        return alt.Axis(tickCount=6)
    low, high = np.log10(scale.get("domain", [values.min(), values.max()]))
    powers = np.arange(np.ceil(low), np.floor(high) + 1)
    if len(powers) < 2:
        return alt.Axis(format="~g")
    return alt.Axis(format="~g", labelExpr=NUMBER, values=list(10.0 ** powers[:: 1 + len(powers) // 9]))
