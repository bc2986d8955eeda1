"""Arguments for the public functions of JAX, with which `functions.py` tries their derivatives.

Floating-point arrays are differentiated, everything else is an option. A function that is not named here gets
as many square matrices of numbers between 0.2 and 0.8 as it requires arguments.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import PyTree

_rng = np.random.default_rng(3)


class Case(NamedTuple):
    """What a function is called with."""

    args: tuple[PyTree, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Fixed:
    """A floating-point array that is not differentiated, where JAX has no derivative."""

    value: np.ndarray


def default(function: Callable[..., PyTree]) -> Case | None:
    """The arguments of a function that is not named here, if it requires one to four."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = sum(p.default is p.empty and p.kind in positional for p in parameters)
    return Case((A, B, C, D)[:required], {}) if 1 <= required <= 4 else None


def each(names: str, *args: PyTree, **kwargs: Any) -> dict[str, Case]:
    """The same call for several functions."""
    return {name: Case(args, kwargs) for name in names.split()}


def merged(*groups: dict[str, Case]) -> dict[str, Case]:
    """All of them in one."""
    return {name: case for group in groups for name, case in group.items()}


def draw(*shape: int, low: float = 0.2, high: float = 0.8) -> np.ndarray:
    """Numbers of a uniform distribution."""
    return np.asarray(_rng.uniform(low, high, shape))


A, B, C, D = (draw(3, 3) for _ in range(4))
"""What a function gets that is not named below."""

U, V, W, S, T = draw(4), draw(4), draw(6), draw(), draw()
SIGNED, LARGE = draw(3, 3, low=-1.0, high=1.0), draw(3, 3, low=1.2, high=2.5)
COMPLEX = A + 1j * B
POSITIVE = A @ A.T + np.eye(3)
TALL, CUBE, BATCH = draw(4, 3), draw(2, 2, 2), draw(2, 3, 3)
COUNTS = np.array([[0, 1, 2], [3, 1, 0], [2, 2, 1]])
MASK, THIRDS = COUNTS > 1, COUNTS % 3
ONE, ENDS = np.array(1), np.array([0, 2])
IMAGE, KERNEL, ONES = draw(1, 2, 5, 5), draw(3, 2, 2, 2), (1, 1)
HEADS = draw(3, 1, 3, 2, 4)
SIMPLEX = np.array([0.2, 0.3, 0.5])

NUMPY = merged(
    each("add hypot logaddexp logaddexp2 maximum minimum multiply subtract", A, B),
    each("acosh arccosh", LARGE),
    each("angle conj conjugate imag real", COMPLEX),
    each("apply_along_axis", lax.cumsum, 0, A),
    each("apply_over_axes", jnp.sum, A, (0,)),
    each("array_split hsplit split vsplit", A, 3),
    each("astype", A, np.float64),
    each("atleast_1d atleast_2d atleast_3d negative", A),
    each("average", A, weights=B),
    each("bincount", COUNTS.ravel(), draw(9), length=4),
    each("block concat concatenate column_stack dstack hstack stack vstack", [A, B]),
    each("broadcast_arrays", A, U[None, :3]),
    each("broadcast_to", U, (2, 4)),
    each("choose", COUNTS % 2, [A, B], mode="clip"),
    each("clip", A, 0.3, 0.6),
    each("compress", np.array([True, False, True]), A, size=2, axis=0),
    each("convolve correlate polyadd polymul polysub", U, W),
    each("cumulative_prod cumulative_sum polyder polyint trim_zeros vander", U),
    each("delete", U, 1),
    each("divmod floor_divide fmod mod remainder", LARGE, A),
    each("dsplit", CUBE, 2),
    each("einsum", "ij,kj->ik", A, B),
    each("expand_dims", A, 0),
    each("extract", MASK, A, size=4),
    each("fill_diagonal", A, U[:3], inplace=False),
    each("full", (2, 2), S),
    each("full_like", A, S),
    each("geomspace linspace logspace", S, T + 1, num=4),
    each("gradient", draw(5)),
    each("heaviside", SIGNED, A),
    each("histogram", U, bins=3, weights=V),
    each("histogram2d", U, V, bins=2, weights=draw(4)),
    each("histogramdd", draw(4, 2), bins=2, weights=draw(4)),
    each("i0 sign sinc", SIGNED),
    each("insert", U, 1, S),
    each("interp", U, np.linspace(0, 1, 5), draw(5)),
    each("ix_", ENDS),
    each("kaiser", 4, S),
    each("ldexp", A, COUNTS),
    each("matvec", A, U[:3]),
    each("meshgrid", U, V),
    each("modf", LARGE),
    each("moveaxis swapaxes", A, 0, 1),
    each("nanpercentile percentile", A, 30.0),
    each("nanquantile quantile", A, 0.3),
    each("pad", A, 1, mode="reflect"),
    each("partition", U, 2),
    each("permute_dims", A, (1, 0)),
    each("piecewise", SIGNED, [SIGNED < 0, SIGNED >= 0], [jnp.sin, jnp.cos]),
    each("place", A, MASK, U[:2], inplace=False),
    each("poly sort_complex", U),
    each("polydiv", W, U, trim_leading_zeros=False),
    each("polyfit", np.linspace(0.1, 1, 6), W, 2),
    each("polyval", U, A),
    each("put", U, ENDS, V[:2], inplace=False),
    each("put_along_axis", A, THIRDS[:1], B[:1], axis=0, inplace=False),
    each("repeat", A, 2, axis=0),
    each("reshape", A, (9,)),
    each("resize", A, (2, 6)),
    each("roll rollaxis", A, 1),
    each("roots", 1 + U, strip_zeros=False),
    each("select", [MASK, ~MASK], [A, B]),
    each("setdiff1d setxor1d union1d", U, np.array([0.1, 0.9]), size=6),
    each("take", A, ENDS, axis=1),
    each("take_along_axis", A, THIRDS, axis=1),
    each("tile", A, (2, 1)),
    each("unique unique_all unique_counts unique_inverse unique_values", U, size=4),
    each("unwrap", 3 * SIGNED),
    each("vdot", COMPLEX, 1j * COMPLEX.T),
    each("vecmat", U[:3], A),
    each("where", MASK, A, B),
)

