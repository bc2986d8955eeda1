"""What experiments leave behind besides their tables: figures as JSON, and pictures."""

import json
import math
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import SupportsFloat

import altair as alt

from bpresearch.report.page import save
from bpresearch.report.style import save_drawings, specification, write_whole


def write_figures(path: Path | None, figures: Mapping[str, SupportsFloat]) -> None:
    """Writes one flat object of names and numbers, whole or not at all; nothing if there is no path.

    What is not finite has no number in JSON and is left out.
    """
    if path is None:
        return
    flat = {
        name: int(value) if isinstance(value, Integral) else float(value) for name, value in figures.items()
    }
    finite = {name: value for name, value in flat.items() if math.isfinite(value)}
    write_whole(path, f"{json.dumps(finite, indent=2)}\n".encode())


def write_picture(chart: alt.TopLevelMixin, folder: Path, name: str) -> Path:
    """Writes a picture as PNG, SVG and HTML into a folder that exists; returns the PNG file."""
    save(chart, folder / f"{name}.html")
    return save_drawings(specification(chart), folder, name)
