"""Tables and pictures of a sweep's results."""

from pathlib import Path

import xarray as xr

from bpresearch.report.checks import Check, conclude
from bpresearch.report.figures import write_figures, write_picture
from bpresearch.report.heatmap import heatmap
from bpresearch.report.lines import axis, lines
from bpresearch.report.network import network, unit_name
from bpresearch.report.pictures import learning_rate_sensitivity, loss_curves, save
from bpresearch.report.tables import table


def write(results: xr.Dataset, folder: Path) -> list[Path]:
    """Writes every picture of a sweep as PNG, SVG and HTML into a folder; returns the PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for draw in (loss_curves, learning_rate_sensitivity):
        chart = draw(results)
        for suffix in (".html", ".svg", ".png"):
            path = save(chart, folder / f"{draw.__name__}{suffix}")
        written.append(path)
    return written


__all__ = [
    "Check",
    "axis",
    "conclude",
    "heatmap",
    "learning_rate_sensitivity",
    "lines",
    "loss_curves",
    "network",
    "save",
    "table",
    "unit_name",
    "write",
    "write_figures",
    "write_picture",
]
