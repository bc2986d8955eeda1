"""The network that a gradient's paths run through, drawn with the factors on hover."""

import altair as alt
import numpy as np
import pandas as pd

from bpresearch.theory.anatomy import Anatomy, Link

KINDS = ("input", "one", "weight", "activation", "loss", "pooling", "block")
"""Of factors, in the order of the palette, so that a kind has the same colour in every picture."""


def network(anatomy: Anatomy, title: str) -> alt.TopLevelMixin:
    """The largest paths from a weight to the loss: a column for each layer's units, a line for each factor.

    The width of a line is the sum of the absolute products of the drawn paths through it, its colour the
    kind of factor; hovering shows the factor, and clicking on a kind in the legend picks it out.
    """
    units, steps = _units(anatomy), _steps(anatomy)
    columns = [link.layer for link in anatomy.links]
    names = ["the weight", *columns[:-1], "loss"]
    labels = "[" + ", ".join(f"'{name}'" for name in names) + "][datum.value]"
    axis = alt.Axis(values=list(range(len(names))), labelExpr=labels, labelAngle=-35, grid=False, title=None)
    x = alt.X("column:Q", axis=axis, scale=alt.Scale(domain=[-0.1, len(names) - 0.9], nice=False))
    y = alt.Y("height:Q", axis=None, scale=alt.Scale(domain=[-0.05, 1.05]))
    shown = alt.Legend(values=[kind for kind in KINDS if any(link.kind == kind for link in anatomy.links)])
    chosen = alt.selection_point(fields=["kind"], bind="legend")
    dots = alt.Chart(units).mark_circle(size=10, color="#bbbbbb").encode(x, y, tooltip=["layer", "unit"])
    hover = ["kind:N", "layer:N", "from:N", "to:N", alt.Tooltip("factor:Q", format=".6g")]
    lines = (
        alt.Chart(steps)
        .mark_rule(strokeCap="round")
        .encode(
            x,
            y,
            x2="column2:Q",
            y2="height2:Q",
            color=alt.Color("kind:N", scale=alt.Scale(domain=KINDS), title="kind of factor", legend=shown),
            strokeWidth=alt.StrokeWidth("share:Q", scale=alt.Scale(range=[1, 7], zero=True), legend=None),
            opacity=alt.condition(chosen, alt.value(0.85), alt.value(0.1)),
            tooltip=[
                *hover,
                alt.Tooltip("share:Q", format=".3g", title="sum of the paths' products (absolute)"),
            ],
        )
        .add_params(chosen)
    )
    subtitle = (
        f"The {len(anatomy.paths)} largest of {anatomy.number:,} paths; all together: {anatomy.total:.6g}"
    )
    return alt.layer(dots, lines).properties(
        width=680,
        height=380,
        view=alt.ViewBackground(stroke=None),
        title=alt.TitleParams(title, subtitle=subtitle),
    )


def unit_name(link: Link, unit: int) -> str:
    """A unit by its place in the layer's output: `[4]`, or `[12,3]` for position 12 of channel 3."""
    return link.unit_name(unit)


def _height(link: Link, unit: int) -> float:
    size = int(np.prod(link.shape))
    return 0.5 if size == 1 else 1 - unit / (size - 1)


def _units(anatomy: Anatomy) -> pd.DataFrame:
    """Every unit of every layer from the weight on; of a large layer as many as can be told apart."""
    rows = []
    for column, link in enumerate(anatomy.links, start=1):
        size = int(np.prod(link.shape))
        for unit in map(int, np.unique(np.linspace(0, size - 1, min(size, 200)).astype(int).tolist())):
            name = unit_name(link, unit)
            rows.append({"column": column, "height": _height(link, unit), "layer": link.layer, "unit": name})
    return pd.DataFrame(rows)


def _steps(anatomy: Anatomy) -> pd.DataFrame:
    """Every factor of the listed paths, once; of several examples the factor of the largest path."""
    rows: dict[tuple, dict] = {}
    for path in anatomy.paths:
        start, before, height = 0, "the weight", 0.5
        for link, factor, unit in zip(path.links, path.factors, path.units, strict=True):
            name, here, column = unit_name(link, unit), _height(link, unit), anatomy.links.index(link) + 1
            row = rows.setdefault(
                (start, before, column, name),
                {"column": start, "height": height, "column2": column, "height2": here,
                 "kind": link.kind, "layer": link.layer, "from": before, "to": name,
                 "factor": factor, "share": 0.0},
            )  # fmt: skip
            row["share"] += abs(path.product)
            start, before, height = column, name, here
    return pd.DataFrame(rows.values())
