"""Files that are written whole or not at all: a kill leaves what was there before."""

import json
import math
import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import SupportsFloat


def write(path: Path, content: str | bytes) -> Path:
    """Writes a file, whole or not at all; returns its path.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_figures(path: Path | None, figures: Mapping[str, SupportsFloat]) -> None:
    """Writes one flat object of names and numbers as JSON; nothing if there is no path.

    Figures that are not finite are left out: JSON has no such numbers.
    """
    if path is None:
        return
    flat = {
        name: int(figure) if isinstance(figure, Integral) else float(figure)
        for name, figure in figures.items()
        if math.isfinite(float(figure))
    }
    write(path, json.dumps(flat, indent=2) + "\n")
