"""Verification of hand-written derivatives: are they right, in which sense, and where are they wrong?"""

from bpresearch.verify.assertion import assert_gradients
from bpresearch.verify.equations import Plant
from bpresearch.verify.faults import FAULTS, Fault, FaultError
from bpresearch.verify.find_nan import NanReport, find_nan
from bpresearch.verify.flow import Flow, flow
from bpresearch.verify.function import FUNCTION_ORACLES, function
from bpresearch.verify.model import DTYPES, ORACLES, Prepared, loss, model, prepare
from bpresearch.verify.mutations import MUTATIONS
from bpresearch.verify.precision import cast, cast_model
from bpresearch.verify.report import Report, Row

__all__ = [
    "DTYPES",
    "FAULTS",
    "FUNCTION_ORACLES",
    "MUTATIONS",
    "ORACLES",
    "Fault",
    "FaultError",
    "Flow",
    "NanReport",
    "Plant",
    "Prepared",
    "Report",
    "Row",
    "assert_gradients",
    "cast",
    "cast_model",
    "find_nan",
    "flow",
    "function",
    "loss",
    "model",
    "prepare",
]
