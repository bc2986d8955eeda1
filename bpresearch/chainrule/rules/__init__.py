"""The hand-written rules: of primitives in `lax`, of layers in `layers`, of losses in `losses`."""

from bpresearch.chainrule.rules import lax, layers, losses

__all__ = ["lax", "layers", "losses"]
