"""One training as a pure function.

A run is trained by `jax.lax.scan` over its steps, with its data on the device. Everything that differs
between runs is an input: initial weights come from a key, the order of the examples and the learning
rates from tables, the other hyper-parameters as numbers. So one compiled program serves every run of the
same shape, and a sweep is a map of this function over runs.
"""

from collections.abc import Callable, Sequence
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


class Step(NamedTuple):
    """What one step finds before it changes the run."""

    loss: Float[Array, ""]
    """Of the mini-batch."""
    gradient: Params
    """Of that loss, by the engine."""
    update: Params
    """What the optimizer adds to the weights."""
    state: State
    """The model's own, after this batch."""
    optimizer_state: optax.OptState


class Moment(NamedTuple):
    """What a diagnostic sees: a run at an evaluation, and the step that it takes next."""

    training: Training
    run: Run
    seed: Integer[Array, ""]
    """The run's seed."""
    initial: Params
    """The run's initial weights, within rounding."""
    steps: Int[Array, ""]
    """Number of updates before this moment."""
    data: Examples
    """All training examples."""
    batch: Int[Array, " batch"]
    """Which of them the next step takes."""
    hyperparameters: dict[str, Array]
    """The optimizer's hyper-parameters in the next step, `learning_rate` among them."""
    next: Step
    """The next step, with the loss, gradient and update that training itself takes."""


class Measured(NamedTuple):
    """A result of a diagnostic: an array, and the coordinates of each of its dimensions by name, in order."""

    values: Array
    coordinates: dict[str, Sequence[Any]] = {}  # noqa: RUF012


Diagnostic = Callable[[Moment], dict[str, Measured]]
"""Measures a run: variables of the results by name, such as `{"distance": Measured(norm)}`."""


def start(training: Training, seed: int | Integer[Array, ""], hyperparameters: dict[str, ArrayLike]) -> Run:
    """A run before its first step: initial weights from the seed alone.

    The hyper-parameters are the optimizer's; the learning rate may be missing.
    """
    _, params, state = split(training.build(nnx.Rngs(jax.random.key(seed))))
    params = jax.tree.map(lambda leaf: leaf.astype(training.dtype), params)
    optimizer = training.optimizer(**({"learning_rate": jnp.float32(0)} | hyperparameters))
    return Run(params, state, optimizer.init(params), jnp.int32(-1))


def next_step(
    training: Training,
    run: Run,
    data: Examples,
    index: Int[Array | np.ndarray, " batch"],
    hyperparameters: dict[str, ArrayLike],
) -> Step:
    """What a run's next step is made of: the loss and gradient of these examples, and the update.

    The hyper-parameters are the optimizer's in this step, `learning_rate` among them.
    """
    batch = (data.x[index], data.y[index])
    value_and_grad = training.gradient(training.graphdef, training.loss_fn)
    (loss, state), gradient = value_and_grad(run.params, run.state, batch)
    optimizer = optax.with_extra_args_support(training.optimizer(**hyperparameters))
    update, optimizer_state = optimizer.update(
        gradient,
        run.optimizer_state,
        run.params,
        value=loss,  # some optimizers set their step by the loss, or search along a line
        grad=gradient,
        value_fn=lambda params: batch_loss(training, params, run.state, batch),
    )
    return Step(loss, gradient, update, state, optimizer_state)


def take_step(
    run: Run, step: Step, number: Int[Array, ""], last_step: int | Int[Array, ""]
) -> tuple[Run, Float[Array, ""]]:
    """The run after a step, and the loss before it; unchanged if it has diverged or is over."""
    loss = step.loss.astype(jnp.float32)
    healthy = jnp.isfinite(loss)
    running = (run.diverged_at < 0) & (number <= last_step)
    diverged_at = jnp.where(running & ~healthy, number, run.diverged_at)
    params = optax.apply_updates(run.params, step.update)
    after = Run(params, step.state, step.optimizer_state, run.diverged_at)

    def keep(new: Array, old: Array) -> Array:
        new = new if new.dtype == old.dtype else new.astype(old.dtype)  # keys have no astype
        return jnp.where(running & healthy, new, old)

    kept = jax.tree.map(keep, after, run)
    return kept._replace(diverged_at=diverged_at), jnp.where(diverged_at < 0, loss, jnp.nan)


def train(
    training: Training,
    run: Run,
    data: Examples,
    order: Int[Array | np.ndarray, "steps batch"],
    scheduled: dict[str, Float[Array | np.ndarray, " steps"]],
    hyperparameters: dict[str, ArrayLike],
    first_step: int | Int[Array, ""],
    last_step: int | Int[Array, ""],
    begun: Step | None = None,
) -> tuple[Run, Float[Array, " steps"]]:
    """Trains a run over some steps.

    Args:
        training: what is trained.
        run: its state before these steps.
        data: the training examples.
        order: which examples each step takes.
        scheduled: the hyper-parameters with a value for each step: `learning_rate`, and others if they are
            scheduled too.
        hyperparameters: the optimizer's other hyper-parameters.
        first_step: number, from 1, of the first of these steps.
        last_step: number of the last step of the whole training; steps after it change nothing, so that
            the last call can be as long as the others.
        begun: what the first of these steps is made of, if that is known already.

    Returns:
        The run after these steps, and the mini-batch loss before each update.
    """

    def step(run: Run, inputs: tuple[Array, Array, dict[str, Array]]) -> tuple[Run, Array]:
        number, index, values = inputs
        return take_step(
            run, next_step(training, run, data, index, values | hyperparameters), number, last_step
        )

    numbers = first_step + jnp.arange(order.shape[0], dtype=jnp.int32)
    steps = (numbers, jnp.asarray(order), {name: jnp.asarray(found) for name, found in scheduled.items()})
    if begun is None:
        return jax.lax.scan(step, run, steps)
    run, loss = take_step(run, begun, numbers[0], last_step)
    run, losses = jax.lax.scan(step, run, jax.tree.map(lambda values: values[1:], steps))
    return run, jnp.concatenate([loss[None], losses])


def batch_loss(training: Training, params: Params, state: State, batch: tuple[Any, Any]) -> Float[Array, ""]:
    """The mean loss of a batch `(x, y)` in training; the model's new state is dropped."""
    x, y = batch
    return jnp.mean(training.loss_fn(merge(training.graphdef, params, state)(*as_inputs(x)), y))


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
