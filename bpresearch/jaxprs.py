"""Traced programs, as versions of JAX keep them: the programs inside an equation, the values of variables."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

CALLS = ("jit", "pjit", "closed_call", "core_call")
"""Equations that evaluate a program and say nothing else about it."""

BODIES = ("jaxpr", "call_jaxpr", "call")


def traced(f: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], Any]:
    """`f` as operations, traced once for arguments of these shapes: its Python does not run again when it is
    called. And the shapes of what it returns.

    >>> again, shape = traced(lambda x: 2 * x, jax.ShapeDtypeStruct((), "float32"))
    >>> print(again(jnp.float32(3)), shape.dtype)
    6.0 float32
    """
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    leaves, structure = jax.tree.flatten(shapes)

    def again(*args: Any) -> Any:
        values = jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *jax.tree.leaves(args))
        arrays = [  # a number that stands in the program itself comes out as a Python number
            value if isinstance(value, jax.Array) else jnp.asarray(value, leaf.dtype)
            for value, leaf in zip(values, leaves, strict=True)
        ]
        return structure.unflatten(arrays)

    return again, shapes


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
