"""Tables, pictures and pages of results."""

from bpresearch.report import gradients
from bpresearch.report.experiment import NAMES, PICTURES, write
from bpresearch.report.page import save
from bpresearch.report.sweeps import Sweep, Sweeps, read
from bpresearch.report.tables import table

__all__ = ["NAMES", "PICTURES", "Sweep", "Sweeps", "gradients", "read", "save", "table", "write"]
