"""Verification of hand-written derivatives: are they right, in which sense, and where are they wrong?"""

from bpresearch.verify.assertion import assert_gradients
from bpresearch.verify.check_function import FUNCTION_ORACLES, function
from bpresearch.verify.check_model import DTYPES, ORACLES, model
from bpresearch.verify.faults import FAULTS, Fault, FaultError
from bpresearch.verify.mutations import MUTATIONS
from bpresearch.verify.report import Report, Row

__all__ = [
    "DTYPES",
    "FAULTS",
    "FUNCTION_ORACLES",
    "MUTATIONS",
    "ORACLES",
    "Fault",
    "FaultError",
    "Report",
    "Row",
    "assert_gradients",
    "function",
    "model",
]
