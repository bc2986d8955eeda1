"""Any function of pytrees as a function of a point: a list of real arrays in one precision."""

import inspect
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from bpresearch.paths import format_path


class Arguments:
    """The arguments of a function, taken apart into a point and what is held fast.

    A complex array is two real ones, along a new last axis. Integers, strings, functions and so on are held
    fast, as are the arguments that `argnums` leaves out.

    Attributes:
        names: one for each leaf of the point, by the names of the function's parameters.
        dtypes: real dtypes in which the leaves came; a Python number is of the default type.
    """

    def __init__(
        self,
        f: Callable[..., PyTree],
        args: tuple[PyTree, ...],
        kwargs: dict[str, Any] | None = None,
        argnums: int | Sequence[int] | None = None,
    ):
        self._leaves, self._structure = jax.tree.flatten((args, kwargs or {}))
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path((args, kwargs or {}))[0]]
        chosen = _chosen(argnums, len(args))
        self._at = [
            i for i, (leaf, path) in enumerate(zip(self._leaves, paths, strict=True))
            if _is_differentiable(leaf) and (chosen is None or (path[0].idx == 0 and path[1].idx in chosen))
        ]  # fmt: skip
        if not self._at:
            raise ValueError("nothing among the arguments is floating point, so there is no derivative")
        self.names = [_name(paths[i], f, len(args)) for i in self._at]
        self._complex = [np.iscomplexobj(self._leaves[i]) for i in self._at]
        self.dtypes = [_as_real(self._leaves[i], None).dtype for i in self._at]

    def point(self, dtype: jax.typing.DTypeLike | None = None) -> list[Array]:
        """The leaves that are differentiated, in one precision or as they came."""
        return [_real(self._leaves[i], dtype) for i in self._at]

    def with_point(self, point: Sequence[PyTree]) -> tuple[tuple[PyTree, ...], dict[str, Any]]:
        """The arguments with other values at the point."""
        leaves = list(self._leaves)
        for index, leaf, is_complex in zip(self._at, point, self._complex, strict=True):
            leaves[index] = lax.complex(leaf[..., 0], leaf[..., 1]) if is_complex else leaf
        return self._structure.unflatten(leaves)

    def bind(self, f: Callable[..., PyTree]) -> Callable[[list[Array], PyTree], list[Array]]:
        """A function of these arguments as `(point, others) -> outputs`.

        Outputs that are not floating point are left out; complex ones are pairs of real ones.
        """

        def apply(point, others):
            args, kwargs = self.with_point(point)
            outputs = [jnp.asarray(o) for o in jax.tree.leaves(f(*args, **kwargs))]
            step = any(jnp.iscomplexobj(leaf) for leaf in point)  # then complex outputs are meant
            return [
                jnp.stack([o.real, o.imag], axis=-1) if jnp.iscomplexobj(o) and not step else o
                for o in outputs
                if jnp.issubdtype(o.dtype, jnp.inexact)
            ]

        return apply

    def output_names(self, f: Callable[..., PyTree]) -> list[str]:
        """A name for each output: its path in what the function returns, or its number."""
        args, kwargs = self.with_point(self.point())
        leaves = jax.tree_util.tree_flatten_with_path(jax.eval_shape(lambda: f(*args, **kwargs)))[0]
        floating = [path for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        paths = [
            [getattr(k, "idx", getattr(k, "key", getattr(k, "name", k))) for k in path] for path in floating
        ]
        return [format_path(("output", *path)) for path in paths]

    @property
    def complex(self) -> list[bool]:
        """Which leaves of the point came as complex arrays."""
        return list(self._complex)

    @property
    def is_real(self) -> bool:
        """Whether every leaf of the point came as a real one, so that a complex step can be taken."""
        return not any(self._complex)

    def key(self) -> Hashable:
        """What tells these arguments from others for a program compiled with them; None if nothing can."""
        fixed = [leaf for i, leaf in enumerate(self._leaves) if i not in self._at]
        parts = [(leaf.shape, str(leaf.dtype), leaf.tobytes()) if _is_small(leaf) else leaf for leaf in fixed]
        shapes = [(np.shape(self._leaves[i]), str(d)) for i, d in zip(self._at, self.dtypes, strict=True)]
        key = (self._structure, tuple(self._at), tuple(self._complex), tuple(shapes), tuple(parts))
        try:
            hash(key)
        except TypeError:
            return None
        return key


def _is_small(leaf: PyTree) -> bool:
    return isinstance(leaf, np.ndarray | np.generic) and leaf.nbytes <= 2**16


def _chosen(argnums: int | Sequence[int] | None, count: int) -> set[int] | None:
    if argnums is None:
        return None
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for number in numbers:
        if not -count <= number < count:
            raise ValueError(f"argnums {number} is not the number of one of {count} arguments")
    return {number % count for number in numbers}


def _is_differentiable(leaf: PyTree) -> bool:
    if isinstance(leaf, (float, complex)):
        return True
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _real(leaf: PyTree, dtype: jax.typing.DTypeLike | None) -> Array:
    return jnp.asarray(_as_real(leaf, dtype))


def _as_real(leaf: PyTree, dtype: jax.typing.DTypeLike | None) -> np.ndarray:
    """A leaf as a real array, in `dtype` or its own; a Python number is an array of the default type."""
    array = np.asarray(leaf)
    if isinstance(leaf, (float, complex)) and dtype is None:
        array = array.astype(np.complex64 if np.iscomplexobj(array) else np.float32)
    if np.iscomplexobj(array):
        array = np.stack([array.real, array.imag], axis=-1)
    return array if dtype is None else array.astype(dtype)


def _step(key: Any) -> Any:
    """The index, key or name that one step of a path stands for."""
    return getattr(key, "idx", getattr(key, "key", getattr(key, "name", key)))


def _name(path: tuple[Any, ...], f: Callable[..., PyTree], count: int) -> str:
    """`weights.0.kernel` for a leaf of the parameter `weights`, `arg1` where parameters have no names."""
    group, first, *rest = map(_step, path)
    if group == 1:
        return format_path((first, *rest))
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return format_path((named[first] if first < len(named) else f"arg{first}", *rest))
