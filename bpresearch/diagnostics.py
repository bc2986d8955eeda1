"""Diagnostics of a run, computed inside its program at each evaluation.

Each is a function of a `Moment`, the run and the step that it takes next, and gives variables of the results
by name. They are passed to an experiment (`Experiment(diagnostics=(gradient_norms, ...))`), and measure what
Cockpit measures on PyTorch (Schneider et al. 2021). g is the gradient of the mini-batch loss, w the weights,
and d the update that the optimizer makes of g.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float

from bpresearch.functional import Params
from bpresearch.paths import format_path
from bpresearch.theory.sharpness import of_length_one, power_iteration
from bpresearch.train import Measured, Moment, batch_loss, batch_of

POWER_ITERATIONS = 20
PROBES = 4
BINS = 20


def gradient_norms(moment: Moment) -> dict[str, Measured]:
    """`gradient_norm` by layer: |g| of each parameter array."""
    return {"gradient_norm": _by_layer(moment.next.gradient)}


def update_norms(moment: Moment) -> dict[str, Measured]:
    """`update_norm` by layer: |d| of each parameter array."""
    return {"update_norm": _by_layer(moment.next.update)}


def distance(moment: Moment) -> dict[str, Measured]:
    """`distance` from the initial weights: |w - w_0|."""
    difference = jax.tree.map(jnp.subtract, moment.run.params, moment.initial)
    return {"distance": Measured(optax.tree.norm(difference))}


def step_fidelity(moment: Moment) -> dict[str, Measured]:
    """How the next step's decrease of its mini-batch loss L compares with what the slope promises.

    `predicted_decrease` is -g.d, `observed_decrease` L(w) - L(w + d), and `step_fidelity` their ratio,
    observed over predicted: 1 where the loss is linear along the step, 1/2 at its minimum along the step if
    it is quadratic, negative where the step goes uphill.
    """
    step = moment.next
    predicted = -optax.tree.vdot(step.gradient, step.update)
    after = loss_of(moment, moment.batch)(optax.apply_updates(moment.run.params, step.update))
    observed = step.loss - after
    return {
        "predicted_decrease": Measured(predicted),
        "observed_decrease": Measured(observed),
        "step_fidelity": Measured(observed / predicted),
    }


def gradient_noise(moment: Moment) -> dict[str, Measured]:
    """`noise_scale` tr(S) / |G|^2 and `signal_to_noise` |G|^2 / (tr(S) / B), with G the true gradient, S the
    covariance of the gradient of one example and B the batch size (McCandlish et al. 2018, appendix A).

    A part of the batch, the first tenth of it (b examples; 2 where that is less, 1 of 2 or 3), gives its
    gradient g_1. It is apart from g by E |g_1 - g|^2 = tr(S) (1/b - 1/B), which gives an unbiased estimate of
    tr(S), and |g|^2 - tr(S) / B is one of |G|^2; where that is not positive the noise hides the gradient, the
    scale is infinite and the ratio 0. Normal noise that spreads evenly over n directions leaves the estimate
    of tr(S) a relative deviation of sqrt(2/n), however large the part is: so a small one will do, and means
    over evaluations are more precise. A batch of one example gives no estimate. In a model that mixes the
    examples of a batch (BatchNorm), or draws random numbers, what that changes counts as noise too.
    """
    size = moment.batch.shape[0]
    part = min(max(2, size // 10), size // 2)
    if not part:
        nothing = Measured(jnp.float32(jnp.nan))
        return {"noise_scale": nothing, "signal_to_noise": nothing}
    of_part = gradient(moment, moment.batch[:part])
    trace, square = noise_estimates(of_part, moment.next.gradient, part, size)
    square = jnp.maximum(square, 0)
    return {
        "noise_scale": Measured(trace / square),
        "signal_to_noise": Measured(square / (trace / size)),
    }


def hessian_eigenvalue(moment: Moment) -> dict[str, Measured]:
    """`hessian_eigenvalue`: the largest in magnitude of the Hessian of the mini-batch loss.

    By 20 steps of the power method from a random vector; each product with H is forward over reverse
    (Pearlmutter 1994), and costs about two gradients.
    """
    start = of_length_one(_random(moment, jax.random.normal))
    value, _ = power_iteration(hessian_product(moment), start, POWER_ITERATIONS)
    return {"hessian_eigenvalue": Measured(value)}


def hessian_trace(moment: Moment) -> dict[str, Measured]:
    """`hessian_trace` of the mini-batch loss: the mean of z.H z over 4 vectors z of random signs.

    (Hutchinson 1990.)
    """
    product = hessian_product(moment)

    def one(number: Array) -> Array:
        z = _random(moment, jax.random.rademacher, number)
        return optax.tree.vdot(z, product(z))

    return {"hessian_trace": Measured(jnp.mean(jax.lax.map(one, jnp.arange(PROBES))))}


def gradient_histogram(moment: Moment) -> dict[str, Measured]:
    """`gradient_histogram`: the part of g's elements with each order of magnitude.

    The bins of `log10_gradient`, named by their lower ends, are half an order wide and go from 1e-8 to 100;
    what is smaller or larger, zero too, counts in the first or the last.
    """
    g = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in jax.tree.leaves(moment.next.gradient)])
    ends = [-8 + bin / 2 for bin in range(BINS)]
    g = jax.lax.optimization_barrier(g)  # put together once, not for each of its bins
    above = jnp.stack([jnp.sum(g >= 10.0**end, dtype=jnp.int32) for end in ends[1:]])
    parts = -jnp.diff(above, prepend=g.size, append=0) / g.size
    return {"gradient_histogram": Measured(parts, {"log10_gradient": ends})}


DIAGNOSTICS: tuple[Callable[[Moment], dict[str, Measured]], ...] = (
    gradient_norms,
    update_norms,
    distance,
    step_fidelity,
    gradient_noise,
    hessian_eigenvalue,
    hessian_trace,
    gradient_histogram,
)


def loss_of(moment: Moment, index: Array) -> Callable[[Params], Float[Array, ""]]:
    """The loss of some examples, as training computes it, as a function of the weights."""
    batch = batch_of(moment.training, moment.data, index)
    return lambda params: batch_loss(moment.training, params, moment.run.state, batch)


def noise_estimates(
    of_part: Params, of_batch: Params, part: int, batch: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Unbiased estimates of tr(S) and |G|^2, from the gradients of a part of a batch and of all of it.

    The part has `part` examples, the batch `batch`.
    """
    apart = optax.tree.norm(jax.tree.map(jnp.subtract, of_part, of_batch), squared=True)
    trace = apart / (1 / part - 1 / batch)
    return trace, optax.tree.norm(of_batch, squared=True) - trace / batch


def gradient(moment: Moment, index: Array) -> Params:
    """The engine's gradient on some examples."""
    training, run, data = moment.training, moment.run, moment.data
    value_and_grad = training.gradient(training.graphdef, training.loss)
    _, grads = value_and_grad(run.params, run.state, batch_of(training, data, index))
    return grads


def hessian_product(moment: Moment) -> Callable[[Params], Params]:
    """v -> H v, with H the Hessian of the mini-batch loss at the run's weights."""
    slope = jax.grad(loss_of(moment, moment.batch))
    return lambda v: jax.jvp(slope, (moment.run.params,), (v,))[1]


def _by_layer(tree: Params) -> Measured:
    """The norm of each parameter array, with its path as coordinate."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [format_path(tuple(entry.key for entry in path)) for path, _ in leaves]
    return Measured(jnp.stack([jnp.linalg.norm(leaf.ravel()) for _, leaf in leaves]), {"layer": names})


def _random(moment: Moment, draw: Any, number: Array | int = 0) -> Params:
    """Random arrays like the weights: the same whenever the run comes to this step."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(moment.seed), moment.steps), number)
    leaves, tree = jax.tree.flatten(moment.run.params)
    keys = jax.random.split(key, len(leaves))
    drawn = [draw(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)
