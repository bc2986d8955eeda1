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

from bpresearch.analysis.sharpness import of_length_one, power_iteration
from bpresearch.functional import Params, format_path
from bpresearch.train import Measured, Moment, batch_loss

POWER_ITERATIONS = 20
PROBES = 4
BINS = 20
PARTS = 4


def gradient_norms(moment: Moment) -> dict[str, Measured]:
    """`gradient_norm` by layer: |g| of each parameter array."""
    return {"gradient_norm": _by_layer(gradient(moment))}


def update_norms(moment: Moment) -> dict[str, Measured]:
    """`update_norm` by layer: |d| of each parameter array."""
    return {"update_norm": _by_layer(update(moment, gradient(moment)))}


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
    params, loss = moment.run.params, loss_of(moment, moment.batch)
    grads = gradient(moment)
    step = update(moment, grads)
    predicted = -optax.tree.vdot(grads, step)
    observed = loss(params) - loss(optax.apply_updates(params, step))
    return {
        "predicted_decrease": Measured(predicted),
        "observed_decrease": Measured(observed),
        "step_fidelity": Measured(observed / predicted),
    }


def gradient_noise(moment: Moment) -> dict[str, Measured]:
    """`noise_scale` tr(S) / |G|^2 and `signal_to_noise` |G|^2 / (tr(S) / B), with G the true gradient, S the
    covariance of the gradient of one example and B the batch size (McCandlish et al. 2018, appendix A).

    The batch is cut into 4 parts of b examples (2 or 1 where it cannot be; at 1 there is no estimate). With
    g_i the gradient of part i, of n, and g their mean, unbiased estimates are
    tr(S) = b sum |g_i - g|^2 / (n - 1) and |G|^2 = |g|^2 - tr(S) / B; where the latter is not positive the
    noise hides the gradient, the scale is infinite and the ratio 0.
    """
    size = moment.batch.shape[0]
    parts = next(parts for parts in (PARTS, 2, 1) if size % parts == 0)
    if parts == 1:
        nothing = Measured(jnp.float32(jnp.nan))
        return {"noise_scale": nothing, "signal_to_noise": nothing}
    of_part = jax.lax.map(lambda part: gradient(moment, part), moment.batch.reshape(parts, -1))
    trace, square = noise_estimates(of_part, size)
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
    g = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in jax.tree.leaves(gradient(moment))])
    place = jnp.floor((jnp.log10(g.astype(jnp.float32)) + 8) * 2)
    place = jnp.clip(place, 0, BINS - 1).astype(jnp.int32)
    counts = jnp.zeros(BINS).at[place].add(1)
    ends = [-8 + bin / 2 for bin in range(BINS)]
    return {"gradient_histogram": Measured(counts / g.size, {"log10_gradient": ends})}


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
    batch = (moment.data.x[index], moment.data.y[index])
    return lambda params: batch_loss(moment.training, params, moment.run.state, batch)


def noise_estimates(of_part: Params, size: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Unbiased estimates of tr(S) and |G|^2, from the gradients of equal parts of a batch of `size` examples.

    Each leaf of `of_part` has the parts first.
    """
    parts = jax.tree.leaves(of_part)[0].shape[0]
    mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), of_part)
    spread = jax.tree.map(lambda g, m: jnp.sum((g - m[None]) ** 2), of_part, mean)
    trace = size / parts * optax.tree.sum(spread) / (parts - 1)
    return trace, optax.tree.norm(mean, squared=True) - trace / size


def gradient(moment: Moment, index: Array | None = None) -> Params:
    """The engine's gradient on some examples, by default those of the next step."""
    index = moment.batch if index is None else index
    training, run, data = moment.training, moment.run, moment.data
    value_and_grad = training.gradient(training.graphdef, training.loss_fn)
    _, grads = value_and_grad(run.params, run.state, (data.x[index], data.y[index]))
    return grads


def update(moment: Moment, grads: Params) -> Params:
    """What the optimizer adds to the weights in the next step."""
    run, loss = moment.run, loss_of(moment, moment.batch)
    optimizer = optax.with_extra_args_support(moment.training.optimizer(**moment.hyperparameters))
    value = loss(run.params)
    updates, _ = optimizer.update(
        grads, run.optimizer_state, run.params, value=value, grad=grads, value_fn=loss
    )
    return updates


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
