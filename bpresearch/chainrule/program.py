"""Programs: any function, also of NNX models, traced to a list of equations.

A model among the arguments is taken apart into arrays, put together again inside the trace, and its layers
stay whole there. What its variables have become is part of the results.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax
from flax import nnx
from jax.extend import source_info_util
from jax.extend.core import Jaxpr

from bpresearch.chainrule.calls import layers_whole, named
from bpresearch.chainrule.primitives import Value
from bpresearch.functional import merge, split, state_of

# The line of an equation is the user's, not one of the libraries that the user's line has called.
_package = Path(__file__).parents[1]
for _place in (
    flax.__path__[0],
    optax.__path__[0],
    _package / "chainrule",
    _package / "verify",
    _package / "functional.py",
):
    source_info_util.register_exclusion(str(_place))


@dataclass(frozen=True, eq=False)
class Program:
    """A traced function.

    Attributes:
        jaxpr: its equations.
        consts: values of its constants.
        structure: of what it returns.
    """

    jaxpr: Jaxpr
    consts: list[Value]
    structure: Any

    def __str__(self) -> str:
        return str(self.jaxpr)


def trace(f: Callable[..., Any], *args: Any) -> Program:
    """The program of `f(*args)`, layers whole. `args` are pytrees of arrays, or of their shapes and types."""

    def whole(*args):
        with layers_whole():
            return f(*args)

    closed, shapes = jax.make_jaxpr(whole, return_shape=True)(*args)
    return Program(closed.jaxpr, closed.consts, jax.tree.structure(shapes))


def is_model(value: Any) -> bool:
    """Whether a value is an NNX module."""
    return isinstance(value, nnx.Module)


@dataclass(frozen=True)
class Parts:
    """Arguments taken apart: the models among them, and all arrays.

    Attributes:
        structure: of the arguments, with each model a leaf.
        models: the place and the static part of each model.
        leaves: arrays, and for each model a pair `(params, state)` of nested dicts.
    """

    structure: Any
    models: dict[int, nnx.GraphDef]
    leaves: list[Any]

    def together(self, leaves: list[Any]) -> tuple[Any, list[nnx.Module]]:
        """The arguments with these arrays, and the models in them, named."""
        models, whole = [], list(leaves)
        for place, graphdef in self.models.items():
            whole[place] = named(merge(graphdef, *leaves[place]))
            models.append(whole[place])
        return self.structure.unflatten(whole), models


def take_apart(arguments: Any) -> Parts:
    """Finds the models among the arguments and their arrays."""
    leaves, structure = jax.tree.flatten(arguments, is_leaf=is_model)
    models = {}
    for place, leaf in enumerate(leaves):
        if is_model(leaf):
            models[place], *variables = split(leaf)
            leaves[place] = tuple(variables)
        elif isinstance(leaf, float | complex | int | np.generic):
            leaves[place] = jax.numpy.asarray(leaf)
    return Parts(structure, models, leaves)


def of_arrays(
    f: Callable[..., Any], parts: Parts, opened: bool = False
) -> Callable[[list[Any]], tuple[Any, list[Any]]]:
    """`f` as a function of the arrays in its arguments, with the models' new variables beside its result.

    Args:
        f: takes `(args, kwargs)`, which is what `parts` are of, as `f(*args, **kwargs)`.
        opened: no layer is kept whole; see `layers_whole`.
    """

    def function(leaves):
        (args, kwargs), models = parts.together(leaves)
        with layers_whole(models, opened):
            result = f(*args, **kwargs)
        return result, [state_of(model) for model in models]

    return function
