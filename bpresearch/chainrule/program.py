"""Programs: any function, also of NNX models, traced to a list of equations.

A model among the arguments is taken apart into arrays, put together again inside the trace, and its layers
stay whole there. What its variables have become is part of the results.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax
import jax
import optax
from flax import nnx
from jax.extend import source_info_util
from jax.extend.core import Jaxpr
from jaxtyping import PyTree

from bpresearch.chainrule.calls import layers_whole, named
from bpresearch.chainrule.primitives import Value
from bpresearch.chainrule.references import has_references, of_values
from bpresearch.chainrule.staging import current_trace, staging
from bpresearch.functional import State, merge, split, state_of

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
    structure: jax.tree_util.PyTreeDef

    def __str__(self) -> str:
        return str(self.jaxpr)


def trace(f: Callable[..., PyTree], *args: PyTree, everything: bool = False) -> Program:
    """The program of `f(*args)`, layers whole. `args` are pytrees of arrays, or of their shapes and types.

    What does not depend on them is no part of it, but computed at once; with `everything` it is.

    >>> program = bp.chainrule.trace(lambda x: jnp.sin(x) * x, 2.0)
    >>> [equation.primitive.name for equation in program.jaxpr.eqns]
    ['sin', 'mul']
    """
    around = current_trace()

    def whole(*args):
        with nullcontext() if everything else staging(around), layers_whole():
            return f(*args)

    closed, shapes = jax.make_jaxpr(whole, return_shape=True)(*args)
    if has_references(closed.jaxpr):
        types = [v.aval for v in closed.jaxpr.invars]
        closed = jax.make_jaxpr(of_values(closed.jaxpr, closed.consts))(*types)
    return Program(closed.jaxpr, closed.consts, jax.tree.structure(shapes))


def trace_of(
    f: Callable[[list[PyTree]], PyTree], leaves: Sequence[PyTree], wanted: Sequence[bool]
) -> Program:
    """The program of `f(leaves)` as a function of the wanted leaves; the others are known, whatever they
    are.
    """

    def of_wanted(*moving):
        remaining = iter(moving)
        return f([next(remaining) if w else leaf for leaf, w in zip(leaves, wanted, strict=True)])

    return trace(of_wanted, *picked(leaves, wanted))


def picked(leaves: Sequence[PyTree], wanted: Sequence[bool]) -> list[PyTree]:
    """The wanted leaves."""
    return [leaf for leaf, w in zip(leaves, wanted, strict=True) if w]


def in_place(values: Sequence[PyTree], wanted: Sequence[bool]) -> list[PyTree]:
    """Values of the wanted leaves in the places of all; None for the others."""
    remaining = iter(values)
    return [next(remaining) if w else None for w in wanted]


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

    structure: jax.tree_util.PyTreeDef
    models: dict[int, nnx.GraphDef]
    leaves: list[PyTree]

    def together(self, leaves: list[PyTree]) -> tuple[PyTree, list[nnx.Module]]:
        """The arguments with these arrays, and the models in them, named."""
        models, whole = [], list(leaves)
        for place, graphdef in self.models.items():
            whole[place] = named(merge(graphdef, *leaves[place]))
            models.append(whole[place])
        return self.structure.unflatten(whole), models


def take_apart(arguments: PyTree) -> Parts:
    """Finds the models among the arguments and their arrays."""
    leaves, structure = jax.tree.flatten(arguments, is_leaf=is_model)
    models = {}
    for place, leaf in enumerate(leaves):
        if is_model(leaf):
            models[place], *variables = split(leaf)
            leaves[place] = tuple(variables)
    return Parts(structure, models, leaves)


def of_arrays(
    f: Callable[..., PyTree], parts: Parts, opened: bool = False
) -> Callable[[list[PyTree]], tuple[PyTree, list[State]]]:
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
