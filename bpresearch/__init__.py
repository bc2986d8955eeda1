"""bpresearch: gradient experiments in JAX, with every gradient checked against the chain rule by hand."""

from typing import TYPE_CHECKING

from bpresearch.imports import on_demand

if TYPE_CHECKING:
    from bpresearch import (
        autodiff,
        chainrule,
        command,
        data,
        diagnostics,
        models,
        optim,
        platform,
        report,
        statistics,
        sweep,
        theory,
        train,
        verify,
    )
    from bpresearch.theory.explain import explain

__all__ = [
    "autodiff",
    "chainrule",
    "command",
    "data",
    "diagnostics",
    "explain",
    "models",
    "optim",
    "platform",
    "report",
    "statistics",
    "sweep",
    "theory",
    "train",
    "verify",
]

# Loaded when first used: pytest loads our plugin before a test suite has told JAX its platform.
__getattr__ = on_demand(__name__, __file__)


def __dir__() -> list[str]:
    return __all__
