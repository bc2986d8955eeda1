"""Derivatives of JAX's own public functions by the hand-written rules, against JAX's and finite differences.

Walks the namespaces of the installed JAX. A function counts where its results have a derivative: aliases, and
functions with results that are integers or do not change, are left out. It is right where its cotangents and
tangents are JAX's to 1e-10 and its tangents those of finite differences, all in double precision.
"""

import functools
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import jax.scipy.special
import jax.scipy.stats
import numpy as np
from jax import lax
from jaxtyping import PyTree

from bpresearch import chainrule
from bpresearch.verify.detection.arguments import ARGUMENTS, Case, Fixed, default
from bpresearch.verify.precision import compiled

Arrays: TypeAlias = Sequence[Any]

AGREEMENT = 1e-10
"""Largest difference from JAX's derivative, relative to its largest element."""

RESOLUTION = 1e-6
"""Largest difference from finite differences."""

STEP = 1e-4
"""Of the finite differences; their own error is of its fourth order."""

EXPLAINED = {
    "jax.nn.dot_product_attention": "JAX rounds its softmax to float32 whatever the inputs are",
    "jax.lax.reduce_precision": "a staircase: JAX, and the rule, take the slope 1 that it has on the whole",
    "jax.scipy.stats.poisson.entropy": "JAX's tangent, and with it the rules', is NaN: 0 times the slope of "
    "log at 0, in a branch that is not taken; the cotangents are right",
}
"""Why a function is not right though its rules are; it does not count as right."""

_COLLECTIVES = """all_gather all_to_all axis_index axis_size pbroadcast pcast pmax pmean pmin ppermute
    precv psend pshuffle psum psum_scatter pswapaxes ragged_all_to_all"""

LEFT_OUT = {
    **dict.fromkeys(_COLLECTIVES.split(), "needs the devices of a mesh axis; see the tests of collectives"),
    "intersect1d": "changes only where elements become equal",
}
"""Functions that are not tried, by their last name, and why."""


def namespaces() -> dict[str, ModuleType]:
    """The modules that are walked, by name; of `jax.scipy.stats` each distribution."""
    stats = jax.scipy.stats
    modules = [jnp, jax.nn, lax, jax.scipy.special, jnp.linalg, jnp.fft, stats]
    modules += [
        m for name, m in sorted(vars(stats).items()) if inspect.ismodule(m) and not name.startswith("_")
    ]
    return {module.__name__: module for module in modules}


@dataclass(frozen=True)
class FunctionRow:
    """One public function: its errors, or why it does not count.

    Attributes:
        name: with its namespace.
        reason: why the function does not count; "" where it does.
        backward: largest error of the cotangents, relative to JAX's.
        forward: that of the tangents.
        differences: the tangents' against finite differences.
        failure: what the rules raised.
    """

    name: str
    reason: str = ""
    backward: float = np.inf
    forward: float = np.inf
    differences: float = np.inf
    failure: str = ""

    @property
    def counts(self) -> bool:
        return not self.reason

    @property
    def right(self) -> bool:
        return (
            self.counts and max(self.backward, self.forward) <= AGREEMENT and self.differences <= RESOLUTION
        )

    def __str__(self) -> str:
        if self.reason or self.failure:
            return f"{self.name:45}  {f'WRONG: {self.failure}' if self.failure else self.reason}"
        errors = (
            f"{self.backward:.0e} backward, {self.forward:.0e} forward, {self.differences:.0e} differences"
        )
        explained = EXPLAINED.get(self.name)
        verdict = "right" if self.right else f"differs: {explained}" if explained else "WRONG"
        return f"{self.name:45}  {errors}  {verdict}"


@dataclass(frozen=True)
class Functions:
    """The table of functions that were tried."""

    rows: tuple[FunctionRow, ...]

    @property
    def counted(self) -> list[str]:
        return [row.name for row in self.rows if row.counts]

    @property
    def right(self) -> list[str]:
        return [row.name for row in self.rows if row.right]

    @property
    def wrong(self) -> list[str]:
        """Those that are neither right nor explained."""
        return [row.name for row in self.rows if row.counts and not row.right and row.name not in EXPLAINED]

    def __str__(self) -> str:
        explained = len(self.counted) - len(self.right) - len(self.wrong)
        kinds = f"{len(self.right)} right, {explained} explained, {len(self.wrong)} wrong"
        return "\n".join([*map(str, self.rows), "", f"{len(self.counted)} functions: {kinds}"])


def functions(names: Sequence[str] | None = None, every: int = 1) -> Functions:
    """Every public function of the namespaces, with its errors or the reason for which it does not count.

    Args:
        names: only these, with their namespaces.
        every: of those that could count, only one in so many.
    """
    rows, tried = [], 0
    for name, function, reason in public_functions():
        if names is not None and name not in names:
            continue
        if not reason:
            tried += 1
            if (tried - 1) % every:
                continue
        rows.append(FunctionRow(name, reason) if reason else row_of(name, function))
    return Functions(tuple(rows))


