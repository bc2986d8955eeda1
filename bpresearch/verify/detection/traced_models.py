"""Random models as users write them: a module with a `__call__` of its own, and a loss of its own.

A model is a chain of blocks; a loss is one of several written out by hand, of the mean or the sum over
examples, with or without a penalty. All of it is drawn from one generator, so a seed names a model.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import PyTree

from bpresearch import autodiff
from bpresearch.functional import TrainingLoss, split
from bpresearch.verify.casting import cast_model
from bpresearch.verify.detection.cases import shapes_of
from bpresearch.verify.detection.traced_blocks import BLOCKS, Block, Generator, projected, size
from bpresearch.verify.precision import cast, compiled

Objective: TypeAlias = Callable[[nnx.Module, Any], Any]
"""`(model, batch) -> loss`."""


class TracedModel(nnx.Module):
    """A chain of blocks. `name` tells which; ranks are promoted in it as in users' code."""

    def __init__(self, name: str, blocks: list[Block]):
        self.name = name
        self.blocks = nnx.List(blocks)

    def __call__(self, x: jax.Array) -> jax.Array:
        with jax.numpy_rank_promotion("allow"):
            for block in self.blocks:
                x = block(x)
        return x


# Losses: of outputs of shape (batch, time, width) and the batch one value for each step of each example.


def squares(outputs, batch):
    """Squared errors."""
    return jnp.sum((outputs - batch["y"]) ** 2, -1)


def huber(outputs, batch):
    """Squared errors that go on as straight lines."""
    error = outputs - batch["y"]
    size = jnp.abs(error)
    return jnp.where(size < 1.3, 0.5 * error**2, 1.3 * (size - 0.65)).sum(-1)


def cross_entropy(outputs, batch):
    """Cross-entropy by logsumexp."""
    of_label = jnp.take_along_axis(outputs, batch["labels"][..., None], -1)[..., 0]
    return jax.nn.logsumexp(outputs, axis=-1) - of_label


