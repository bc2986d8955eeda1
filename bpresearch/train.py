"""One training as a pure function: `make_run`.

A run is trained by `jax.lax.scan` over its steps, with its data on the device. Everything that differs
between runs is an input: initial weights come from a key, the order of the examples and the learning
rates from tables, the other hyper-parameters as numbers. So one compiled program serves every run of the
same shape, and a sweep is a map of this function over runs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import ArrayLike, Bool, Float, Int, Integer, PyTree

from bpresearch.functional import (
    Loss,
    Params,
    State,
    TrainingLoss,
    as_pair,
    merge,
    objective,
    split,
    with_rngs,
)
from bpresearch.same_bits import Branch, whole


class Run(NamedTuple):
    """The state of one training between two steps."""

    params: Params
    state: State
    optimizer_state: optax.OptState
    diverged_at: Int[Array, ""]
    """The first step, from 1, whose loss, in float32, was NaN or Inf, or -1; then on nothing changes."""


@dataclass(frozen=True)
class Training:
    """What is trained, and how: all that a program is compiled for.

    Attributes:
        build: `rngs -> model`.
        loss: `(outputs, targets) -> values` of batches `(x, y)`, or a `TrainingLoss` of batches that are any
            trees of arrays; the mean of its values is minimized.
        gradient: an engine's gradient function: `autodiff.gradient` or `chainrule.gradient`.
        optimizer: `(learning_rate, **hyperparameters) -> optax.GradientTransformation`, whose `init` and
            `update` see the weights with their paths.
        dtype: format of the parameters.
        metrics: what an evaluation measures beside the loss, by name: functions as
            `bpresearch.functional.losses` takes them.
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    loss: Loss | TrainingLoss
    gradient: Callable[..., PyTree]
    optimizer: Callable[..., optax.GradientTransformation]
    dtype: DTypeLike = jnp.float32
    metrics: Mapping[str, Callable[..., Array]] = field(default_factory=dict)

    def model(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model with its initial weights, and with the random stream that the loss draws from."""
        return with_rngs(self.build(rngs), self.loss, rngs)

    @cached_property
    def graphdef(self) -> nnx.GraphDef:
        """The model's static part while it is trained."""
        return split(nnx.eval_shape(lambda: self.model(nnx.Rngs(0))))[0]

    @cached_property
    def evaluation_graphdef(self) -> nnx.GraphDef:
        """The model's static part while it is evaluated (no dropout, running statistics)."""
        model = nnx.eval_shape(lambda: self.model(nnx.Rngs(0)))
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
    data: PyTree
    """All training examples: a tree of arrays, examples first."""
    batch: Int[Array, " batch"]
    """Which of them the next step takes."""
    hyperparameters: dict[str, Array]
    """The optimizer's hyper-parameters in the next step, `learning_rate` among them."""
    next: Step
    """The next step, with the loss, gradient and update that training itself takes."""


class Measured(NamedTuple):
    """A result of a diagnostic: an array, and the coordinates of each of its dimensions by name, in order."""

    values: Array
    coordinates: dict[str, Sequence[object]] = {}  # noqa: RUF012


Diagnostic = Callable[[Moment], dict[str, Measured]]
"""Measures a run: variables of the results by name, such as `{"distance": Measured(norm)}`."""


class Chunk(NamedTuple):
    """What a run takes for some of its steps, in segments; the first axis of an array is the segment."""

    seed: Integer[Array, ""]
    first: Int[Array, " segments"]
    """Number, from 1, of a segment's first step."""
    last: Int[Array, " segments"]
    """Of its last; no step is taken after it."""
    evaluation: Bool[Array, " segments"]
    """Whether the run is measured before the segment."""
    order: Int[Array, "segments steps batch"]
    """Which examples each step takes."""
    scheduled: dict[str, Float[Array, "segments steps"]]
    """The hyper-parameters that have a value for each step: `learning_rate`, and others."""
    hyperparameters: dict[str, Array]
    """The optimizer's other hyper-parameters."""


class Programs(NamedTuple):
    """One training: how it starts, and how it goes on over a chunk of its steps."""

    start: Callable[..., Run]
    """`(seed, hyperparameters) -> run`"""
    advance: Callable[..., tuple[Run, Array, dict[str, Array]]]
    """`(run, chunk, data) -> run, losses, what was measured`"""


def make_run(
    training: Training,
    measure: Callable[[Moment, dict[str, PyTree]], dict[str, Array]],
    *,
    shared: bool,
    alone: bool,
) -> Programs:
    """One training, from its seed to its last step: evaluations, and segments of steps between them.

    Args:
        training: what is trained.
        measure: `(moment, data) -> values by name`, called at each evaluation; data holds all parts by name.
        shared: whether training takes over the step that the diagnostics looked at. It does so without
            diagnostics, too: then a run has the same bits with and without them.
        alone: whether the program takes one run at a time. Then a run that has diverged is skipped.
    """
    branch = Branch(alone)

    def advance(run: Run, chunk: Chunk, data: dict[str, PyTree]) -> tuple[Run, Array, dict[str, Array]]:
        examples, fixed = data["train"], chunk.hyperparameters
        at_first = {name: values[0, 0] for name, values in chunk.scheduled.items()} | fixed
        initial = start(training, chunk.seed, at_first).params  # computed only if a diagnostic uses it

        def segment(
            run: Run, inputs: tuple[Array, Array, Array, Array, dict[str, PyTree]]
        ) -> tuple[Run, tuple[Array, dict[str, Array]]]:
            first, last, evaluation, order, scheduled = inputs
            now = {name: values[0] for name, values in scheduled.items()} | fixed
            healthy, trains = run.diverged_at < 0, first <= last

            def first_step() -> Step:
                return whole(next_step(training, run, examples, order[0], now))

            def measured() -> dict[str, Array]:
                moment = Moment(training, run, chunk.seed, initial, first - 1, examples, order[0], now, step)
                return measure(moment, data)

            def trained() -> tuple[Run, Array]:
                taken_over = step if shared else None
                return train(training, run, examples, order, scheduled, fixed, first, last, taken_over)

            step = branch((trains | evaluation) if shared else evaluation, healthy, first_step)
            metrics = branch(evaluation, healthy, measured)
            no_losses = jnp.full(order.shape[0], jnp.nan, jnp.float32)
            run, losses = branch(trains, healthy, trained, otherwise=lambda: (run, no_losses))
            return run, (losses, metrics)

        segments = (chunk.first, chunk.last, chunk.evaluation, chunk.order, chunk.scheduled)
        run, (losses, metrics) = jax.lax.scan(segment, run, segments)
        return run, losses, metrics

    return Programs(partial(start, training), advance)


def start(
    training: Training, seed: int | Integer[Array, ""], hyperparameters: Mapping[str, ArrayLike]
) -> Run:
    """A run before its first step: initial weights from the seed alone.

    The hyper-parameters are the optimizer's; the learning rate may be missing.
    """
    _, params, state = split(training.model(nnx.Rngs(jax.random.key(seed))))
    params = jax.tree.map(lambda leaf: leaf.astype(training.dtype), params)
    optimizer = training.optimizer(**{"learning_rate": jnp.float32(0), **hyperparameters})
    return Run(params, state, optimizer.init(params), jnp.int32(-1))


def next_step(
    training: Training,
    run: Run,
    data: PyTree,
    index: Int[Array | np.ndarray, " batch"],
    hyperparameters: Mapping[str, ArrayLike],
) -> Step:
    """What a run's next step is made of: the loss and gradient of these examples, and the update.

    The hyper-parameters are the optimizer's in this step, `learning_rate` among them.
    """
    batch = batch_of(training, data, index)
    value_and_grad = training.gradient(training.graphdef, training.loss)
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
    return Step(loss, gradient, update, _like(state, run.state), optimizer_state)


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

    next_run = jax.tree.map(keep, after, run)
    return next_run._replace(diverged_at=diverged_at), jnp.where(diverged_at < 0, loss, jnp.nan)


def train(
    training: Training,
    run: Run,
    data: PyTree,
    order: Int[Array | np.ndarray, "steps batch"],
    scheduled: dict[str, Float[Array | np.ndarray, " steps"]],
    hyperparameters: Mapping[str, ArrayLike],
    first_step: int | Int[Array, ""],
    last_step: int | Int[Array, ""],
    begun: Step | None = None,
) -> tuple[Run, Float[Array, " steps"]]:
    """Trains a run over some steps.

    Args:
        training: what is trained.
        run: its state before these steps.
        data: the training examples: a tree of arrays, examples first.
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
            run, next_step(training, run, data, index, {**values, **hyperparameters}), number, last_step
        )

    numbers = first_step + jnp.arange(order.shape[0], dtype=jnp.int32)
    steps = (numbers, jnp.asarray(order), {name: jnp.asarray(course) for name, course in scheduled.items()})
    if begun is None:
        return jax.lax.scan(step, run, steps)
    run, loss = take_step(run, begun, numbers[0], last_step)
    run, losses = jax.lax.scan(step, run, jax.tree.map(lambda values: values[1:], steps))
    return run, jnp.concatenate([loss[None], losses])


def batch_of(
    training: Training, data: PyTree, index: Int[Array | np.ndarray, " batch"]
) -> tuple[PyTree, PyTree]:
    """Some of the examples, as the engines take them."""
    return as_pair(training.loss, jax.tree.map(lambda array: array[index], data))


def batch_loss(
    training: Training, params: Params, state: State, batch: tuple[PyTree, PyTree]
) -> Float[Array, ""]:
    """The mean loss of a batch `(x, y)` in training; the model's new state is dropped."""
    return objective(training.loss)(merge(training.graphdef, params, state), params, *batch)


def _like(new: State, old: State) -> State:
    """The new values of the variables that there were before: not of those that a call has sown."""
    return {
        name: _like(new[name], value) if isinstance(value, dict) else new[name] for name, value in old.items()
    }
