"""What a program of many runs computes of each and what it skips, with the same bits in any company.

XLA compiles a value anew into each of its uses, and may round it otherwise there: a `whole` is computed once.
What a run does not need at a step (an evaluation, the steps of a run that has diverged) is a condition in the
program, not another program, and `blank` arrays stand in its place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike, PyTree

from bpresearch.jaxprs import traced

Value = TypeVar("Value")


@dataclass(frozen=True)
class Branch:
    """Computes something of a run where it is needed, and blanks, or something else, where it is not.

    Attributes:
        alone: whether a program takes one run at a time. With several at a time `vmap` computes both sides
            of a condition that differs between them, so it is not asked which of them have diverged.
    """

    alone: bool

    def __call__(
        self,
        needed: ArrayLike,
        healthy: Array,
        compute: Callable[[], Value],
        otherwise: Callable[[], Value] | None = None,
    ) -> Value:
        """`compute()` if it is needed and the run has not diverged, else `otherwise()`: by default, blanks.

        >>> from bpresearch.same_bits import Branch
        >>> healthy = jnp.array(True)
        >>> [float(Branch(True)(needed, healthy, lambda: jnp.float32(2))) for needed in (True, False)]
        [2.0, nan]
        """
        if otherwise is None:
            compute, shapes = traced(compute)
            otherwise = lambda: blank(shapes)  # noqa: E731
        inner = (lambda: jax.lax.cond(healthy, compute, otherwise)) if self.alone else compute
        return jax.lax.cond(needed, inner, otherwise)


def whole(values: Value) -> Value:
    """Arrays that are computed as a whole, whoever uses which of them, so that they have the same bits."""
    return jax.lax.optimization_barrier(values)


def blank(shapes: PyTree) -> PyTree:
    """Arrays of NaN, of zeros, or of some random key.

    >>> from bpresearch.same_bits import blank
    >>> blank({"loss": jax.ShapeDtypeStruct((), "float32"), "count": jax.ShapeDtypeStruct((2,), "int32")})
    {'count': Array([0, 0], dtype=int32), 'loss': Array(nan, dtype=float32)}
    """

    def fill(shape: jax.ShapeDtypeStruct) -> Array:
        if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), shape.shape)
        value = jnp.nan if jnp.issubdtype(shape.dtype, jnp.floating) else 0
        return jnp.full(shape.shape, value, shape.dtype)

    return jax.tree.map(fill, shapes)
