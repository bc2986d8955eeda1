"""An NNX model as a pure function of plain dicts.

A Flax NNX model is an object that owns its arrays. JAX transformations want functions of arrays, so a
model is split once into a static part (`graphdef`), its parameters and everything else it owns (batch
statistics, the counters of dropout's random streams). Both engines, the training loop and the verifier
work on these dicts; the object is put together again inside the compiled program.
"""

import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

Params = dict[Any, Any]
"""Nested dict of parameter arrays, with the paths of `nnx.to_pure_dict(nnx.state(model, nnx.Param))`."""

State = dict[Any, Any]
"""Nested dict of every other variable of the model, by its path."""

Loss = Callable[..., jax.Array]
"""`(outputs, targets) -> values`, one for each example or element; its mean is what is differentiated."""


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params, State]:
    """Takes a model apart into `(graphdef, params, state)`; `graphdef` is hashable and holds no array."""
    graphdef, params, state = nnx.split(model, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(state)


def merge(graphdef: nnx.GraphDef, params: Params, state: State) -> nnx.Module:
    """Puts a model together again: the inverse of `split`."""
    return nnx.merge(graphdef, nnx.State(params), nnx.State(state))


def state_of(model: nnx.Module) -> State:
    """Every variable of the model that is not a parameter, as `split` gives it."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))


def as_inputs(x: PyTree) -> tuple[PyTree, ...]:
    """The positional inputs of a model: a tuple is several inputs, anything else is one."""
    return x if isinstance(x, tuple) else (x,)


@dataclass(frozen=True)
class TrainingLoss:
    """A loss `(model, batch) -> values`, as `nnx.value_and_grad` takes it, in the place of the short form's.

    It is differentiated with respect to the model alone: x is (), and y is the batch. Where it returns a
    pair, the second part is a dict of metrics. If it takes `rngs` too, it is given the model's `loss_rngs`,
    an `nnx.Rngs` that `with_rngs` puts there.
    """

    loss: Callable[..., PyTree]

    @property
    def __name__(self) -> str:  # type: ignore[override]
        return getattr(self.loss, "__name__", "loss")

    @property
    def random(self) -> bool:
        """Whether the loss takes `rngs`."""
        return "rngs" in inspect.signature(self.loss).parameters

    def with_metrics(self, model: nnx.Module, batch: PyTree) -> tuple[jax.Array, dict[str, jax.Array]]:
        """One value, or one for each example, and the metrics that the loss gives beside it."""
        drawn = {"rngs": model.loss_rngs} if self.random else {}
        returned = self.loss(model, batch, **drawn)
        values, metrics = returned if isinstance(returned, tuple) else (returned, {})
        return values, metrics if isinstance(metrics, dict) else {}

    def __call__(self, model: nnx.Module, batch: PyTree) -> jax.Array:
        """One value, or one for each example."""
        return self.with_metrics(model, batch)[0]


def takes_the_model(loss: Callable[..., PyTree]) -> bool:
    """Whether a loss is `(model, batch) -> values` and not `(outputs, targets) -> values`.

    It is if its first parameter is called `model` or its second `batch`.

    >>> [takes_the_model(f) for f in (lambda model, batch: 0, optax.l2_loss, lambda net, batch: 0)]
    [True, False, True]
    """
    names = list(inspect.signature(loss).parameters)
    return names[:1] == ["model"] or names[1:2] == ["batch"]


def with_rngs(model: nnx.Module, loss_fn: Loss | TrainingLoss, rngs: nnx.Rngs) -> nnx.Module:
    """The model, with a random stream of its own as `loss_rngs` if the loss draws from one."""
    if isinstance(loss_fn, TrainingLoss) and loss_fn.random:
        model.loss_rngs = nnx.Rngs(rngs.loss())
    return model


def as_pair(loss_fn: Loss | TrainingLoss, batch: PyTree) -> tuple[PyTree, PyTree]:
    """A batch as the engines take it, `(x, y)`: of a loss of model and batch, x is ()."""
    if isinstance(loss_fn, TrainingLoss):
        return (), batch
    x, y = batch
    return x, y


def losses(
    loss_fn: Loss | TrainingLoss,
    model: nnx.Module,
    x: PyTree,
    y: PyTree,
    metrics: Mapping[str, Callable[..., jax.Array]] = MappingProxyType({}),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The values of a loss in either form, and metrics by name: those that it gives, and those asked for.

    In the short form tuples of inputs, outputs and targets are several arguments, of a metric too; with a
    `TrainingLoss`, a metric is a function of model and batch.
    """
    if isinstance(loss_fn, TrainingLoss):
        values, given = loss_fn.with_metrics(model, y)
        return values, given | {name: metric(model, y) for name, metric in metrics.items()}
    arguments = *as_inputs(model(*as_inputs(x))), *as_inputs(y)
    return loss_fn(*arguments), {name: metric(*arguments) for name, metric in metrics.items()}


def objective(loss_fn: Loss | TrainingLoss, penalty: Loss | None = None) -> Callable[..., jax.Array]:
    """A loss in either form as what is differentiated: `(model, params, x, y) -> loss`.

    The loss is the mean of `loss_fn(*outputs, *targets)` over all its elements, plus `penalty(params)`; of a
    `TrainingLoss`, the mean of its values.
    """

    def loss(model: nnx.Module, params: Params, x: PyTree, y: PyTree) -> jax.Array:
        value = jnp.mean(losses(loss_fn, model, x, y)[0])
        return value if penalty is None else value + penalty(params)

    return loss


class Program:
    """A gradient program by what it computes: the key of the compilation cache."""

    def __init__(self, gradient: Callable, graphdef: nnx.GraphDef, options: tuple[Any, ...]):
        self.gradient, self.graphdef, self.options = gradient, graphdef, options

    def __hash__(self) -> int:
        try:
            return hash((self.gradient, self.graphdef, self.options))
        except TypeError:  # a layer was given a list, say; equality still tells programs apart
            return hash(self.gradient)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Program)
            and self.gradient == other.gradient
            and self.options == other.options
            and self.graphdef == other.graphdef
        )


@partial(jax.jit, static_argnums=0)
def _compiled(program: Program, params: Params, state: State, batch: tuple[PyTree, PyTree]):
    loss_fn, inputs, penalty, _ = program.options
    gradient = program.gradient(program.graphdef, loss_fn, inputs=inputs, penalty=penalty)
    return gradient(params, state, batch)


def compiled_value_and_grad(
    gradient: Callable,
    model: nnx.Module,
    loss_fn: Callable[..., jax.Array],
    x: PyTree,
    y: PyTree,
    inputs: bool,
    version: Hashable = None,
    penalty: Callable[..., jax.Array] | None = None,
) -> tuple[jax.Array, PyTree]:
    """An engine's `gradient` on one batch, compiled once for each structure of model, loss and `version`."""
    graphdef, params, state = split(model)
    program = Program(gradient, graphdef, (loss_fn, inputs, penalty, version))
    (loss, _), grads = _compiled(program, params, state, (x, y))
    return loss, grads
