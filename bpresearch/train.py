"""One training as a pure function.

A run is trained by `jax.lax.scan` over its steps, with its data on the device. Everything that differs
between runs is an input: initial weights come from a key, the order of the examples and the learning
rates from tables, the other hyper-parameters as numbers. So one compiled program serves every run of the
same shape, and a sweep is a map of this function over runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jaxtyping import ArrayLike, Float, Int, Integer, Shaped

from bpresearch.functional import Params, State, as_inputs, merge, split


class Run(NamedTuple):
    """The state of one training between two steps."""

    params: Params
    state: State
    optimizer_state: optax.OptState
    diverged_at: Int[Array, ""]
    """The first step, from 1, whose loss, in float32, was NaN or Inf, or -1; then on nothing changes."""


class Examples(NamedTuple):
    """A part of a data set on the device."""

    x: Shaped[Array | np.ndarray, "examples *features"]
    y: Shaped[Array | np.ndarray, "examples *targets"]


@dataclass(frozen=True)
class Training:
    """What is trained, and how: all that a program is compiled for.

    Attributes:
        build: `rngs -> model`.
        loss_fn: `(outputs, targets) -> values`; the loss is their mean.
        gradient: an engine's gradient function: `autodiff.gradient` or `chainrule.gradient`.
        optimizer: `(learning_rate, **hyperparameters) -> optax.GradientTransformation`.
        dtype: format of the parameters.
        labels: whether the targets of the accuracy are classes: integers, or one-hot rows.
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    loss_fn: Callable[..., Array]
    gradient: Callable[..., Any]
    optimizer: Callable[..., optax.GradientTransformation]
    dtype: Any = jnp.float32
    labels: bool = True

    @cached_property
    def graphdef(self) -> nnx.GraphDef:
        """The model's static part while it is trained."""
        return split(nnx.eval_shape(lambda: self.build(nnx.Rngs(0))))[0]

    @cached_property
    def evaluation_graphdef(self) -> nnx.GraphDef:
        """The model's static part while it is evaluated (no dropout, running statistics)."""
        model = nnx.eval_shape(lambda: self.build(nnx.Rngs(0)))
        model.eval()
        return split(model)[0]


def start(training: Training, seed: int | Integer[Array, ""], hyperparameters: dict[str, ArrayLike]) -> Run:
    """A run before its first step: initial weights from the seed alone."""
    _, params, state = split(training.build(nnx.Rngs(jax.random.key(seed))))
    params = jax.tree.map(lambda leaf: leaf.astype(training.dtype), params)
    optimizer = training.optimizer(learning_rate=jnp.float32(0), **hyperparameters)
    return Run(params, state, optimizer.init(params), jnp.int32(-1))


def train(
    training: Training,
    run: Run,
    data: Examples,
    order: Int[Array | np.ndarray, "steps batch"],
    learning_rates: Float[Array | np.ndarray, " steps"],
    hyperparameters: dict[str, ArrayLike],
    first_step: int | Int[Array, ""],
    last_step: int | Int[Array, ""],
) -> tuple[Run, Float[Array, " steps"]]:
    """Trains a run over some steps.

    Args:
        training: what is trained.
        run: its state before these steps.
        data: the training examples.
        order: which examples each step takes.
        learning_rates: each step's learning rate.
        hyperparameters: the optimizer's other hyper-parameters.
        first_step: number, from 1, of the first of these steps.
        last_step: number of the last step of the whole training; steps after it change nothing, so that
            the last call can be as long as the others.

    Returns:
        The run after these steps, and the mini-batch loss before each update.
    """
    value_and_grad = training.gradient(training.graphdef, training.loss_fn)

    def step(run: Run, inputs: tuple[Array, Array, Array]) -> tuple[Run, Array]:
        number, index, learning_rate = inputs
        batch = (data.x[index], data.y[index])
        (loss, state), grads = value_and_grad(run.params, run.state, batch)
        optimizer = training.optimizer(learning_rate=learning_rate, **hyperparameters)
        updates, optimizer_state = optimizer.update(grads, run.optimizer_state, run.params)
        params = optax.apply_updates(run.params, updates)

        loss = loss.astype(jnp.float32)
        healthy = jnp.isfinite(loss)
        running = (run.diverged_at < 0) & (number <= last_step)
        diverged_at = jnp.where(running & ~healthy, number, run.diverged_at)
        after = Run(params, state, optimizer_state, run.diverged_at)

        def keep(new: Array, old: Array) -> Array:
            new = new if new.dtype == old.dtype else new.astype(old.dtype)  # keys have no astype
            return jnp.where(running & healthy, new, old)

        kept = jax.tree.map(keep, after, run)
        return kept._replace(diverged_at=diverged_at), jnp.where(diverged_at < 0, loss, jnp.nan)

    numbers = first_step + jnp.arange(order.shape[0], dtype=jnp.int32)
    return jax.lax.scan(step, run, (numbers, jnp.asarray(order), jnp.asarray(learning_rates)))


