"""What experiments leave behind besides their tables: figures as JSON, and pictures."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import altair as alt

from bpresearch.report.page import save


def write_figures(path: Path | None, figures: Mapping[str, float | int | bool]) -> None:
    """Writes one flat object of names and numbers, whole or not at all; nothing if there is no path."""
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    flat = {name: float(value) if isinstance(value, float) else int(value) for name, value in figures.items()}
    temporary.write_text(json.dumps(flat, indent=2) + "\n")
    temporary.replace(path)


def write_picture(chart: alt.TopLevelMixin, folder: Path, name: str) -> Path:
    """Writes a picture as PNG, SVG and HTML into a folder; returns the PNG file."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in (".html", ".svg", ".png"):
        path = save(chart, folder / f"{name}{suffix}")
    return path