def optax_cross_entropy(outputs, batch):
    """Cross-entropy by Optax, of temperature 2."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(outputs / 2, batch["labels"])


def masked_errors(outputs, batch):
    """Errors of the steps that are not padding, by their number."""
    errors = optax.losses.log_cosh(outputs, batch["y"]).mean(-1)
    return jnp.where(batch["mask"], errors, 0.0) / (1 + batch["mask"].sum())


def gaussian(outputs, batch):
    """Negative log-likelihood with a spread that the model gives."""
    mean, spread = outputs[..., :1], jax.nn.softplus(outputs[..., -1:]) + 1e-2
    return (((batch["y"][..., :1] - mean) / spread) ** 2 / 2 + jnp.log(spread))[..., 0]


def hinge(outputs, batch):
    """A margin for each class."""
    sign = 2 * jax.nn.one_hot(batch["labels"], outputs.shape[-1], dtype=outputs.dtype) - 1
    return jnp.maximum(0.0, 1 - sign * outputs).mean(-1)


def cosine(outputs, batch):
    """One minus the cosine of the angle to the target."""
    lengths = jnp.sqrt(jnp.sum(outputs**2, -1) + 1e-4) * jnp.linalg.norm(batch["y"], axis=-1)
    return 1 - jnp.sum(outputs * batch["y"], -1) / lengths


def contrastive(outputs, batch):
    """Each example against all others, by its mean over time."""
    first = outputs.mean(1)
    first = first / jnp.sqrt(jnp.sum(first**2, -1, keepdims=True) + 1e-3)
    logits = first @ first.T / 0.5
    return (jax.nn.logsumexp(logits, -1) - jnp.diagonal(logits))[:, None]


LOSSES = (
    squares, huber, cross_entropy, optax_cross_entropy, masked_errors, gaussian, hinge, cosine, contrastive,
)  # fmt: skip


# Penalties: of the model's parameters.


def no_penalty(leaves):
    """Nothing."""
    return 0.0


def decay(leaves):
    """Half the squares of all parameters."""
    return 0.5e-2 * sum(jnp.sum(leaf**2) for leaf in leaves)


def smooth_absolute_values(leaves):
    """Nearly the absolute values."""
    return 1e-2 * sum(jnp.mean(jnp.sqrt(leaf**2 + 1e-3)) for leaf in leaves)


def logarithm_of_the_norm(leaves):
    """The logarithm of the norm of all parameters together."""
    return 0.1 * jnp.log(1e-3 + sum(jnp.vdot(leaf, leaf) for leaf in leaves))


PENALTIES = (no_penalty, no_penalty, decay, smooth_absolute_values, logarithm_of_the_norm)


def _objective(rng: Generator) -> tuple[str, Objective]:
    of_steps, penalty = LOSSES[rng.integers(len(LOSSES))], PENALTIES[rng.integers(len(PENALTIES))]
    together = [jnp.mean, jnp.sum, lambda values: values.sum(1).mean()][rng.integers(3)]
    scale, with_metrics = float(10 ** rng.uniform(-3, 3)), bool(rng.integers(2))

    def loss(model, batch):
        outputs = model(batch["x"])
        with jax.numpy_rank_promotion("allow"):
            leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
            value = scale * together(of_steps(outputs, batch)) + penalty(leaves)
        return (value, {"largest": jnp.max(jnp.abs(outputs))}) if with_metrics else value

    return f"{of_steps.__name__} + {penalty.__name__}", loss


def random_traced_model(rng: Generator) -> tuple[TracedModel, Objective, dict[str, np.ndarray]]:
    """A model, its training loss and a batch, for `bpresearch.verify.loss(loss, model, batch)`.

    The loss and its gradient are finite in float64. Parameters and data are float32.

    Args:
        rng: NumPy's generator; the same state gives the same model.

    >>> model, loss, batch = random_traced_model(np.random.default_rng(4))
    >>> model.name.count(" > ") >= 1, batch["x"].ndim, batch["x"].dtype.name
    (True, 3, 'float32')
    """
    while True:
        model, loss, batch = _drawn(rng)
        if is_finite(model, loss, batch):
            return model, loss, batch


def _drawn(rng: Generator) -> tuple[TracedModel, Objective, dict[str, np.ndarray]]:
    shape = size(rng), size(rng), size(rng)
    x = (10 ** rng.uniform(-3, 3) * rng.normal(size=shape)).astype(np.float32)
    blocks: list[Block] = []
    names: list[str] = []
    outputs = jax.ShapeDtypeStruct(shape, np.float32)
    chosen = [BLOCKS[number] for number in rng.integers(0, len(BLOCKS), rng.integers(1, 6))]
    for number, make in enumerate((*chosen, projected)):
        if number == len(chosen) and any(nnx.state(block, nnx.Param) for block in blocks):
            break  # there are parameters without it
        parts, apply = make(rng, *outputs.shape)
        blocks.append(Block(apply, parts))
        names.append(make.__name__)
        outputs = shapes_of(TracedModel("", blocks[-1:]), outputs)
    name, loss = _objective(rng)
    batch = {
        "x": x,
        "y": rng.normal(size=outputs.shape).astype(np.float32),
        "labels": rng.integers(0, outputs.shape[-1], outputs.shape[:-1]),
        "mask": rng.random(outputs.shape[:-1]) < 0.7,
    }
    return TracedModel(" > ".join((*names, name)), blocks), loss, batch


def is_finite(model: nnx.Module, loss: Objective, batch: PyTree) -> bool:
    """Whether the loss and its gradient are finite in float64."""
    with jax.enable_x64(True):
        graphdef, params, state = split(cast_model(model, "float64"))
        gradient = compiled(autodiff.gradient(graphdef, TrainingLoss(loss)))
        (value, _), grads = gradient(params, state, ((), cast(batch, "float64")))
        return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in (value, *jax.tree.leaves(grads)))
