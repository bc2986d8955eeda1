"""Arrays in another floating-point precision, random ones, and programs that compile soon."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxprs_in_params
from jaxtyping import Array, Int, PyTree, UInt32

Seed: TypeAlias = int | UInt32[Array, ""]

UNOPTIMIZED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""XLA's options for the CPU with which a program compiles soonest."""
EQUALITIES = ("eq", "ne", "ge", "le")
UNFUSED = {"xla_disable_hlo_passes": "fusion"}
"""With these as well each operation is a loop of its own, and rounds once. XLA's fusion computes a value
again where it is used, and processors take a product into a sum unrounded at one place and not at another."""


def compiled(
    function: Callable[..., PyTree], optimization: int = 0, fused: bool = True
) -> Callable[..., PyTree]:
    """`jax.jit` for a program that runs once: on the CPU, compilation is three times faster for it.

    XLA's optimisations there cost more than they save, and matrix products come from a library anyway. With
    `optimization=1`, for a program that runs a second, its own loops are as fast as with all of them; and so
    it is for a program that asks whether numbers are equal (see `compares`). Without fusion, which takes
    twice the time and many times the memory, what is computed twice is the same both times.
    """
    if jax.default_backend() != "cpu":
        return jax.jit(function)
    options = UNOPTIMIZED | ({} if fused else UNFUSED)
    quick, alike = (
        jax.jit(function, compiler_options=options | {"xla_backend_optimization_level": level})
        for level in (optimization, 1)
    )
    program: Any = alike if optimization else None

    def run(*args: PyTree) -> PyTree:
        nonlocal program
        if program is None:
            program = alike if fused and compares(quick.trace(*args).jaxpr) else quick
        return program(*args)

    return run


def compares(jaxpr: Jaxpr | ClosedJaxpr) -> bool:
    """Whether a program asks if floating-point numbers are equal, as the derivative of a maximum does.

    Not optimised at all, XLA computes a product and a sum in one rounding at one place and in two at another,
    and where a maximum is taken of one and compared with the other, no element is equal to it.
    """
    return any(
        (eqn.primitive.name in EQUALITIES and all(map(_is_variable, eqn.invars)))
        or any(map(compares, jaxprs_in_params(eqn.params)))
        for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns
    )


def _is_variable(v: Var | Literal) -> bool:
    return not isinstance(v, Literal) and jnp.issubdtype(v.aval.dtype, jnp.inexact)


def is_floating(leaf: Any) -> bool:
    """Whether a leaf of a tree is an array (or number) of real floating-point type."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def cast(tree: PyTree, dtype: jax.typing.DTypeLike) -> PyTree:
    """The tree with every floating-point array in `dtype`; Python floats and other leaves stay.

    >>> bp.verify.cast({"x": jnp.ones(2), "y": jnp.arange(2)}, "bfloat16")["x"].dtype
    dtype(bfloat16)
    """

    def cast_leaf(leaf):
        if not is_floating(leaf):
            return leaf
        if isinstance(leaf, jax.core.Tracer):
            return leaf.astype(dtype)
        return jnp.asarray(np.asarray(leaf).astype(dtype))  # on the host, where nothing is compiled for it

    return jax.tree.map(cast_leaf, tree)


def random_signs(shape: Sequence[int], seed: Seed) -> Int[Array, "*shape"]:
    """Pseudo-random 1 and -1: the lowest bit of a mixed counter (the finaliser of MurmurHash3).

    Compiles in no time inside a large program, where `jax.random`'s generator takes seconds.
    """
    bits = jax.lax.iota(jnp.uint32, math.prod(shape))
    bits = bits + jnp.uint32(0x9E3779B9) * (jnp.asarray(seed, jnp.uint32) + jnp.uint32(1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return (1 - 2 * (bits & 1).astype(jnp.int32)).reshape(shape)


def random_like(shapes: PyTree, seed: int) -> PyTree:
    """Standard normal numbers for floating leaves and zeros for others; drawn on the host."""
    rng = np.random.default_rng(seed % 2**63)

    def draw(leaf):
        if not is_floating(leaf):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(rng.normal(size=leaf.shape).astype(leaf.dtype))

    return jax.tree.map(draw, shapes)
