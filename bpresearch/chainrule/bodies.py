"""Programs inside an equation: where versions of JAX keep them among its parameters."""

from collections.abc import Sequence
from typing import Any

from jax.extend.core import Jaxpr

CALLS = ("jit", "pjit", "closed_call", "core_call")
"""Equations that evaluate a program and say nothing else about it."""

BODIES = ("jaxpr", "call_jaxpr", "call")


def body(params: dict[str, Any]) -> tuple[Jaxpr, Sequence[Any]]:
    """The program of a call, and the values of its constants."""
    inner = next(params[name] for name in BODIES if name in params)
    return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())


def sizes(params: dict[str, Any]) -> tuple[int, int]:
    """Number of a scan's constants, and of its constants and carries together."""
    if "ft_in" in params:  # as JAX 0.12 writes it
        consts, carry, _ = params["ft_in"].unpack()
        return len(consts), len(consts) + len(carry)
    return params["num_consts"], params["num_consts"] + params["num_carry"]
