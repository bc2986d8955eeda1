"""Traced programs, as versions of JAX keep them: the programs inside an equation, the values of variables."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, Literal, Var
from jaxtyping import PyTree

CALLS = ("jit", "pjit", "closed_call", "core_call")
"""Equations that evaluate a program and say nothing else about it."""

BODIES = ("jaxpr", "call_jaxpr", "call")


def traced(f: Callable[..., PyTree], *args: PyTree) -> tuple[Callable[..., PyTree], PyTree]:
    """`f` as operations, traced once for arguments of these shapes: its Python does not run again when it is
    called. And the shapes of what it returns.

    >>> again, shape = traced(lambda x: 2 * x, jax.ShapeDtypeStruct((), "float32"))
    >>> print(again(jnp.float32(3)), shape.dtype)
    6.0 float32
    """
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    leaves, structure = jax.tree.flatten(shapes)

    def again(*args: PyTree) -> PyTree:
        values = jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *jax.tree.leaves(args))
        arrays = [  # a number that stands in the program itself comes out as a Python number
            value if isinstance(value, jax.Array) else jnp.asarray(value, leaf.dtype)
            for value, leaf in zip(values, leaves, strict=True)
        ]
        return structure.unflatten(arrays)

    return again, shapes


def body(params: dict[str, Any]) -> tuple[Jaxpr, Sequence[PyTree]]:
    """The program of a call, and the values of its constants."""
    inner = next(params[name] for name in BODIES if name in params)
    return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())


def sizes(params: dict[str, Any]) -> tuple[int, int]:
    """Number of a scan's constants, and of its constants and carries together."""
    if "ft_in" in params:  # as JAX 0.12 writes it
        consts, carry, _ = params["ft_in"].unpack()
        return len(consts), len(consts) + len(carry)
    return params["num_consts"], params["num_consts"] + params["num_carry"]


def read(v: Var | Literal, values: dict[Var, PyTree]) -> PyTree:
    """The value of a variable, or of a literal."""
    return jnp.asarray(v.val, v.aval.dtype) if isinstance(v, Literal) else values[v]


def where_going(going: jax.Array, new: PyTree, old: PyTree, axis: int = 0) -> jax.Array:
    """What a loop's step gives where it goes on, and what was there where it is over.

    `going` says it for each of the loops that `jax.vmap` made one; their axes are those from `axis` on.
    """
    trailing = jnp.ndim(new) - axis - going.ndim
    return jnp.where(going.reshape(*[1] * axis, *going.shape, *[1] * trailing), new, old)


def while_loop(
    goes_on: Callable[[PyTree], jax.Array],
    step: Callable[[PyTree], PyTree],
    carry: PyTree,
    where: Callable[[jax.Array, PyTree, PyTree], PyTree] = lambda going, new, old: jax.tree.map(
        lambda n, o: where_going(going, n, o), new, old
    ),
) -> PyTree:
    """`lax.while_loop`, also where `goes_on` gives an answer for each of several loops in one.

    So it is in a traced program where `jax.vmap` met a condition that differs from example to example.

    Args:
        goes_on: of the carry; a scalar, or several.
        step: the next carry.
        carry: at first.
        where: `(going, new, old) -> carry`, of several loops; by default their axes lead those of each leaf.

    >>> print(while_loop(lambda x: x < 10, lambda x: 2 * x, jnp.array([1, 3, 20])))
    [16 12 20]
    """
    if not jax.eval_shape(goes_on, carry).shape:
        return lax.while_loop(goes_on, step, carry)
    return lax.while_loop(
        lambda carry: jnp.any(goes_on(carry)), lambda carry: where(goes_on(carry), step(carry), carry), carry
    )