def evaluate(
    training: Training, run: Run, data: Examples, *, block: int = 1000
) -> dict[str, Float[Array, ""]]:
    """Mean loss over a data set and, for classes, the accuracy in [0, 1]; NaN once the run has diverged.

    The examples go through the model in blocks of at most `block`, so that memory does not grow with
    their number.
    """
    count = data.x.shape[0]
    blocks = -(-count // block)
    size = -(-count // blocks)
    index = jnp.minimum(jnp.arange(blocks * size), count - 1).reshape(blocks, size)
    weight = (jnp.arange(blocks * size) < count).astype(jnp.float32).reshape(blocks, size)

    def sums(index: Array, weight: Array) -> dict[str, Array]:
        # Put together here, where it is used: a recurrent layer moves its random stream on.
        model = merge(training.evaluation_graphdef, run.params, run.state)
        y = data.y[index]
        outputs = model(*as_inputs(data.x[index]))
        values = training.loss_fn(outputs, y).astype(jnp.float32)
        result = {"loss": jnp.sum(weight * jnp.mean(values.reshape(size, -1), axis=1))}
        if training.labels:
            labels = y if jnp.issubdtype(y.dtype, jnp.integer) else jnp.argmax(y, axis=-1)
            right = (jnp.argmax(outputs, axis=-1) == labels).reshape(size, -1)
            result["accuracy"] = jnp.sum(weight * jnp.mean(right, axis=1))
        return result

    totals = jax.lax.map(lambda part: sums(*part), (index, weight))
    healthy = run.diverged_at < 0
    return {name: jnp.where(healthy, jnp.sum(total) / count, jnp.nan) for name, total in totals.items()}


def shuffled_batches(
    seed: int, examples: int, batch_size: int, first_step: int, steps: int
) -> Int[np.ndarray, "steps batch"]:
    """Which examples each step takes: every epoch is a new permutation, cut into batches.

    Sampling is without replacement within an epoch; the examples left over at its end, fewer than a
    batch, are dropped. The order depends on the seed and the number of the epoch alone, so a run meets the
    same batches whatever its optimizer and wherever it is resumed.

    Args:
        seed: the run's seed.
        examples: number of training examples.
        batch_size: examples in a batch, at most `examples`.
        first_step: number, from 1, of the first step.
        steps: number of steps.
    """
    per_epoch = examples // batch_size
    first = first_step - 1
    epochs = range(first // per_epoch, (first + steps - 1) // per_epoch + 1)
    order = np.concatenate(
        [
            np.random.default_rng([seed, epoch]).permutation(examples)[: per_epoch * batch_size]
            for epoch in epochs
        ]
    )
    skip = first - epochs[0] * per_epoch
    return order.reshape(-1, batch_size)[skip : skip + steps].astype(np.int32)
