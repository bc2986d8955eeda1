"""bpresearch: gradient experiments in JAX, with every gradient checked against the chain rule by hand."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bpresearch import autodiff, chainrule, data, models, optim, sweep, theory, verify
    from bpresearch.theory.explain import explain

__all__ = ["autodiff", "chainrule", "data", "explain", "models", "optim", "sweep", "theory", "verify"]


def __getattr__(name: str) -> Any:
    # Loaded when first used: pytest loads our plugin before a test suite has told JAX its platform.
    if name == "explain":
        return import_module("bpresearch.theory.explain").explain
    if name in __all__:
        return import_module(f"bpresearch.{name}")
    raise AttributeError(f"module 'bpresearch' has no attribute {name!r}")
