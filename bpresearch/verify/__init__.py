"""Verification of hand-written derivatives: are they right, in which sense, and where are they wrong?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bpresearch.verify.assertion import assert_gradients
from bpresearch.verify.detection.faults import FAULTS, Fault, FaultError
from bpresearch.verify.detection.mutations import MUTATIONS
from bpresearch.verify.equations import Plant
from bpresearch.verify.find_nan import NanReport, find_nan
from bpresearch.verify.flow import Flow, flow
from bpresearch.verify.function import FUNCTION_ORACLES, function
from bpresearch.verify.model import DTYPES, ORACLES, Prepared, loss, model, prepare
from bpresearch.verify.precision import cast, cast_model
from bpresearch.verify.report import Report, Row

if TYPE_CHECKING:
    from bpresearch.verify.detection import random_models

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
    "random_models",
]


def __getattr__(name: str) -> Any:
    if name == "random_models":  # loaded when first used: who verifies has no need of it
        return import_module("bpresearch.verify.detection.random_models")
    raise AttributeError(f"module 'bpresearch.verify' has no attribute {name!r}")
