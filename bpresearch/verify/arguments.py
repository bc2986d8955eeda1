"""Arguments for the public functions of JAX, with which `functions.py` tries their derivatives.

Floating-point arrays are differentiated, everything else is an option. A function that is not named here gets as
many square matrices of numbers between 0.2 and 0.8 as it requires arguments.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

_rng = np.random.default_rng(3)


class Case(NamedTuple):
    """What a function is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def case(*args: Any, **kwargs: Any) -> Case:
    """A call."""
    return Case(args, kwargs)


@dataclass(frozen=True, eq=False)
class Fixed:
    """A floating-point array that is not differentiated, where JAX has no derivative."""

    value: Any


def draw(*shape: int, low: float = 0.2, high: float = 0.8) -> np.ndarray:
    """Numbers of a uniform distribution."""
    return _rng.uniform(low, high, shape)


A, B, C, D = (draw(3, 3) for _ in range(4))
"""What a function gets that is not named below."""

U, V, W = draw(4), draw(4), draw(6)
SIGNED = draw(3, 3, low=-1.0, high=1.0)
LARGE = draw(3, 3, low=1.2, high=2.5)
POSITIVE = A @ A.T + np.eye(3)
COMPLEX = A + 1j * B
COUNTS = np.array([[0, 1, 2], [3, 1, 0], [2, 2, 1]])
SORTED = np.cumsum(draw(5))
IMAGE, KERNEL = draw(1, 2, 5, 5), draw(3, 2, 2, 2)
SIMPLEX = np.array([0.2, 0.3, 0.5])
ONES = (1, 1)


