"""What experiments leave behind besides their tables and figures: pictures."""

from pathlib import Path

import altair as alt

from bpresearch.report.page import save
from bpresearch.report.style import save_drawings, specification


def write_picture(chart: alt.TopLevelMixin, folder: str | Path, name: str) -> Path:
    """Writes a picture as PNG, SVG and HTML into a folder that exists; returns the PNG file."""
    save(chart, Path(folder) / f"{name}.html")
    return save_drawings(specification(chart), Path(folder), name)