def public_functions() -> Iterator[tuple[str, Callable[..., PyTree], str]]:
    """Name, function and, if it is an alias or is left out, the reason."""
    first_names: dict[int, str] = {}
    for namespace, module in namespaces().items():
        for name, function in sorted(vars(module).items()):
            if name.startswith("_") or name.endswith("_p") or not _is_function(function):
                continue
            full_name = f"{namespace}.{name}"
            alias = first_names.setdefault(id(function), full_name)
            alias = alias if alias != full_name else _alias(namespace, name, function)
            yield full_name, function, f"alias of {alias}" if alias else LEFT_OUT.get(name, "")


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type) and not inspect.ismodule(value)


def _alias(namespace: str, name: str, function: Callable[..., PyTree]) -> str:
    """The function that JAX says this is an alias of, or that it wraps under the same name."""
    said = re.match(r"\s*Alias of :func:`([\w.]+)`", function.__doc__ or "")
    if said:
        return said[1]
    return f"jax.numpy.{name}" if namespace == "jax.numpy.linalg" and hasattr(jnp, name) else ""


def row_of(name: str, function: Callable[..., PyTree]) -> FunctionRow:
    """The errors of one function, in double precision."""
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = ARGUMENTS.get(name) or default(function)
        if case is None:
            return FunctionRow(name, "takes no arrays, or other arguments than are known here")
        try:
            f, xs = of_moving_arrays(function, case)
            ys = jax.eval_shape(f, *xs)
        except Exception as error:
            return FunctionRow(
                name, f"takes no arrays, or other arguments than are known here: {_said(error)}"
            )
        if not xs or not ys:
            return FunctionRow(name, "its arguments or results are integers")
        return _compared(name, f, xs, ys)


def of_moving_arrays(
    function: Callable[..., PyTree], case: Case
) -> tuple[Callable[..., PyTree], list[jax.Array]]:
    """The function of the floating-point arrays among its arguments, and the arrays.

    It returns those of its results that are floating point.
    """
    leaves, structure = jax.tree.flatten((case.args, case.kwargs))
    moving = [
        i for i, leaf in enumerate(leaves)
        if isinstance(leaf, np.ndarray | np.floating) and np.issubdtype(leaf.dtype, np.inexact)
    ]  # fmt: skip
    given = [leaf.value if isinstance(leaf, Fixed) else leaf for leaf in leaves]

    def of_moving(*xs):
        whole = dict(enumerate(given)) | dict(zip(moving, xs, strict=True))
        args, kwargs = structure.unflatten(whole.values())
        results = map(jnp.asarray, jax.tree.leaves(function(*args, **kwargs)))
        return [y for y in results if jnp.issubdtype(y.dtype, jnp.inexact)]

    return of_moving, [jnp.asarray(given[i]) for i in moving]


def _compared(name: str, f: Callable[..., PyTree], xs: Arrays, ys: Arrays) -> FunctionRow:
    rng = np.random.default_rng(0)
    dots, bars = [_draw(rng, x) for x in xs], [_draw(rng, y) for y in ys]

    def derivatives(engine, xs, dots, bars):
        return engine.vjp(f, *xs)[1](bars), engine.jvp(f, tuple(xs), tuple(dots))[1]

    try:
        x_bars, y_dots = compiled(functools.partial(derivatives, jax))(xs, dots, bars)
    except Exception as error:
        return FunctionRow(name, f"JAX refuses: {_said(error)}")
    if not any(np.any(dot) for dot in y_dots):
        return FunctionRow(name, "its results do not change")
    row = FunctionRow(name)
    try:
        our_bars, our_dots = compiled(functools.partial(derivatives, chainrule))(xs, dots, bars)
    except Exception as error:
        return replace(row, failure=_said(error))
    slopes = compiled(functools.partial(differences, f))(xs, dots)
    return replace(
        row,
        backward=relative_error(our_bars, x_bars),
        forward=relative_error(our_dots, y_dots),
        differences=relative_error(our_dots, slopes),
    )


def differences(f: Callable[..., PyTree], xs: Arrays, dots: Arrays) -> list[jax.Array]:
    """(8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h along a direction."""
    h = STEP
    at = lax.map(
        lambda t: f(*(x + t * dot for x, dot in zip(xs, dots, strict=True))),
        jnp.asarray([-2 * h, -h, h, 2 * h]),
    )
    return [(8 * (y[2] - y[1]) - (y[3] - y[0])) / (12 * h) for y in at]


def relative_error(found: Arrays, right: Arrays) -> float:
    """The largest error of any array, relative to its largest element; of one near zero, to the others'."""
    largest = max((np.max(np.abs(array), initial=0.0) for array in right), default=0.0)
    worst = 0.0
    for actual, other in zip(found, right, strict=True):
        if (actual.shape, actual.dtype) != (other.shape, other.dtype):
            return np.inf
        size = max(np.max(np.abs(other), initial=0.0), 1e-4 * largest)
        error = np.max(np.abs(np.asarray(actual) - np.asarray(other)), initial=0.0)
        worst = max(worst, float(error / size if size else error), key=lambda e: np.inf if np.isnan(e) else e)
    return np.inf if np.isnan(worst) else worst


def _draw(rng: np.random.Generator, x: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    real = rng.uniform(-1, 1, x.shape)
    return jnp.asarray(
        real + 1j * rng.uniform(-1, 1, x.shape) if jnp.issubdtype(x.dtype, jnp.complexfloating) else real,
        x.dtype,
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:100]
