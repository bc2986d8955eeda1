"""The network that a gradient's paths run through, drawn with the factors on hover."""

import json

import altair as alt
import numpy as np
import pandas as pd

from bpresearch.report.page import Section, render
from bpresearch.theory.anatomy import Anatomy, Link
from bpresearch.theory.explain import Explanation

KINDS = ("input", "one", "weight", "activation", "loss", "pooling", "block")
"""Of factors, in the order of the palette, so that a kind has the same colour in every picture."""
KIND_DASHES = [[1, 0], [9, 3, 2, 3], [7, 3], [2, 2], [4, 2], [1, 3], [5, 2, 1, 2]]

STEP = ["column", "height", "column2", "height2", "kind", "layer", "from", "to", "factor", "share", "largest"]
"""The columns of a frame of factors: from where to where, and what."""


def paths_page(explanation: Explanation) -> str:
    """The page of a gradient's largest paths: the answer in words, then the picture.

    Args:
        explanation: as `theory.explain` gives it, with as many paths as are to be drawn.
    """
    title = f"dl/d {explanation.weight} of {explanation.about}"
    picture = {"paths": network(explanation.anatomy)} if explanation.paths else {}
    lead = explanation.sentences()
    return render(title, [Section("gradient", "Which derivative is it?", lead, pictures=picture)])


def network(anatomy: Anatomy) -> alt.TopLevelMixin:
    """The largest paths from a weight to the loss: a column for each layer's units, a line for each factor.

    The width of a line is the sum of the absolute products of the drawn paths through it, its colour and dash
    the kind of factor; on the largest path each factor is written out. Hovering shows the others, and
    clicking on a kind in the legend picks it out.
    """
    units, steps = _units(anatomy), _steps(anatomy)
    columns = [link.layer for link in anatomy.links]
    names = ["the weight", *columns[:-1], "loss"]
    axis = alt.Axis(
        values=list(range(len(names))),
        labelExpr=f"{json.dumps(names)}[datum.value]",
        labelAngle=-35, grid=False, title=None, labelOverlap=False,
    )  # fmt: skip
    x = alt.X("column:Q", axis=axis, scale=alt.Scale(domain=[-0.1, len(names) - 0.9], nice=False))
    y = alt.Y("height:Q", axis=None, scale=alt.Scale(domain=[-0.05, 1.05]))
    kinds = [kind for kind in KINDS if any(link.kind == kind for link in anatomy.links)]
    legend, dashes = alt.Legend(values=kinds), alt.Scale(domain=KINDS, range=KIND_DASHES)
    chosen = alt.selection_point(fields=["kind"], bind="legend")
    dots = alt.Chart(units).mark_circle(size=10, color="#bbbbbb").encode(x, y, tooltip=["layer", "unit"])
    hover = ["kind:N", "layer:N", "from:N", "to:N", alt.Tooltip("factor:Q", format=".6g")]
    lines = (
        alt.Chart(steps)
        .mark_rule(strokeCap="butt")
        .encode(
            x,
            y,
            x2="column2:Q",
            y2="height2:Q",
            color=alt.Color("kind:N", scale=alt.Scale(domain=KINDS), title="kind of factor", legend=legend),
            strokeDash=alt.StrokeDash("kind:N", scale=dashes, title="kind of factor", legend=legend),
            strokeWidth=alt.StrokeWidth("share:Q", scale=alt.Scale(range=[1, 7], zero=True), legend=None),
            opacity=alt.condition(chosen, alt.value(0.85), alt.value(0.1)),
            tooltip=[
                *hover,
                alt.Tooltip("share:Q", format=".3g", title="sum of the paths' products (absolute)"),
            ],
        )
        .add_params(chosen)
    )
    largest = steps[steps.largest.astype(bool)].assign(
        column=lambda f: (f.column + f.column2) / 2, height=lambda f: (f.height + f.height2) / 2
    )
    written = alt.Chart(largest).encode(x, y, text=alt.Text("factor:Q", format=".3~g"))
    labels = [
        written.mark_text(fontSize=13, fontWeight="bold", dy=-10, style="halo"),
        written.mark_text(fontSize=13, fontWeight="bold", dy=-10),
    ]
    shown = len(anatomy.paths)
    which = f"The {shown}" if shown == anatomy.number else f"The {shown} largest of {anatomy.number:,}"
    title = alt.TitleParams(
        f"{which} paths" if shown > 1 else "The largest path",
        subtitle=f"Numbers: the factors of the largest; the sum of all paths is {anatomy.total:.6g}",
    )
    return alt.layer(dots, lines, *labels).properties(
        width=680, height=380, view=alt.ViewBackground(stroke=None), title=title
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
            name, level, column = unit_name(link, unit), _height(link, unit), anatomy.links.index(link) + 1
            row = rows.setdefault(
                (start, before, column, name),
                {"column": start, "height": height, "column2": column, "height2": level,
                 "kind": link.kind, "layer": link.layer, "from": before, "to": name,
                 "factor": factor, "share": 0.0, "largest": path is anatomy.paths[0]},
            )  # fmt: skip
            row["share"] += abs(path.product)
            start, before, height = column, name, level
    return pd.DataFrame(rows.values(), columns=STEP)
