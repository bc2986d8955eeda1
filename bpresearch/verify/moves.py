"""What rounding does to the result of each primitive: nothing, one unit, or more.

The tables that random rounding (`bpresearch.verify.spread`) goes by. A primitive that stands in none of them
rounds its result once.
"""

import math
from collections.abc import Iterator

import jax.numpy as jnp
from jax.extend.core import JaxprEqn, jaxprs_in_params

from bpresearch.jaxprs import CALLS

INLINED = frozenset(
    [
        *CALLS, "remat", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call",
        "custom_vjp_call_jaxpr", "custom_vmap_call", "eval_jaxpr", "composite",
    ]
)  # fmt: skip
"""Calls: what they call is evaluated in their place."""

DECISIONS = frozenset(
    [
        "floor", "ceil", "round", "sign", "is_finite", "eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to",
        "le_to", "argmax", "argmin", "nextafter", "bitcast_convert_type",
    ]
)  # fmt: skip
"""What they answer comes from the unmoved lane."""

EXACT = frozenset(
    [
        "reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "slice", "dynamic_slice",
        "dynamic_update_slice", "gather", "scatter", "concatenate", "pad", "rev", "select_n", "neg", "abs",
        "copy", "copy_p", "real", "imag", "complex", "conj", "max", "min", "clamp", "reduce_max",
        "reduce_min",
        "reduce_window_max", "reduce_window_min", "cummax", "cummin", "split", "stack", "unstack", "tile",
        "stop_gradient", "optimization_barrier", "name", "device_put", "sharding_constraint",
        "layout_constraint", "reshard", "ppermute", "all_gather", "all_to_all", "pvary", "pbroadcast", "iota",
        "random_wrap", "random_unwrap", "scatter-max", "scatter-min", "tie", "preduced", "get", "swap",
    ]
)  # fmt: skip
"""Results that need no rounding."""

OPAQUE = frozenset(
    [
        "pallas_call", "shard_map", "pure_callback", "io_callback", "ffi_call", "custom_partitioning",
        "tpu_custom_call", "triton_kernel_call", "run_state", "run_scoped", "xla_metadata_call",
    ]
)  # fmt: skip
"""What cannot be looked into: operands and results round as the narrowest type inside does."""

STABLE = frozenset(
    [
        "cholesky", "lu", "lu_solve", "qr", "geqrf", "householder_product", "ormqr", "eigh", "eig", "svd",
        "schur", "hessenberg", "tridiagonal", "triangular_solve", "tridiagonal_solve", "custom_linear_solve",
        "fft", "linear_call", "cholesky_update",
    ]
)  # fmt: skip
"""Backward stable: the exact result of operands that are off by a rounding of their largest element."""

UNITS = {
    "exp": 2, "exp2": 2, "log": 2, "log1p": 3, "expm1": 4, "logistic": 3, "tanh": 5, "tan": 4, "sin": 2,
    "cos": 2, "sinh": 4, "cosh": 4, "asin": 4, "acos": 4, "atan": 3, "asinh": 5, "acosh": 5, "atanh": 5,
    "atan2": 4, "pow": 8, "rsqrt": 2, "cbrt": 4, "erf": 4, "erfc": 16, "erf_inv": 32, "lgamma": 32,
    "digamma": 32, "igamma": 128, "igammac": 128, "igamma_grad_a": 512, "polygamma": 128, "zeta": 64,
    "bessel_i0e": 8, "bessel_i1e": 8, "regularized_incomplete_beta": 256, "random_gamma_grad": 512,
    "cumlogsumexp": 4,
}  # fmt: skip
"""Units of the last place to which libraries compute a function; one, for what is not named."""


def units(name: str) -> float:
    """To how many units of the last place a primitive's result is computed."""
    return float(UNITS.get(name, 1))


def terms(eqn: JaxprEqn) -> int:
    """How many terms are added up to one element of an equation's result; 1 where none are."""
    name, params = eqn.primitive.name, eqn.params
    shapes = [tuple(getattr(v.aval, "shape", ())) for v in eqn.invars]
    if name in ("dot_general", "ragged_dot_general"):
        numbers = (
            params.get("dimension_numbers") or params["ragged_dot_dimension_numbers"].dot_dimension_numbers
        )
        return max(1, math.prod(shapes[0][axis] for axis in numbers[0][0]))
    if name == "conv_general_dilated":
        features = shapes[1][params["dimension_numbers"].rhs_spec[0]]
        return max(1, math.prod(shapes[1]) // max(features, 1))
    if name in ("reduce_sum", "reduce_prod", "reduce", "psum"):
        size = math.prod(eqn.outvars[0].aval.shape)
        return max(1, math.prod(shapes[0]) // max(size, 1)) if size else 1
    if name in ("cumsum", "cumprod", "cumlogsumexp"):
        return max(1, shapes[0][params["axis"]])
    if name in ("reduce_window_sum", "reduce_window", "select_and_scatter_add"):
        return max(1, math.prod(params["window_dimensions"]))
    if name in ("scatter-add", "scatter-sub", "scatter-mul"):
        return max(1, math.prod(shapes[1][:-1]))
    if name in STABLE:
        return max([1, *(shape[-1] for shape in shapes if shape)])
    if name in OPAQUE:
        return max([1, *(shape[-1] for shape in shapes if shape)])
    return 1


def narrowest(eqn: JaxprEqn) -> float:
    """Machine epsilon of the narrowest floating-point type that an equation touches, inside of it too."""
    return max([float(jnp.finfo(jnp.float64).eps), *_epsilons(eqn)])


def _epsilons(eqn: JaxprEqn) -> Iterator[float]:
    for v in (*eqn.invars, *eqn.outvars):
        dtype = getattr(v.aval, "dtype", None)
        if dtype is None:
            dtype = getattr(getattr(v.aval, "inner_aval", None), "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jnp.inexact):
            yield float(jnp.finfo(dtype).eps)
    for inner in jaxprs_in_params(eqn.params):
        for equation in inner.eqns:
            yield from _epsilons(equation)