def default(function: Callable[..., Any]) -> Case | None:
    """The arguments of a function that is not named here, if it requires one to four."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = sum(p.default is p.empty and p.kind in positional for p in parameters)
    return case(*(A, B, C, D)[:required]) if 1 <= required <= 4 else None


def _numpy() -> dict[str, Case]:
    twice, mask = (A, B), COUNTS > 1
    many = dict.fromkeys(
        "add multiply subtract maximum minimum logaddexp logaddexp2 hypot".split(), case(*twice)
    )
    lists = "block concat concatenate column_stack dstack hstack stack vstack".split()
    splits = dict.fromkeys("array_split hsplit split vsplit".split(), case(A, 3))
    norms = dict.fromkeys("percentile nanpercentile".split(), case(A, 30.0))
    quantiles = dict.fromkeys("quantile nanquantile".split(), case(A, 0.3))
    sized = dict.fromkeys(
        "unique unique_values union1d setxor1d setdiff1d intersect1d".split(),
        case(U, np.array([0.1, 0.9]), size=6),
    )
    return {
        **many, **dict.fromkeys(lists, case([A, B])), **splits, **norms, **quantiles, **sized,
        "acosh": case(LARGE), "arccosh": case(LARGE),
        "angle": case(COMPLEX), "conj": case(COMPLEX), "conjugate": case(COMPLEX), "imag": case(COMPLEX),
        "real": case(COMPLEX), "sort_complex": case(U),
        "apply_along_axis": case(lax.cumsum, 0, A),
        "apply_over_axes": case(jax.numpy.sum, A, (0,)),
        "astype": case(A, np.float64), "atleast_1d": case(0.5 * U), "atleast_2d": case(U), "atleast_3d": case(A),
        "average": case(A, weights=B), "bincount": case(COUNTS.ravel(), draw(9), length=4),
        "broadcast_arrays": case(A, U[:3][None]), "broadcast_to": case(U, (2, 4)),
        "choose": case(COUNTS % 2, [A, B], mode="clip"), "clip": case(A, 0.3, 0.6), "compress": case(np.array([True, False, True]), A, size=2, axis=0),
        "convolve": case(U, W), "correlate": case(U, W), "cov": case(A), "cross": case(A, B),
        "cumulative_prod": case(U), "cumulative_sum": case(U),
        "delete": case(U, 1), "diag_indices_from": case(A), "divmod": case(LARGE, A), "dsplit": case(draw(2, 2, 2), 2),
        "einsum": case("ij,kj->ik", A, B), "expand_dims": case(A, 0), "extract": case(mask, A, size=4),
        "fill_diagonal": case(A, U[:3], inplace=False), "float_power": case(A, B),
        "floor_divide": case(LARGE, A), "frexp": case(A), "full": case((2, 2), draw()), "full_like": case(A, draw()),
        "geomspace": case(U[0], 1 + U[1], num=4), "gradient": case(draw(5)), "heaviside": case(SIGNED, A),
        "histogram": case(U, bins=3, weights=V), "histogram2d": case(U, V, bins=2, weights=draw(4)),
        "histogramdd": case(draw(4, 2), bins=2, weights=draw(4)), "insert": case(U, 1, draw()),
        "interp": case(U, np.linspace(0, 1, 5), draw(5)), "ix_": case(np.array([0, 1])),
        "kaiser": case(4, draw()), "kron": case(A, B), "ldexp": case(A, COUNTS), "linspace": case(U[0], 1 + U[1], num=4),
        "logspace": case(U[0], 1 + U[1], num=4), "mod": case(LARGE, A), "remainder": case(LARGE, A),
        "fmod": case(LARGE, A), "modf": case(LARGE), "meshgrid": case(U, V), "moveaxis": case(A, 0, 1),
        "negative": case(A), "nextafter": case(A, B), "pad": case(A, 1, mode="reflect"), "partition": case(U, 2),
        "permute_dims": case(A, (1, 0)), "piecewise": case(SIGNED, [SIGNED < 0, SIGNED >= 0], [jax.numpy.sin, jax.numpy.cos]),
        "place": case(A, mask, U[:2], inplace=False), "polyder": case(U), "polydiv": case(W, U, trim_leading_zeros=False),
        "polyfit": case(np.linspace(0.1, 1, 6), W, 2), "polyint": case(U), "polymul": case(U, W), "poly": case(U),
        "polyadd": case(U, W), "polysub": case(U, W), "polyval": case(U, A),
        "put": case(U, np.array([0, 2]), V[:2], inplace=False),
        "put_along_axis": case(A, COUNTS[:1] % 3, B[:1], axis=0, inplace=False),
        "repeat": case(A, 2, axis=0), "reshape": case(A, (9,)), "resize": case(A, (2, 6)), "roll": case(A, 1),
        "rollaxis": case(A, 1), "roots": case(1 + W[:4], strip_zeros=False), "round": case(A),
        "select": case([mask, ~mask], [A, B]), "swapaxes": case(A, 0, 1), "take": case(A, COUNTS[0], axis=1),
        "take_along_axis": case(A, COUNTS % 3, axis=1), "tile": case(A, (2, 1)), "trapezoid": case(A, B),
        "trim_zeros": case(U), "unwrap": case(3 * SIGNED), "vander": case(U), "where": case(mask, A, B),
        "unique_all": case(U, size=4), "unique_counts": case(U, size=4), "unique_inverse": case(U, size=4),
        "unique_values": case(U, size=4), "unique": case(U, size=4), "matvec": case(A, U[:3]), "vecmat": case(U[:3], A),
        "permutation": case(U), "diag": case(A), "std": case(A), "var": case(A), "inner": case(A, B),
        "vdot": case(COMPLEX, 1j * COMPLEX.T), "array": case(A), "copy": case(A), "ravel": case(A), "sinc": case(SIGNED),
        "sign": case(SIGNED), "nan_to_num": case(A), "ediff1d": case(A), "i0": case(SIGNED), "spacing": case(A),
    }  # fmt: skip


def _nn() -> dict[str, Case]:
    signed = "celu elu gelu hard_sigmoid hard_silu hard_tanh leaky_relu log_sigmoid mish relu relu6 selu sigmoid".split()
    signed += "silu soft_sign softplus sparse_plus sparse_sigmoid squareplus standardize".split()
    heads = draw(1, 3, 2, 4), draw(1, 3, 2, 4), draw(1, 3, 2, 4)
    return {
        **dict.fromkeys(signed, case(SIGNED)),
        "dot_product_attention": case(*heads), "glu": case(draw(3, 4)), "log1mexp": case(A),
        "scaled_dot_general": case(A, B, (((1,), (0,)), ((), ())), preferred_element_type=np.float64),
    }  # fmt: skip


def _lax() -> dict[str, Case]:
    indices = np.array([[0], [2]])
    rows = lax.ScatterDimensionNumbers(
        update_window_dims=(1,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,)
    )
    gather = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))
    scatters = "scatter scatter_add scatter_max scatter_min scatter_sub".split()
    sums = "reduce_max reduce_min reduce_prod reduce_sum".split()
    image, kernel = draw(1, 5, 5, 2), draw(2, 2, 2, 3)

    def body(carry, x):
        return carry * x + 1, carry - x

    return {
        **dict.fromkeys(scatters, case(A, indices, B[:2], rows)), **dict.fromkeys(sums, case(A, (1,))),
        "scatter_mul": case(A, indices, B[:2], rows, unique_indices=True),
        "acosh": case(LARGE), "argmax": case(A, 0, np.int32), "argmin": case(A, 0, np.int32),
        "approx_max_k": case(A, 2), "approx_min_k": case(A, 2),
        "associative_scan": case(jax.numpy.multiply, A), "bitcast_convert_type": case(A, np.int64),
        "broadcast": case(A, (2,)), "broadcast_in_dim": case(A, (3, 2, 3), (0, 2)), "broadcast_to_rank": case(A, 3),
        "betainc": case(Fixed(A), Fixed(B), C), "clamp": case(A - 0.3, B, A + 0.1), "collapse": case(draw(2, 2, 2), 1),
        "complex": case(A, B), "concatenate": case([A, B], 0), "cond": case(np.array(True), jax.numpy.sin, jax.numpy.cos, A),
        "conj": case(COMPLEX), "conv": case(IMAGE, KERNEL, ONES, "SAME"),
        "conv_general_dilated": case(IMAGE, KERNEL, (2, 1), "VALID", rhs_dilation=(1, 2)),
        "conv_general_dilated_local": case(IMAGE, draw(3, 8, 4, 4), ONES, "VALID", (2, 2)),
        "conv_general_dilated_patches": case(IMAGE, (2, 2), ONES, "VALID"),
        "conv_transpose": case(image, kernel, (2, 2), "SAME"),
        "conv_with_general_padding": case(IMAGE, KERNEL, ONES, ((1, 0), (0, 1)), (2, 1), (1, 1)),
        "convert_element_type": case(A, np.float64), "custom_linear_solve": case(lambda x: POSITIVE @ x, U[:3], lambda _, b: np.linalg.inv(POSITIVE) @ b, symmetric=True),
        "custom_root": case(lambda x: x**3 - 2 * x - 5, draw(), _newton, lambda g, y: y / g(1.0)),
        "dot": case(A, B), "dot_general": case(draw(2, 3, 4), draw(2, 4, 3), (((2,), (1,)), ((0,), (0,)))),
        "dynamic_index_in_dim": case(A, np.array(1)), "dynamic_slice": case(A, (np.array(1), np.array(0)), (2, 2)),
        "dynamic_slice_in_dim": case(A, np.array(1), 2), "dynamic_update_index_in_dim": case(A, B[0], np.array(1), 0),
        "dynamic_update_slice": case(A, B[:2, :2], (np.array(1), np.array(0))),
        "dynamic_update_slice_in_dim": case(A, B[:1], np.array(1), 0), "expand_dims": case(A, (0,)),
        "fft": case(COMPLEX, "FFT", (3,)), "fori_loop": case(0, 3, lambda i, x: x * x + 0.1, A), "full": case((2,), draw()),
        "full_like": case(A, draw()), "gather": case(A, indices, gather, (1, 3)), "imag": case(COMPLEX), "real": case(COMPLEX),
        "index_in_dim": case(A, 1), "index_take": case(A, (np.array([0, 2]),), (0,)), "integer_pow": case(A, 3),
        "map": case(jax.numpy.sin, A), "pad": case(A, draw(), ((1, 0, 1), (0, -1, 0))), "platform_dependent": case(A, default=jax.numpy.sin),
        "polygamma": case(Fixed(COUNTS + 0.0), A), "ragged_dot": case(draw(4, 3), draw(2, 3, 2), np.array([1, 3])),
        "ragged_dot_general": case(draw(4, 3), draw(2, 3, 2), np.array([1, 3]), lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), (0,), (0,))),
         
        "reduce": case(A, 0.0, lax.add, (1,)), "reduce_precision": case(A, 8, 23),
        "reduce_window": case(A, 0.0, lax.add, (2, 2), ONES, "VALID"), "rem": case(LARGE, A),
        "reshape": case(A, (9,)), "rev": case(A, (0,)), "scan": case(body, U[0], W), "scatter_apply": case(A, indices, jax.numpy.sin, rows, update_shape=(2, 3)),
        "select": case(COUNTS > 1, A, B), "select_n": case(COUNTS > 1, A, B), "slice": case(A, (0, 1), (3, 3)),
        "slice_in_dim": case(A, 1, 3), "sort_key_val": case(U, V), "split": case(A, (1, 2)), "squeeze": case(A[None], (0,)),
        "switch": case(np.array(1), [jax.numpy.sin, jax.numpy.cos], A), "tile": case(A, (2, 1)), "top_k": case(A, 2),
        "transpose": case(A, (1, 0)), "while_loop": case(lambda x: x.sum() < 9, lambda x: x * 2, A), "zeta": case(LARGE, A),
        "nextafter": case(A, B), "acos": case(A), "batch_matmul": case(draw(2, 3, 3), draw(2, 3, 3)), "scaled_dot": case(A, B), "broadcast_like": case(A, B),
    }  # fmt: skip


def _newton(f: Callable[[Any], Any], guess: Any) -> Any:
    def step(_, x):
        return x - (x**3 - 2 * x - 5) / (3 * x**2 - 2)

    return lax.fori_loop(0, 40, step, guess * 0 + 2.0)


def _special() -> dict[str, Case]:
    return {
        "bernoulli": case(4), "bessel_jn": case(LARGE[0], v=2), "multigammaln": case(LARGE, 2),
        "polygamma": case(COUNTS, A), "zeta": case(LARGE, A), "sph_harm_y": case(np.array([2]), np.array([1]), U[:1], V[:1], n_max=2),
        "expit": case(SIGNED), "log_softmax": case(SIGNED), "softmax": case(SIGNED), "fresnel": case(SIGNED),
        "gammainc": case(A, B), "factorial": case(A), "hyp1f1": case(A, B, C), "hyp2f1": case(A, B, C, D),
        "expn": case(COUNTS + 1, A), "betainc": case(2.0, 1.5, A), "comb": case(LARGE, A), "poch": case(A, B),
    }  # fmt: skip


def _linalg() -> dict[str, Case]:
    symmetric = dict.fromkeys("cholesky eigh eigvalsh".split(), case(POSITIVE))
    return {
        **symmetric, "matrix_power": case(A, 3), "multi_dot": case([A, B, C]), "outer": case(U, V), "cross": case(A, B),
        "tensorinv": case(draw(2, 3, 6), ind=2), "tensorsolve": case(draw(2, 3, 6), draw(2, 3)), "lstsq": case(draw(4, 3), U),
        "solve": case(A, B), "svd": case(A, full_matrices=False), "pinv": case(draw(4, 3)), "qr": case(draw(4, 3)),
        "cond": case(A), "norm": case(A), "matrix_norm": case(A, ord="nuc"), "svdvals": case(draw(4, 3)),
    }  # fmt: skip


def _stats() -> dict[str, dict[str, Case]]:
    k, n, p = COUNTS, COUNTS + 2, A
    mean, covariance = U[:3], POSITIVE
    return {
        "bernoulli": {"cdf": case(k, p), "logpmf": case(k % 2, p), "pmf": case(k % 2, p), "ppf": case(A, p)},
        "beta": dict.fromkeys("cdf logcdf logsf sf".split(), case(A, 2.0, 1.5)),
        "betabinom": dict.fromkeys(("logpmf", "pmf"), case(k, n, A, B)),
        "binom": dict.fromkeys(("logpmf", "pmf"), case(k, n, p)),
        "dirichlet": dict.fromkeys(("logpdf", "pdf"), case(Fixed(SIMPLEX), LARGE[0])),
        "gumbel_l": {"ppf": case(A, B, C)}, "gumbel_r": {"ppf": case(A, B, C)},
        "geom": dict.fromkeys(("logpmf", "pmf"), case(k + 1, p)),
        "multinomial": dict.fromkeys(("logpmf", "pmf"), case(np.array([1, 2, 1]), 4, SIMPLEX)),
        "multivariate_normal": dict.fromkeys(("logpdf", "pdf"), case(A, mean, covariance)),
        "nbinom": dict.fromkeys(("logpmf", "pmf"), case(k, LARGE, p)),
        "pareto": dict.fromkeys("cdf logcdf logpdf logsf pdf sf".split(), case(LARGE, B)) | {"ppf": case(A, LARGE)},
        "poisson": dict.fromkeys("cdf logpmf pmf".split(), case(k, A)) | {"entropy": case(LARGE)},
        "truncnorm": dict.fromkeys("cdf logcdf logpdf logsf pdf sf".split(), case(A, B - 1, C + 1)),
        "uniform": dict.fromkeys("cdf logpdf pdf".split(), case(A, B - 0.8, C + 1)) | {"ppf": case(A, B, C)},
        "gennorm": dict.fromkeys("cdf logpdf pdf".split(), case(SIGNED, LARGE)),
        "vonmises": dict.fromkeys(("logpdf", "pdf"), case(SIGNED, A)),
        "wrapcauchy": dict.fromkeys(("logpdf", "pdf"), case(A, B)),
    }  # fmt: skip


def _all() -> dict[str, Case]:
    groups = {
        "jax.numpy": _numpy(), "jax.nn": _nn(), "jax.lax": _lax(), "jax.scipy.special": _special(),
        "jax.numpy.linalg": _linalg(), "jax.numpy.fft": {"hfft": case(COMPLEX), "irfft": case(COMPLEX), "irfft2": case(COMPLEX), "irfftn": case(COMPLEX)},
        **{f"jax.scipy.stats.{name}": cases for name, cases in _stats().items()},
    }  # fmt: skip
    return {f"{group}.{name}": one for group, cases in groups.items() for name, one in cases.items()}


ARGUMENTS = _all()
"""What functions are called with, by their full names."""
