"""Training with wrong labels: each run is taught labels of its own, some of them drawn at random.

The labels are a variable of the model, so that runs with other seeds, and so with other wrong labels, are
trained by one program. A batch holds signals and the numbers of their examples, and the loss looks up what
the run is taught for them; the test part comes after the training part and keeps its labels.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from bpresearch import losses


class Labels(nnx.Variable):
    """The class of every example as a run is taught it."""


class Taught(nnx.Module):
    """A network and the labels that it is taught.

    Args:
        network: from signals to outputs.
        labels: the right ones of all examples.
        noisy: of the first so many each label is, with the probability `noise`, drawn anew from all classes.
        noise: so that a part noise (1 - 1 / classes) of them is wrong.
        classes: number of classes.
        rngs: source of what is drawn.
    """

    def __init__(
        self,
        network: nnx.Module,
        labels: Int[Array, " examples"],
        noisy: int,
        noise: float,
        classes: int,
        rngs: nnx.Rngs,
    ):
        drawn, which = jax.random.split(rngs.params())
        other = jax.random.randint(drawn, labels.shape, 0, classes, labels.dtype)
        anew = jax.random.bernoulli(which, noise, labels.shape) & (jnp.arange(len(labels)) < noisy)
        self.network = network
        self.labels = Labels(jnp.where(anew, other, labels))

    def __call__(self, x: Float[Array, "batch *features"]) -> Float[Array, "batch classes"]:
        return self.network(x)


def loss(
    model: Taught, batch: dict[str, Array]
) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
    """Cross-entropy with the labels that the run is taught, a value for each example.

    Args:
        model: whose labels are looked up.
        batch: `signal`; `example`, its number among the labels; `label`, the right one.

    Returns:
        The values, and for each example two metrics: `error`, 1 where the largest output is not that of the
        label taught, and `wrong`, 1 where that label is not the right one.
    """
    outputs, labels = model(batch["signal"]), model.labels[...][batch["example"]]
    error, wrong = jnp.argmax(outputs, axis=-1) != labels, labels != batch["label"]
    metrics = {"error": error.astype(outputs.dtype), "wrong": wrong.astype(outputs.dtype)}
    return losses.named("cross_entropy")(outputs, labels), metrics
