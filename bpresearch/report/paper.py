"""Pictures for a paper: no titles, as wide as its column, in the author's own words, as PDF and SVG."""

import copy
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
import xarray as xr

from bpresearch import files
from bpresearch.report import recorded
from bpresearch.report.sections import PICTURES
from bpresearch.report.style import config, specification, vega_lite_version
from bpresearch.report.sweeps import Sweep, Sweeps

POINTS = {"pt": 1.0, "in": 72.0, "cm": 72 / 2.54, "mm": 72 / 25.4}
WIDTHS = {"column": "3.25in", "text": "6.75in"}
"""A column and a whole page of text in two columns, as the templates of ICML and many others have them."""

NAMED = ("optimizer", "schedule", "sweep", "panel", "against", "layer", "parameter", "kind", "label", "axis")
"""Columns of a picture's data whose values are words that it shows."""


def paper(
    results: xr.Dataset | Sweep | Sequence[Sweep],
    folder: str | Path,
    *,
    only: Collection[str] = (),
    width: str = "column",
    labels: Mapping[str, str] | None = None,
    by: str = "optimizer",
) -> list[Path]:
    """Writes the pictures of one or several sweeps as PDF and SVG.

    Args:
        results: a sweep's results, a `Sweep` as `read` gives it, or several of them.
        folder: where to; it is made if need be.
        only: names of pictures (`PICTURES`, the variables that diagnostics recorded, or `diagnostics` for
            all of those); default: all.
        width: of a whole picture: `column` (3.25 inches), `text` (6.75 inches), or a length such as `8.5cm`.
        labels: what names are called in the pictures: `{"sgd": "SGD", "step": "updates"}`.
        by: what is compared, "optimizer" or "schedule".

    Returns:
        The paths of the files.

    Raises:
        ValueError: there is no such picture, no such width, or a label is of nothing in the pictures.
    """
    points = length(width)
    if isinstance(results, xr.Dataset):
        results = Sweep("results", results)
    sweeps = Sweeps([results] if isinstance(results, Sweep) else results, by)
    charts = _pictures(sweeps, only)
    specifications = {name: specification(chart) for name, chart in charts.items()}
    for word in labels or {}:
        if not any(renamed(spec, {word: word + "\0"}) != spec for spec in specifications.values()):
            raise ValueError(f"labels={word}: no picture shows this name")
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, spec in specifications.items():
        drawing = fitted(renamed(spec, labels or {}), points)
        paths.append(files.write(folder / f"{name}.pdf", vl_convert.svg_to_pdf(drawing)))
        paths.append(files.write(folder / f"{name}.svg", _in_points(drawing)))
    return paths


