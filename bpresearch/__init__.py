"""bpresearch: gradient experiments in JAX, with every gradient checked against the chain rule by hand."""

from bpresearch import autodiff, chainrule, data, models, optim, sweep, verify

__all__ = ["autodiff", "chainrule", "data", "models", "optim", "sweep", "verify"]
