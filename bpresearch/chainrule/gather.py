"""From the cotangents that rules return to one gradient per parameter."""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from bpresearch.functional import Params
from bpresearch.paths import format_path


def gather(model: nnx.Module, cotangents: dict[Any, PyTree]) -> Params:
    """The gradient of each parameter of `model`, in a dict with the paths of its parameters.

    A layer that is used twice appears under two paths in `cotangents` and under one in the model's state:
    the derivative of a shared parameter is the sum over its uses. A parameter that nothing uses gets zero.
    Each gradient has the dtype of its parameter.

    Raises:
        ValueError: a rule returned a cotangent whose name or shape no parameter has.
    """
    totals: dict[int, jax.Array] = {}

    def add(node: Any, cotangent: PyTree, path: tuple[Hashable, ...]) -> None:
        if isinstance(node, nnx.Param):
            shape = None if cotangent is None else jnp.shape(cotangent)
            right = jnp.shape(node[...])
            if shape != right:
                raise ValueError(f"the rule's gradient of {format_path(path)} has shape {shape}, not {right}")
            cotangent = cotangent.astype(node[...].dtype)
            totals[id(node)] = totals[id(node)] + cotangent if id(node) in totals else cotangent
        elif isinstance(cotangent, dict) and not isinstance(node, nnx.Variable | None):
            for name, part in cotangent.items():
                add(_attribute(node, name), part, (*path, name))
        else:
            where = format_path(path[:-1]) or "the model"
            name = path[-1] if path else "itself"
            raise ValueError(f"the rule's gradient {name!r} is not a parameter or layer of {where}")

    add(model, cotangents, ())
    gradients: Params = {}
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Param):
            *parents, leaf = path
            inner = gradients
            for name in parents:
                inner = inner.setdefault(name, {})
            inner[leaf] = totals[id(node)] if id(node) in totals else jnp.zeros_like(node[...])
    return gradients


def _attribute(node: Any, name: Hashable) -> Any:
    """The child of a module, list or dict; None if there is none."""
    try:
        return getattr(node, name) if isinstance(name, str) and hasattr(node, name) else node[name]
    except (TypeError, KeyError, IndexError, AttributeError):
        return None