def _pictures(sweeps: Sweeps, only: Collection[str]) -> dict[str, alt.TopLevelMixin]:
    measured = recorded.diagnostics(sweeps)
    known = [*PICTURES, "diagnostics", *measured]
    for name in only:
        if name not in known:
            raise ValueError(f"only={name}: there is no such picture here, but {', '.join(known)}")
    charts = {name: draw(sweeps) for name, draw in PICTURES.items() if not only or name in only}
    charts |= {
        name: chart for name, chart in measured.items() if not only or name in only or "diagnostics" in only
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def length(width: str) -> float:
    """A width in points.

    >>> length("column"), round(length("8.5cm"), 1)
    (234.0, 240.9)

    Raises:
        ValueError: it is none, or not between 50 and 2,000 points.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(pt|in|cm|mm)", WIDTHS.get(width, width))
    points = float(match[1]) * POINTS[match[2]] if match else 0.0
    if not 50 <= points <= 2000:
        raise ValueError(
            f"width={width}: takes {', '.join(WIDTHS)} or a length such as 8.5cm, 3.3in or 240pt"
        )
    return points


def renamed(spec: dict[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """The picture with other words: values of the columns in `NAMED`, and titles of axes and legends."""
    spec = copy.deepcopy(spec)
    for rows in spec.get("datasets", {}).values():
        for row in rows:
            for column in NAMED:
                if isinstance(row.get(column), str):
                    row[column] = _called(row[column], labels)
    return _renamed(spec, labels)


def _called(text: str, labels: Mapping[str, str]) -> str:
    """The text with its parts, between dots or commas, under their labels; of a part also the first word."""
    if text in labels:
        return labels[text]
    parts = re.split(r"( · |, )", text)
    for place, part in enumerate(parts):
        first, space, rest = part.partition(" ")
        parts[place] = labels.get(part, labels.get(first, first) + space + rest)
    return "".join(parts)


def _renamed(value: object, labels: Mapping[str, str], key: str = "") -> Any:
    if isinstance(value, dict):
        return {
            name: inner if name == "datasets" else _renamed(inner, labels, name)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        named = key in ("domain", "sort", "values")
        return [
            _called(item, labels) if named and isinstance(item, str) else _renamed(item, labels, key)
            for item in value
        ]
    if isinstance(value, str) and key == "title":
        return labels.get(value, value)
    if isinstance(value, str) and key == "expr":  # a list of names in it says which dash is whose
        listed = r"(?<=indexof\()\[.*?\](?=, datum)"
        return re.sub(listed, lambda names: json.dumps(_renamed(json.loads(names[0]), labels, "sort")), value)
    return value


def fitted(spec: dict[str, Any], points: float) -> str:
    """The picture as SVG of so many points in width, without title, in sizes that suit print."""
    spec = copy.deepcopy(spec)
    for name in ("title", "usermeta"):
        spec.pop(name, None)
    inner = spec.get("spec", spec)
    across = min(int(spec.get("columns", 1)), max(1, int(points // 150)))
    if "columns" in spec:
        spec["columns"] = across
    tall, panel = inner["height"], points / across - 30
    _thinner(spec, points)
    drawing = ""
    for _ in range(4):  # labels and legends take what is not known before it is drawn
        inner["width"] = round(panel, 2)
        inner["height"] = round(min(max(0.55 * tall, 60), 0.8 * panel), 2)
        drawing = vl_convert.vegalite_to_svg(spec, vl_version=vega_lite_version(), config=_config(points))
        width = float(re.search(r'<svg[^>]* width="([\d.]+)"', drawing)[1])  # type: ignore[index]
        if abs(width - points) <= 1:
            break
        panel = max(40.0, panel + (points - width) / across)
    return drawing


def _thinner(spec: object, points: float) -> None:
    """Lines, points and letters of marks at half the size that a page has, and legends that fit."""
    if isinstance(spec, dict):
        for name, most in (("gradientLength", 0.6 * points), ("columns", points // 80)):
            if name in spec and "facet" not in spec:
                spec[name] = min(spec[name], most)
        if isinstance(spec.get("strokeDash"), dict) and "range" in spec["strokeDash"].get("scale", {}):
            scale = spec["strokeDash"]["scale"]
            scale["range"] = [[length / 2 for length in dash] for dash in scale["range"]]
        mark = spec.get("mark")
        if isinstance(mark, dict):
            for name, factor in (("strokeWidth", 0.5), ("size", 0.3), ("fontSize", 0.6)):
                if isinstance(mark.get(name), int | float):
                    mark[name] *= factor
        for inner in spec.values():
            _thinner(inner, points)
    elif isinstance(spec, list):
        for inner in spec:
            _thinner(inner, points)


def _config(points: float) -> dict[str, Any]:
    theme = config()
    theme["font"] = "Helvetica, Arial, sans-serif"
    theme["padding"] = 1
    small = {"labelFontSize": 7, "titleFontSize": 7.5, "titleFontWeight": "normal"}
    theme["axis"] |= small | {"titlePadding": 3, "tickSize": 3, "labelPadding": 2}
    columns = max(1, int(points // 80))
    theme["legend"] |= small | {"symbolSize": 60, "symbolStrokeWidth": 1.2, "columns": columns, "offset": 4}
    theme["legend"] |= {"labelLimit": 160, "rowPadding": 1, "columnPadding": 6}
    theme["header"] |= {"labelFontSize": 7.5, "labelFontWeight": "normal", "labelPadding": 3}
    if points < 300:
        theme["legend"]["layout"] = {"bottom": {"direction": "vertical"}}
    theme["facet"] = {"spacing": 10}
    return theme


def _in_points(drawing: str) -> str:
    """The SVG with its size in points, which it is drawn in, and not in pixels."""
    head = re.sub(r' (width|height)="([\d.]+)"', r' \1="\2pt"', drawing[: drawing.index(">")])
    return head + drawing[drawing.index(">") :]
