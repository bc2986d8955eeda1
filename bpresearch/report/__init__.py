"""Tables, pictures and pages of results."""

from bpresearch.report import gradients
from bpresearch.report.checks import Check, Finding, conclude, grid
from bpresearch.report.figures import write_picture
from bpresearch.report.heatmap import heatmap
from bpresearch.report.learner import MOST_UNITS, learner
from bpresearch.report.lines import axis, lines
from bpresearch.report.network import network, paths_page, unit_name
from bpresearch.report.page import save
from bpresearch.report.paper import paper
from bpresearch.report.sections import NAMES, PICTURES, write
from bpresearch.report.sweeps import Sweep, Sweeps, read
from bpresearch.report.tables import cost_table, show, studies_table, table

__all__ = [
    "MOST_UNITS",
    "NAMES",
    "PICTURES",
    "Check",
    "Finding",
    "Sweep",
    "Sweeps",
    "axis",
    "conclude",
    "cost_table",
    "gradients",
    "grid",
    "heatmap",
    "learner",
    "lines",
    "network",
    "paper",
    "paths_page",
    "read",
    "save",
    "show",
    "studies_table",
    "table",
    "unit_name",
    "write",
    "write_picture",
]
