"""Moments of small runs, for diagnostics to look at, and what they should see."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from bpresearch import autodiff, diagnostics, models, optim, train

RATE = 0.05


def moment(x, y, *, build=None, optimizer=optim.sgd, batch=None, steps=0, loss=optax.losses.l2_loss, **given):
    """A run that has trained for `steps` steps on these examples, all of them in each batch."""
    outputs = y.shape[1]
    build = build or (lambda rngs: models.linear((x.shape[1],), outputs, rngs=rngs))
    training = train.Training(build, loss, autodiff.gradient, optimizer, jnp.float64)
    fixed = {name: jnp.asarray(value) for name, value in given.items()}
    run = train.start(training, 0, fixed)
    data, index = (jnp.asarray(x), jnp.asarray(y)), jnp.arange(len(x))
    if steps:
        order = jnp.broadcast_to(index, (steps, len(x)))
        rates = {"learning_rate": jnp.full(steps, RATE)}
        run_after, _ = train.train(training, run, data, order, rates, fixed, 1, steps)
    after = run_after if steps else run
    index = index if batch is None else jnp.asarray(batch)
    rate = {"learning_rate": jnp.asarray(RATE), **fixed}
    return train.Moment(
        *(training, after, jnp.uint32(0), run.params, jnp.int32(steps), data, index, rate),
        train.next_step(training, after, data, index, rate),
    )


def values(diagnostic, at):
    def measured(*rest):
        return {name: found.values for name, found in diagnostic(train.Moment(at.training, *rest)).items()}

    return jax.tree.map(np.asarray, jax.jit(measured)(*at[1:]))


def examples(count=8, features=3, outputs=2, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, features)), generator.normal(size=(count, outputs))


def dense_hessian(at):
    flat, unravel = ravel_pytree(at.run.params)
    loss = diagnostics.loss_of(at, at.batch)
    return np.asarray(jax.jit(jax.hessian(lambda w: loss(unravel(w))))(flat))


def by_hand(at):
    """Gradient of the kernel and the bias of a linear model under half the mean squared error."""
    layer = at.run.params["layers"][1]
    x, y = np.asarray(at.data[0])[at.batch], np.asarray(at.data[1])[at.batch]
    error = (x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]) - y) / y.size
    return {"layers.1.bias": error.sum(0), "layers.1.kernel": x.T @ error}
