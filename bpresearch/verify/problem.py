"""Any function of pytrees as a function of a list of real arrays."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from bpresearch.functional import format_path
from bpresearch.verify.plain import loses_precision


class Problem:
    """`f(*args)` as `apply(point) -> outputs`, both lists of real arrays in one precision.

    A complex array is two real ones, along a new last axis. What cannot be differentiated (integers, strings,
    functions and so on) is part of `apply`; outputs of such types are left out.

    Attributes:
        point: the differentiable leaves of `args`, in float64 if `f` takes that, else as they came.
        names: one for each leaf, by the names of the parameters of `f`.
        outputs: shapes of what `apply` returns.
        eps: machine precision of the working precision.
    """

    def __init__(self, f: Callable[..., Any], args: tuple[Any, ...]):
        self.f = f
        self._leaves, self._structure = jax.tree.flatten(args)
        self._at = [i for i, leaf in enumerate(self._leaves) if _is_differentiable(leaf)]
        if not self._at:
            raise ValueError("nothing among the arguments is floating point, so there is no derivative")
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(args)[0]]
        self.names = [_name(paths[i], f, len(args)) for i in self._at]
        self._complex = [np.iscomplexobj(self._leaves[i]) for i in self._at]
        self.point, self.outputs = self._in_double_precision() or self._as_it_came()
        if not self.outputs:
            raise ValueError("nothing that the function returns is floating point, so there is no derivative")
        dtypes = [leaf.dtype for leaf in (*self.point, *self.outputs)]
        self.eps = max(float(jnp.finfo(dtype).eps) for dtype in dtypes)

    def _in_double_precision(self) -> Any:
        point = [_real(self._leaves[i], np.float64) for i in self._at]
        try:
            outputs = jax.eval_shape(self.apply, point)
        except Exception:
            return None
        if not all(o.dtype == np.float64 for o in outputs):
            return None
        short = any(_real(self._leaves[i], None).dtype != np.float64 for i in self._at)
        if short and not _has_exact_backward(self.apply, point):
            return None  # a backward pass that is made for a shorter format
        return point, outputs

    def _as_it_came(self) -> Any:
        point = [_real(self._leaves[i], None) for i in self._at]
        return point, jax.eval_shape(self.apply, point)

    def apply(self, point: list[Array]) -> list[Array]:
        """`f` as a function of the point."""
        return self.bind(self.f)(point)

    def bind(self, f: Callable[..., Any]) -> Callable[[list[Array]], list[Array]]:
        """Another function of the same arguments, as `apply`."""

        def apply(point):
            leaves = list(self._leaves)
            for index, leaf, is_complex in zip(self._at, point, self._complex, strict=True):
                leaves[index] = lax.complex(leaf[..., 0], leaf[..., 1]) if is_complex else leaf
            outputs = [jnp.asarray(o) for o in jax.tree.leaves(f(*self._structure.unflatten(leaves)))]
            step = any(jnp.iscomplexobj(leaf) for leaf in point)  # then complex outputs are meant
            return [
                jnp.stack([o.real, o.imag], axis=-1) if jnp.iscomplexobj(o) and not step else o
                for o in outputs
                if jnp.issubdtype(o.dtype, jnp.inexact)
            ]

        return apply

    @property
    def analytic_arguments(self) -> bool:
        """Whether every argument is real, so that a complex step can be taken."""
        return not any(self._complex)


def _has_exact_backward(apply: Callable[[list[Array]], list[Array]], point: list[Array]) -> bool:
    """Whether there is a gradient that is not rounded to less than float64 on the way."""

    def gradient(point):
        outputs, vjp = jax.vjp(apply, point)
        return vjp(outputs)

    try:
        return not loses_precision(gradient, point)
    except Exception:  # the contract will say what is wrong
        return False


def _is_differentiable(leaf: Any) -> bool:
    if isinstance(leaf, (float, complex)):
        return True
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _real(leaf: Any, dtype: Any) -> Array:
    """A leaf as a real array, in `dtype` or its own; a Python number is an array of the default type."""
    array = np.asarray(leaf)
    if isinstance(leaf, (float, complex)) and dtype is None:
        array = array.astype(np.complex64 if np.iscomplexobj(array) else np.float32)
    if np.iscomplexobj(array):
        array = np.stack([array.real, array.imag], axis=-1)
    return jnp.asarray(array if dtype is None else array.astype(dtype))


def _name(path: tuple[Any, ...], f: Callable[..., Any], count: int) -> str:
    """`weights.0.kernel` for a leaf of the parameter `weights`, `arg1` where parameters have no names."""
    first, *rest = (getattr(key, "idx", getattr(key, "key", getattr(key, "name", key))) for key in path)
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return format_path((named[first] if first < len(named) else f"arg{first}", *rest))
