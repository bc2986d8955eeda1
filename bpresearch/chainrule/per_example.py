"""The gradient of every example by itself, from the residuals of one forward pass over the batch.

The forward pass is that of the batch. What it stored is cut into examples, and the backward pass runs on all
of them at once (`jax.vmap` of the rules): the products that would sum over the batch, such as x^T y_bar of a
linear layer, become one product for each example, here the outer product of x and y_bar.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bpresearch.chainrule import engine
from bpresearch.chainrule.gather import gather
from bpresearch.chainrule.registry import version
from bpresearch.functional import Params, Program, State, as_inputs, format_path, merge, split


def per_example_gradients(
    model: nnx.Module, loss_fn: Callable[..., jax.Array], x: Any, y: Any
) -> tuple[jax.Array, Params]:
    """Loss and gradient of each example, by hand-written rules.

    Args:
        model, loss_fn, x, y: as in `value_and_grad`; the batch is the first axis of all inputs and targets.

    Returns:
        `(losses, grads)`: (batch,) and a nested dict like that of `value_and_grad` whose leaves have a first
        axis for the examples. Their means over it are the loss and the gradient of the batch.

    Raises:
        NoRuleError: a layer of the model, or the loss, has no rule.
        ValueError: a layer mixes the examples, as `nnx.BatchNorm` does in training, or the loss gives no
            value for each example.

    >>> layer = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    >>> x, y = jnp.array([[1.0, 0.0], [0.0, 3.0]]), jnp.zeros((2, 1))
    >>> losses, grads = bp.chainrule.per_example_gradients(layer, optax.l2_loss, x, y)
    >>> print(losses.shape, jax.tree.map(jnp.shape, grads))
    (2,) {'bias': (2, 1), 'kernel': (2, 2, 1)}
    """
    graphdef, params, state = split(model)
    program = Program(_gradients, graphdef, (loss_fn, version()))
    return _compiled(program, params, state, (x, y))


@partial(jax.jit, static_argnums=0)
def _compiled(program: Program, params: Params, state: State, batch: Any):
    return program.gradient(program.graphdef, program.options[0])(params, state, batch)


def _gradients(graphdef: nnx.GraphDef, loss_fn: Callable[..., jax.Array]):
    """The pure function `(params, state, (x, y)) -> losses, grads`."""

    def gradients(params: Params, state: State, batch: tuple[Any, Any]):
        def pass_forward(batch):
            x, y = batch
            model = merge(graphdef, params, state)
            _refuse_what_mixes(model)
            outputs, residuals = engine.forward(model, *as_inputs(x))
            values, of_loss = engine.forward(loss_fn, *as_inputs(outputs), *as_inputs(y), name=("loss",))
            return residuals, of_loss, values, outputs

        kept = pass_forward(batch)
        size = jax.tree.leaves(batch[0])[0].shape[0]
        doubled = jax.eval_shape(pass_forward, jax.tree.map(lambda a: jnp.concatenate([a, a]), batch))
        axes = jax.tree.map(partial(_batch_axis, size), kept, doubled)
        if axes[2] != 0:
            name = getattr(loss_fn, "__name__", loss_fn)
            raise ValueError(f"per_example_gradients: {name} gives no value for each example")

        def of_one(kept):
            residuals, of_loss, values, outputs = jax.tree.map(
                lambda leaf, axis: leaf if axis is None else jnp.expand_dims(leaf, axis), kept, axes
            )
            model = merge(graphdef, params, state)
            values_bar = jnp.full(values.shape, 1 / values.size, values.dtype)
            _, bars = engine.backward(loss_fn, of_loss, values_bar, name=("loss",))
            outputs_bar = bars[: len(outputs)] if isinstance(outputs, tuple) else as_inputs(bars)[0]
            grads, _ = engine.backward(model, residuals, outputs_bar)
            return jnp.mean(values), gather(model, grads)

        return jax.vmap(of_one, in_axes=(axes,))(kept)

    return gradients


def _refuse_what_mixes(model: nnx.Module) -> None:
    for path, layer in nnx.iter_graph(model):
        if isinstance(layer, nnx.BatchNorm) and not layer.use_running_average:
            where = format_path(path) or "the model itself"
            raise ValueError(
                f"per_example_gradients: nnx.BatchNorm at {where} mixes the examples of the "
                "batch, which have no gradients of their own; set use_running_average=True"
            )


def _batch_axis(size: int, leaf: Any, doubled: Any) -> int | None:
    """The axis of a residual that holds the batch: the one that doubles with it."""
    grown = [axis for axis, (n, m) in enumerate(zip(leaf.shape, doubled.shape, strict=True)) if n != m]
    if not grown:
        return None
    if len(grown) > 1 or leaf.shape[grown[0]] != size:
        raise ValueError(
            f"per_example_gradients: a rule keeps a residual of shape {leaf.shape} that mixes the {size} "
            "examples with something else"
        )
    return grown[0]
