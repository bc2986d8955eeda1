"""How much a step of each layer does to the loss as a network grows wider.

Adam's first step moves every weight by its learning rate, lr, against the sign of its gradient g, so that to
first order a layer lowers the loss by lr |g|_1, its gradients' absolute values summed. In a network with two
hidden layers of width n whose initial weights have the deviation 1 / sqrt(fan_in), a kernel's number of
weights and the size of each one's gradient make that grow like

    kernel    weights   gradient   lr |g|_1   with muP's rates and initial weights
    input     n         n^-1/2     n^1/2      n^0
    hidden    n^2       n^-1/2     n^3/2      n^0
    output    n         1          n          n^0

so that one rate cannot suit all widths, and with muP (Yang et al. 2022, arXiv 2203.03466; `optim/mup.py`) it
can. This is where the loss is linear in the outputs. With cross-entropy muP's smaller outputs change a little
what the gradient is made of, at widths near that of the base.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from bpresearch import autodiff
from bpresearch.functional import Loss, split
from bpresearch.optim import mup


def first_steps(
    model: nnx.Module,
    loss_fn: Loss,
    x: Float[Array, "batch *features"],
    y: Int[Array, " batch"],
    rates: dict[str, float] | None = None,
) -> dict[str, float]:
    """By how much Adam's first step lowers the loss for each kernel, over the learning rate: r |g|_1.

    >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    >>> first_steps(model, own_output, jnp.array([[3.0, -4.0]]), jnp.array([0]), {"kernel": 0.5})
    {'kernel': 3.5}

    Args:
        model: before training.
        loss_fn: `(outputs, targets) -> values`; the loss is their mean.
        x, y: the batch.
        rates: r, each path's multiple of the learning rate; default: 1.

    Returns:
        A number for each kernel, by its path.
    """
    graphdef, params, state = split(model)
    _, gradients = jax.jit(autodiff.gradient(graphdef, loss_fn))(params, state, (x, y))
    return {
        path: (rates or {}).get(path, 1.0) * float(jnp.sum(jnp.abs(leaf)))
        for key_path, leaf in jax.tree.leaves_with_path(gradients)
        if (path := mup.path_of(key_path)).endswith("kernel")
    }


def own_output(
    outputs: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """Less the output of each example's own class: a loss that is linear in the outputs."""
    return -jnp.take_along_axis(outputs, labels[:, None], axis=1)[:, 0]


def exponent(widths: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"]) -> float:
    """a in values = c widths^a, by least squares of the logarithms.

    >>> round(exponent(np.array([1.0, 2.0, 4.0]), np.array([3.0, 1.5, 0.75])), 6)
    -1.0
    """
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])
