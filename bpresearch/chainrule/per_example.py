"""The gradient of every example by itself.

    l_i(w), the loss of example i in the batch;   g_i = dl_i/dw for each i,   mean of g_i = gradient of the
    mean

The batch's program becomes a program of one of its examples (see `one_example.py`), that is walked forward
and backward by the rules, and `jax.vmap` does so for all examples at once: the products that would sum over
the batch, such as x^T y_bar of a linear layer, become one product for each example, here the outer product
of x and y_bar.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from bpresearch.chainrule import (
    engine,
    one_example_passes,  # noqa: F401  (importing it tells the walk how to go into programs inside an equation)
)
from bpresearch.chainrule.calls import WholeFunction, layers_whole, named
from bpresearch.chainrule.example_axis import Axis, ExamplesMeet
from bpresearch.chainrule.one_example import OneExample, Own, Shared
from bpresearch.chainrule.primitives import Value, is_floating
from bpresearch.chainrule.program import is_model, of_arrays, take_apart, trace
from bpresearch.chainrule.registry import has_rule, version
from bpresearch.functional import Loss, Params, Program, State, as_inputs, merge, split

PARAMETER, SHARED, BATCH = "parameter", "shared", "batch"


def per_example_gradients(
    f: nnx.Module | Callable[..., PyTree], loss_fn: Loss | None = None, x: PyTree = None, y: PyTree = None
) -> Any:
    """Loss and gradient of each example, by hand-written rules, in one of two forms.

    `per_example_gradients(model, loss_fn, x, y)` is of a model on one batch, compiled; the arguments are as
    in `value_and_grad`, and the batch is the first axis of all inputs and targets.

    `per_example_gradients(loss)` gives a function of a model, or of a pytree of parameters, and of batches:
    all arrays in its other arguments have the examples first, and `loss(model, batch)` gives a value for
    each. The model is not changed.

    An example's loss is its value in the batch, or the mean of its values. Random draws are those of the
    batch: each example has its own row of a dropout mask.

    Returns:
        `(losses, grads)`: (batch,) and gradients like those of `value_and_grad` whose leaves have a first
        axis for the examples. Their means over it are the loss and the gradient of the batch.

    Raises:
        NoPrimitiveRuleError: an operation has no rule.
        ValueError: something mixes the examples, as `nnx.BatchNorm` does in training, or nothing tells that
            it does not; the message names the layer and line. Or the loss gives no value for each example.

    >>> layer = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    >>> x, y = jnp.array([[1.0, 0.0], [0.0, 3.0]]), jnp.zeros((2, 1))
    >>> losses, grads = bp.chainrule.per_example_gradients(layer, optax.l2_loss, x, y)
    >>> print(losses.shape, jax.tree.map(jnp.shape, grads))
    (2,) {'bias': (2, 1), 'kernel': (2, 2, 1)}
    >>> loss = lambda w, x: (x @ w) ** 2
    >>> print(bp.chainrule.per_example_gradients(loss)(jnp.array([1.0, 1.0]), x)[1])
    [[ 2.  0.]
     [ 0. 18.]]
    """
    if loss_fn is None:
        return functools.wraps(f)(functools.partial(_of_function, f))
    graphdef, params, state = split(f)
    program = Program(gradients, graphdef, (loss_fn, version(), engine.rules_in_force()))
    return _compiled(program, params, state, (x, y))


def gradients(graphdef: nnx.GraphDef, loss_fn: Loss) -> Callable[..., tuple[Value, Params]]:
    """The pure function `(params, state, (x, y)) -> losses, grads`."""
    loss = WholeFunction(loss_fn, "loss") if has_rule(loss_fn) else loss_fn

    def values(params, state, batch):
        model = named(merge(graphdef, params, state))
        with layers_whole([model]):
            x, y = batch
            return loss(*as_inputs(model(*as_inputs(x))), *as_inputs(y))

    def of_batch(params: Params, state: State, batch: tuple[PyTree, PyTree]) -> tuple[Value, Params]:
        parts = (params, PARAMETER), (state, SHARED), (batch, BATCH)
        roles = [role for part, role in parts for _ in jax.tree.leaves(part)]
        leaves, structure = jax.tree.flatten((params, state, batch))
        name = getattr(loss_fn, "__name__", str(loss_fn))
        losses, grads = _of_leaves(lambda leaves: values(*structure.unflatten(leaves)), leaves, roles, name)
        return losses, structure.unflatten(grads)[0]

    return of_batch


@functools.partial(jax.jit, static_argnums=0)
def _compiled(program: Program, params: Params, state: State, batch: PyTree):
    return program.gradient(program.graphdef, program.options[0])(params, state, batch)


def _of_function(
    f: Callable[..., PyTree], model: PyTree, *args: PyTree, **kwargs: PyTree
) -> tuple[Value, PyTree]:
    parts, of_model = take_apart(((model, *args), kwargs)), take_apart(model)
    leaves, structure = jax.tree.flatten(parts.leaves)
    roles = []
    for place, leaf in enumerate(of_model.leaves):
        of_leaf = leaf if place in of_model.models else (leaf, ())
        for part, role in zip(of_leaf, (PARAMETER, SHARED), strict=True):
            roles += [role] * len(jax.tree.leaves(part))
    roles += [BATCH] * (len(leaves) - len(roles))
    function, name = of_arrays(f, parts), getattr(f, "__name__", str(f))
    losses, gradient_leaves = _of_leaves(
        lambda leaves: function(structure.unflatten(leaves))[0], leaves, roles, name
    )
    grads = structure.unflatten(gradient_leaves)[: len(of_model.leaves)]
    originals = jax.tree.leaves(model, is_leaf=is_model)
    for place in of_model.models:
        of_parameters = nnx.state(originals[place], nnx.Param)
        nnx.replace_by_pure_dict(of_parameters, grads[place][0])
        grads[place] = of_parameters
    return losses, of_model.structure.unflatten(grads)


def _of_leaves(
    f: Callable[[list[Value]], Value], leaves: Sequence[Value], roles: Sequence[str], name: str
) -> tuple[Value, list[Value]]:
    """Losses of `f(leaves)`, and in the places of its parameters their gradients, for each example."""
    size = _number_of_examples([leaf for leaf, role in zip(leaves, roles, strict=True) if role == BATCH])
    # Where a number counts the examples can be seen from the equation that makes it.
    program = trace(lambda *leaves: f(list(leaves)), *leaves, everything=True)
    types = [v.aval for v in program.jaxpr.outvars]
    if len(types) != 1 or types[0].shape[:1] != (size,) or not jnp.issubdtype(types[0].dtype, jnp.floating):
        raise ValueError(f"per_example_gradients: {name} gives no value for each example")

    def loss(number, *leaves):
        walk = OneExample(size, number)
        held = [
            Own(leaf, Axis(0)) if role == BATCH else Shared(leaf)
            for leaf, role in zip(leaves, roles, strict=True)
        ]
        (values,) = walk.run(program.jaxpr, program.consts, held)
        try:
            return jnp.mean(walk.part(values, Axis(0)))
        except ExamplesMeet as error:  # they are along another axis
            raise ValueError(f"per_example_gradients: {name} gives no value for each example") from error

    def gradient(number, rows):
        of_rows = {place: jnp.expand_dims(row, 0) for place, row in rows.items()}
        given = [of_rows.get(place, leaf) for place, leaf in enumerate(leaves)]
        loss_program = trace(loss, number, *given)
        asked = [
            False,
            *(role == PARAMETER and is_floating(x) for x, role in zip(leaves, roles, strict=True)),
        ]
        (value,), tape = engine.forward(loss_program.jaxpr, loss_program.consts, [number, *given], asked)
        _, *bars = engine.backward(loss_program.jaxpr, tape, [jnp.ones_like(value)], asked)
        return value, [
            (jnp.zeros_like(x) if bar is None else bar) if role == PARAMETER else None
            for x, bar, role in zip(leaves, bars, roles, strict=True)
        ]

    rows = {place: leaves[place] for place, role in enumerate(roles) if role == BATCH}
    losses, grads = jax.vmap(gradient)(jnp.arange(size), rows)
    return losses, grads


def _number_of_examples(rows: Sequence[Value]) -> int:
    """The length of the first axis of all arrays of a batch."""
    sizes = {jnp.shape(row)[:1] for row in rows}
    if len(sizes) != 1 or () in sizes:
        shapes = ", ".join(str(np.shape(row)) for row in rows)
        raise ValueError(f"per_example_gradients: the first axis of each array is the batch, not of {shapes}")
    return sizes.pop()[0]
