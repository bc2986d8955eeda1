"""What can be measured of a run inside its program, and problems of other collections to run it on."""

from bpresearch.analysis import deepobs, diagnostics

__all__ = ["deepobs", "diagnostics"]
