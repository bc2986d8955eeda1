"""A table as a picture: a cell for each row and column, coloured by its value, with a text in it."""

import altair as alt
import pandas as pd


def heatmap(
    frame: pd.DataFrame,
    *,
    row: str,
    column: str,
    value: str,
    text: str,
    title: str,
    subtitle: str | list[str],
) -> alt.LayerChart:
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
    base = alt.Chart(frame).encode(
        x=alt.X(f"{column}:N", sort=columns, title=None, axis=alt.Axis(labelAngle=-30, orient="top")),
        y=alt.Y(f"{row}:N", sort=rows, title=None, axis=alt.Axis(labelLimit=260)),
        tooltip=[alt.Tooltip(n, format=".4g") if frame[n].dtype.kind == "f" else n for n in frame],
    )
    colour = alt.Color(f"{value}:Q", scale=alt.Scale(scheme="blues"), legend=alt.Legend(format="~g"))
    cells = base.mark_rect().encode(color=colour)
    dark = alt.condition(f"datum['{value}'] > {middle}", alt.value("white"), alt.value("black"))
    return (
        alt.layer(cells, base.mark_text(fontSize=13).encode(text=f"{text}:N", color=dark))
        .properties(
            width=68 * len(columns),
            height=42 * len(rows),
            title=alt.TitleParams(title, subtitle=subtitle, anchor="start", offset=14),
        )
        .configure_axis(labelFontSize=13, domain=False, ticks=False)
        .configure_title(fontSize=15, subtitleFontSize=13, subtitleColor="#555555")
        .configure_legend(labelFontSize=12, titleFontSize=12)
    )
