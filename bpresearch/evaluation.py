"""What a run has reached: its losses and metrics over a part of the data."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from bpresearch.functional import as_pair, losses, merge
from bpresearch.optim.evaluation import evaluation_params
from bpresearch.train import Run, Training


def evaluate(training: Training, run: Run, data: PyTree, *, block: int = 1000) -> dict[str, Float[Array, ""]]:
    """The mean loss over a part of the data, and the metrics; NaN once the run has diverged.

    The examples go through the model in blocks of at most `block`, so that memory does not grow with
    their number. What has one value for each example is averaged over all of them. If the loss, or a metric,
    is a scalar, the blocks are of equal size: the largest up to `block` that divides the number of examples,
    or all of them where that is below a tenth of `block`; then the mean over the blocks is taken.

    Args:
        training: what is trained.
        run: its state. The weights are those that its optimizer evaluates at.
        data: a tree of arrays, examples first.
        block: examples that go through the model together.

    Raises:
        ValueError: the loss or a metric gives neither a scalar nor one value for each example.
    """
    params = evaluation_params(run.optimizer_state, run.params)
    count = jax.tree.leaves(data)[0].shape[0]

    def measured(index: Array) -> dict[str, Array]:
        # Put together here, where it is used: a recurrent layer moves its random stream on.
        model = merge(training.evaluation_graphdef, params, run.state)
        batch = jax.tree.map(lambda array: array[index], data)
        values, metrics = losses(training.loss, model, *as_pair(training.loss, batch), training.metrics)
        return {"loss": jnp.asarray(values), **{name: jnp.asarray(value) for name, value in metrics.items()}}

    blocks = -(-count // block)
    size = -(-count // blocks)
    shapes = jax.eval_shape(measured, jnp.zeros(size, int))
    for name, shape in shapes.items():
        if shape.ndim and shape.shape[0] != size:
            raise ValueError(
                f"{name if name != 'loss' else 'the loss'} of {size} examples has shape {shape.shape}: must "
                "be a scalar or have one value for each example"
            )
    if not all(shape.ndim for shape in shapes.values()):
        size = equal_blocks(count, block)
        blocks = count // size
    index = jnp.minimum(jnp.arange(blocks * size), count - 1).reshape(blocks, size)
    weight = (jnp.arange(blocks * size) < count).astype(jnp.float32).reshape(blocks, size)

    def sums(index: Array, weight: Array) -> dict[str, Array]:
        def total(value: Array) -> Array:
            if not value.ndim:
                return size * value.astype(jnp.float32)
            value = value.astype(jnp.float32)
            return jnp.sum(weight * jnp.mean(value.reshape(size, -1), axis=1))

        return {name: total(value) for name, value in measured(index).items()}

    totals = jax.lax.map(lambda part: sums(*part), (index, weight))
    healthy = run.diverged_at < 0
    return {name: jnp.where(healthy, jnp.sum(total) / count, jnp.nan) for name, total in totals.items()}


def equal_blocks(count: int, block: int) -> int:
    """The largest size up to `block` of blocks that hold `count` examples exactly; else all in one.

    >>> equal_blocks(360, 1000), equal_blocks(1437, 1000), equal_blocks(1009, 1000)
    (360, 479, 1009)
    """
    sizes = [size for size in range(min(count, block), 0, -1) if count % size == 0]
    return sizes[0] if sizes[0] * 10 >= min(count, block) else count
