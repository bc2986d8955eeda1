"""Tables and pictures of a sweep's results."""

from pathlib import Path

import xarray as xr

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


__all__ = ["learning_rate_sensitivity", "loss_curves", "save", "table", "write"]
