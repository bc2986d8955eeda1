"""A table as a picture: a cell for each row and column, coloured by its value, with a text in it."""

from typing import Any

import altair as alt
import pandas as pd

from bpresearch.report.style import tooltips


def heatmap(
    frame: pd.DataFrame,
    *,
    row: str,
    column: str,
    value: str,
    text: str,
    title: str,
    subtitle: str,
) -> alt.TopLevelMixin:
    """Cells in the order of the frame, the larger their value the darker.

    Args:
        frame: one line for each cell.
        row, column: names of the columns of the frame that hold the cell's row and column.
        value: name of the column that sets the colour.
        text: name of the column with what is written in the cell.
        title, subtitle: the question, and what is shown.
    """
    rows, columns = list(dict.fromkeys(frame[row])), list(dict.fromkeys(frame[column]))
    middle = (frame[value].min() + frame[value].max()) / 2
    bare: dict[str, Any] = {
        "title": None,
        "labelFontSize": 13,
        "domain": False,
        "ticks": False,
        "labelOverlap": False,
    }
    base = alt.Chart(frame).encode(
        x=alt.X(f"{column}:N", sort=columns, axis=alt.Axis(labelAngle=-30, orient="top", **bare)),
        y=alt.Y(f"{row}:N", sort=rows, axis=alt.Axis(labelLimit=260, **bare)),
        tooltip=tooltips(frame, list(frame)),
    )
    colour = alt.Color(f"{value}:Q", scale=alt.Scale(scheme="blues"))
    cells = base.mark_rect().encode(color=colour)
    dark = alt.condition(f"datum['{value}'] > {middle}", alt.value("white"), alt.value("black"))
    return alt.layer(cells, base.mark_text(fontSize=13).encode(text=f"{text}:N", color=dark)).properties(
        width=68 * len(columns), height=42 * len(rows), title=alt.TitleParams(title, subtitle=subtitle)
    )
