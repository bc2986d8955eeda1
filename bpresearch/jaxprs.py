"""Traced programs, as versions of JAX keep them: the programs inside an equation, the values of variables."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

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


def read(v: Any, values: dict[Any, Any]) -> Any:
    """The value of a variable, or of a literal."""
    return jnp.asarray(v.val, v.aval.dtype) if isinstance(v, Literal) else values[v]
