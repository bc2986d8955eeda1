"""The weights to evaluate a run at."""

from typing import Any


def evaluation_params(optimizer_state: Any, params: Any) -> Any:
    """The weights that a run is evaluated at: those of the optimizer's state if it has its own."""
    return params