NN = merged(
    each(
        "celu elu gelu hard_sigmoid hard_silu hard_tanh leaky_relu log_sigmoid mish relu relu6 selu", SIGNED
    ),
    each("sigmoid silu soft_sign softplus sparse_plus sparse_sigmoid squareplus standardize", SIGNED),
    each("dot_product_attention", *HEADS),
    each("glu", draw(3, 4)),
    each("scaled_dot_general", A, B, (((1,), (0,)), ((), ())), preferred_element_type=np.float64),
)


def _newton(f: Callable[[PyTree], PyTree], guess: PyTree) -> PyTree:
    """The root of x^3 - 2 x - 5."""
    return lax.fori_loop(0, 40, lambda _, x: x - f(x) / (3 * x**2 - 2), 2.0 + 0 * guess)


def _solve(_: Callable[[PyTree], PyTree], b: PyTree) -> PyTree:
    return np.linalg.inv(POSITIVE) @ b


_ROWS = lax.ScatterDimensionNumbers((1,), (0,), (0,))
_ROW = lax.GatherDimensionNumbers((1,), (0,), (0,))
_PLACES = np.array([[0], [2]])
_GROUPED = lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), (0,), (0,))

LAX = merged(
    each("acosh", LARGE),
    each("approx_max_k approx_min_k top_k", A, 2),
    each("argmax argmin", A, 0, np.int32),
    each("associative_scan", jnp.multiply, A),
    each("batch_matmul", BATCH, BATCH + 0.1),
    each("betainc", Fixed(A), Fixed(B), C),
    each("bitcast_convert_type", A, np.int64),
    each("broadcast", A, (2,)),
    each("broadcast_in_dim", A, (3, 2, 3), (0, 2)),
    each("broadcast_to_rank", A, 3),
    each("clamp", A - 0.3, B, A + 0.1),
    each("collapse", CUBE, 1),
    each("concatenate", [A, B], 0),
    each("cond", np.array(True), jnp.sin, jnp.cos, A),
    each("conj imag real", COMPLEX),
    each("conv", IMAGE, KERNEL, ONES, "SAME"),
    each("conv_general_dilated", IMAGE, KERNEL, (2, 1), "VALID", rhs_dilation=(1, 2)),
    each("conv_general_dilated_local", IMAGE, draw(3, 8, 4, 4), ONES, "VALID", (2, 2)),
    each("conv_general_dilated_patches", IMAGE, (2, 2), ONES, "VALID"),
    each("conv_transpose", draw(1, 5, 5, 2), draw(2, 2, 2, 3), (2, 2), "SAME"),
    each("conv_with_general_padding", IMAGE, KERNEL, ONES, ((1, 0), (0, 1)), (2, 1), (1, 1)),
    each("convert_element_type", A, np.float64),
    each("custom_linear_solve", lambda x: POSITIVE @ x, U[:3], _solve, symmetric=True),
    each("custom_root", lambda x: x**3 - 2 * x - 5, S, _newton, lambda g, y: y / g(1.0)),
    each("dot_general", BATCH, draw(2, 3, 4), (((2,), (1,)), ((0,), (0,)))),
    each("dynamic_index_in_dim", A, ONE),
    each("dynamic_slice", A, (ONE, ONE), (2, 2)),
    each("dynamic_slice_in_dim", A, ONE, 2),
    each("dynamic_update_index_in_dim", A, B[0], ONE, 0),
    each("dynamic_update_slice", A, B[:2, :2], (ONE, ONE)),
    each("dynamic_update_slice_in_dim", A, B[:1], ONE, 0),
    each("expand_dims rev", A, (0,)),
    each("fft", COMPLEX, "FFT", (3,)),
    each("fori_loop", 0, 3, lambda _, x: x * x + 0.1, A),
    each("full", (2,), S),
    each("full_like", A, S),
    each("gather", A, _PLACES, _ROW, (1, 3)),
    each("index_in_dim", A, 1),
    each("index_take", A, (ENDS,), (0,)),
    each("integer_pow", A, 3),
    each("map", jnp.sin, A),
    each("pad", A, S, ((1, 0, 1), (0, -1, 0))),
    each("platform_dependent", A, default=jnp.sin),
    each("polygamma", Fixed(COUNTS + 0.0), A),
    each("ragged_dot", TALL, draw(2, 3, 2), np.array([1, 3])),
    each("ragged_dot_general", TALL, draw(2, 3, 2), np.array([1, 3]), _GROUPED),
    each("reduce", A, 0.0, lax.add, (1,)),
    each("reduce_max reduce_min reduce_prod reduce_sum", A, (1,)),
    each("reduce_precision", A, 8, 23),
    each("reduce_window", A, 0.0, lax.add, (2, 2), ONES, "VALID"),
    each("rem zeta", LARGE, A),
    each("reshape", A, (9,)),
    each("scan", lambda carry, x: (carry * x + 1, carry - x), S, W),
    each("scatter scatter_add scatter_max scatter_min scatter_sub", A, _PLACES, B[:2], _ROWS),
    each("scatter_apply", A, _PLACES, jnp.sin, _ROWS, update_shape=(2, 3)),
    each("scatter_mul", A, _PLACES, B[:2], _ROWS, unique_indices=True),
    each("select select_n", MASK, A, B),
    each("slice", A, (0, 1), (3, 3)),
    each("slice_in_dim", A, 1, 3),
    each("sort_key_val", U, V),
    each("split", A, (1, 2)),
    each("squeeze", A[None], (0,)),
    each("switch", ONE, [jnp.sin, jnp.cos], A),
    each("tile", A, (2, 1)),
    each("transpose", A, (1, 0)),
    each("while_loop", lambda x: x.sum() < 9, lambda x: x * 2, A),
)

