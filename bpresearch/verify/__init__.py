"""Verification of hand-written derivatives: are they right, in which sense, and where are they wrong?"""

from typing import TYPE_CHECKING

from bpresearch.imports import on_demand
from bpresearch.verify.assertion import assert_gradients
from bpresearch.verify.function import FUNCTION_ORACLES, function
from bpresearch.verify.precision import cast
from bpresearch.verify.report import Report, Row

if TYPE_CHECKING:
    from bpresearch.verify.casting import cast_model
    from bpresearch.verify.cotangent_flow import Flow, flow
    from bpresearch.verify.detection import random_models
    from bpresearch.verify.detection.faults import FAULTS, Fault, FaultError
    from bpresearch.verify.detection.mutations import MUTATIONS
    from bpresearch.verify.equations import Plant
    from bpresearch.verify.nan_origin import NanReport, find_nan
    from bpresearch.verify.objectives import DTYPES, ORACLES, Prepared, loss, model, prepare

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


# Of models and rules only when asked: who checks a function in a test suite needs neither Flax nor the rules.
__getattr__ = on_demand(__name__, __file__)


def __dir__() -> list[str]:
    return __all__
