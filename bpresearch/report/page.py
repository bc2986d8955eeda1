"""Pages: one self-contained HTML file, opened without a network, with pictures that answer to each other."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import numpy as np
import vl_convert
from markupsafe import Markup

from bpresearch import files
from bpresearch.platform import cache_folder
from bpresearch.report.style import (
    DASHES,
    SHAPES,
    config,
    png,
    specification,
    svg,
    vega_lite_version,
)

TEMPLATES = Path(__file__).with_name("templates")


@dataclass
class Table:
    """A table of a page: cells of text, and what hides a row in the legend; `wrap` breaks long lines."""

    caption: str
    columns: Sequence[str]
    rows: list[dict[str, object]] = field(default_factory=list)
    wrap: bool = False

    def add(self, cells: Sequence[str], keys: Mapping[str, str] | None = None, wrong: bool = False) -> None:
        """Adds a row; `keys` holds its optimizer, schedule and sweep."""
        self.rows.append({"cells": list(cells), "hidden_by": dict(keys or {}), "wrong": wrong})


@dataclass
class Section:
    """A part of a page.

    Attributes:
        id: its anchor.
        heading: its title.
        lead: sentences shown large.
        warnings: sentences shown as warnings.
        text: plain paragraphs.
        tables: its tables.
        pictures: its pictures by name, which is that of their files too.
        chain: links of a chain of layers (see `gradients`).
        picks: whether runs can be picked here by a form.
    """

    id: str
    heading: str
    lead: Sequence[str] = ()
    warnings: Sequence[str] = ()
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Mapping[str, alt.TopLevelMixin] = field(default_factory=dict)
    chain: Sequence[Mapping[str, object]] = ()
    picks: bool = False


def render(
    title: str,
    sections: Sequence[Section],
    *,
    legend: Sequence[tuple[str, Sequence[str]]] = (),
    tables: Mapping[str, Mapping[str, object]] | None = None,
    more: Mapping[str, object] | None = None,
    drawn: Callable[[str, dict[str, object]], object] | None = None,
) -> str:
    """The page's text.

    Args:
        title: its heading.
        sections: its parts; those without content are left out.
        legend: what the page's legend hides by, a column and its entries each.
        tables: data that no picture holds, as `columnar` gives it.
        more: more for page.js.
        drawn: called with every picture's name and specification; its files are linked if given.
    """
    data: dict[str, Any] = {"figures": [], "tables": dict(tables or {})}
    shown = []
    for section in sections:
        if not (section.lead or section.warnings or section.text or section.tables or section.pictures):
            continue
        figures = []
        for name, chart in section.pictures.items():
            spec = specification(chart)
            if drawn:
                drawn(name, spec)
            head, subtitle = _head(spec)
            figures.append({"id": name, "title": head, "subtitle": subtitle, "files": bool(drawn)})
            data["figures"].append(_figure(name, spec, data["tables"]))
        shown.append({**vars(section), "figures": figures})
    data |= {
        "legend": [{"name": name, "entries": list(entries)} for name, entries in legend],
        "configs": {"light": config(), "dark": config(dark=True)},
        "dashes": DASHES,
        "shapes": SHAPES,
        "axes": [],
        "curves": {"values": {}, "steps": {}},
        "metric": "",
        **(more or {}),
    }
    return (
        templates()
        .get_template("page.html")
        .render(
            title=title,
            sections=shown,
            css=Markup((TEMPLATES / "page.css").read_text()),
            vega=Markup(_vega()),
            javascript=Markup((TEMPLATES / "page.js").read_text()),
            data=Markup(in_script(data)),
        )
    )


def templates() -> jinja2.Environment:
    """The pages' templates."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(autoescape=True, loader=loader, trim_blocks=True, lstrip_blocks=True)


def _figure(name: str, spec: dict[str, Any], tables: dict[str, object]) -> dict[str, object]:
    """A picture for the page, its data moved to the page's tables, where several pictures may share them."""
    datasets = spec.pop("datasets", {})
    main = spec.get("data", {}).get("name")
    names = sorted(datasets, key=lambda dataset: dataset != main)
    for key in names:
        tables.setdefault(key, columnar(datasets[key]))
    brush = [p for p in spec.get("params", []) if p["name"] == "brush"]
    return {"id": name, "spec": spec, "tables": names, "brush": bool(brush)}


def columnar(rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Rows as columns, shorter than rows that repeat their names; numbers to six digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {
        "columns": columns,
        "values": [[short(row.get(name)) for row in rows] for name in columns],
    }


def short(value: object, digits: int = 6) -> object:
    """A JSON value; a float has so many digits, and is null if it is NaN or infinite."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, float):
        return value
    if value != value or value in (float("inf"), float("-inf")):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def in_script(value: object) -> str:
    """JSON that can stand in a script element: no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, from vl-convert, so without a network.

    It is kept on disk: putting it together takes a second.
    """
    versions = f"{version('vl-convert-python')}-{vega_lite_version()}"
    cache_file = cache_folder() / f"vega-{versions}.js"
    with suppress(OSError, UnicodeError):
        return cache_file.read_text(encoding="utf-8")
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=vega_lite_version())
    # In a script element, only these begin something else; in JavaScript's strings they mean the same.
    script = re.sub(r"<(?=/script|script|!--)", r"\\x3c", bundle, flags=re.IGNORECASE)
    with suppress(OSError):
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        files.write(cache_file, script)
    return script


def load() -> None:
    """Starts what draws pictures and pages, so that the first need not wait for it.

    It takes a second or two, and can be done in a thread while programs train.
    """
    _vega()
    png(svg({"data": {"values": []}, "mark": "point"}))


def save(chart: alt.TopLevelMixin, path: str | Path) -> Path:
    """Writes a picture as .png, .svg or .html, whole or not at all; nothing is loaded from a network.

    The HTML is a page of its own, interactive, in light and dark.
    """
    picture, path = specification(chart), Path(path).expanduser()
    match path.suffix:
        case ".png":
            return files.write(path, png(svg(picture)))
        case ".svg":
            return files.write(path, svg(picture))
        case ".html":
            title = _head(picture)[0] or path.stem
            section = Section("picture", title, pictures={path.stem: chart})
            return files.write(path, render(title, [section]))
        case suffix:
            raise ValueError(f"{path}: a picture's name ends in .png, .svg or .html, not {suffix!r}")


def _head(spec: Mapping[str, object]) -> tuple[str, str]:
    """A picture's title and subtitle, empty where it has none."""
    title = spec.get("title", "")
    head = title if isinstance(title, dict) else {"text": title}
    lines = [head.get(name, "") for name in ("text", "subtitle")]
    text, subtitle = (" ".join(line) if isinstance(line, list) else str(line) for line in lines)
    return text, subtitle