SPECIAL = merged(
    each("bernoulli", 4),
    each("bessel_jn", LARGE[0], v=2),
    each("betainc", 2.0, 1.5, A),
    each("comb zeta", LARGE, A),
    each("expit fresnel log_softmax softmax", SIGNED),
    each("expn", COUNTS + 1, A),
    each("multigammaln", LARGE, 2),
    each("polygamma", COUNTS, A),
    each("sph_harm_y", np.array([2]), np.array([1]), U[:1], V[:1], n_max=2),
)

LINALG = merged(
    each("cholesky eigh eigvalsh", POSITIVE),
    each("lstsq", TALL, U),
    each("matrix_norm", A, ord="nuc"),
    each("matrix_power", A, 3),
    each("multi_dot", [A, B, C]),
    each("outer", U, V),
    each("pinv qr svdvals", TALL),
    each("svd", A, full_matrices=False),
    each("tensorinv", draw(2, 3, 6), ind=2),
    each("tensorsolve", draw(2, 3, 6), draw(2, 3)),
)

FFT = each("hfft irfft irfft2 irfftn", COMPLEX)

STATS = {
    "bernoulli": merged(each("cdf", COUNTS, A), each("logpmf pmf", COUNTS % 2, A), each("ppf", A, B)),
    "beta": each("cdf logcdf logsf sf", A, 2.0, 1.5),
    "betabinom": each("logpmf pmf", COUNTS, COUNTS + 2, A, B),
    "binom": each("logpmf pmf", COUNTS, COUNTS + 2, A),
    "dirichlet": each("logpdf pdf", Fixed(SIMPLEX), LARGE[0]),
    "gennorm": each("cdf logpdf pdf", SIGNED, LARGE),
    "geom": each("logpmf pmf", COUNTS + 1, A),
    "multinomial": each("logpmf pmf", np.array([1, 2, 1]), 4, SIMPLEX),
    "multivariate_normal": each("logpdf pdf", A, U[:3], POSITIVE),
    "nbinom": each("logpmf pmf", COUNTS, LARGE, A),
    "pareto": merged(each("cdf logcdf logpdf logsf pdf sf", LARGE, B), each("ppf", A, LARGE)),
    "poisson": merged(each("cdf logpmf pmf", COUNTS, A), each("entropy", LARGE)),
    "truncnorm": each("cdf logcdf logpdf logsf pdf sf", A, B - 1, C + 1),
    "uniform": merged(each("cdf logpdf pdf", A, B - 0.8, C + 1), each("ppf", A, B, C)),
    "vonmises": each("logpdf pdf", SIGNED, A),
}

_GROUPS = {
    "jax.numpy": NUMPY,
    "jax.nn": NN,
    "jax.lax": LAX,
    "jax.scipy.special": SPECIAL,
    "jax.numpy.linalg": LINALG,
    "jax.numpy.fft": FFT,
    **{f"jax.scipy.stats.{name}": cases for name, cases in STATS.items()},
}

ARGUMENTS = {f"{group}.{name}": case for group, cases in _GROUPS.items() for name, case in cases.items()}
"""What functions are called with, by their full names."""
