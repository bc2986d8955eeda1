"""What diagnostics ask of a mini-batch: its loss, its gradient, its curvature; and random vectors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bpresearch.functional import Params, TrainingLoss, as_inputs, merge
from bpresearch.train import Moment, batch_loss, batch_of


def loss_of(moment: Moment, index: Array) -> Callable[[Params], Float[Array, ""]]:
    """The loss of some examples, as training computes it, as a function of the weights."""
    batch = batch_of(moment.training, moment.data, index)
    return lambda params: batch_loss(moment.training, params, moment.run.state, batch)


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


def gauss_newton_product(moment: Moment) -> Callable[[Params], Params]:
    """v -> J^T L J v, with J the derivative of the outputs of the mini-batch with respect to the weights, and
    L the second derivative of its mean loss with respect to the outputs.

    Raises:
        ValueError: the loss is a function of model and batch; where its outputs are is not known.
    """
    training = moment.training
    if isinstance(training.loss, TrainingLoss):
        raise ValueError("the loss is of model and batch: where the outputs are is not known")
    loss, (x, y) = training.loss, batch_of(training, moment.data, moment.batch)

    def outputs(params: Params) -> PyTree:
        return merge(training.graphdef, params, moment.run.state)(*as_inputs(x))

    def of_outputs(predictions: PyTree) -> Float[Array, ""]:
        return jnp.mean(loss(*as_inputs(predictions), *as_inputs(y)))

    def product(v: Params) -> Params:
        predictions, tangent = jax.jvp(outputs, (moment.run.params,), (v,))
        curved = jax.jvp(jax.grad(of_outputs), (predictions,), (tangent,))[1]
        return jax.vjp(outputs, moment.run.params)[1](curved)[0]

    return product


def random_like_weights(moment: Moment, draw: Callable[..., Array], number: Array | int = 0) -> Params:
    """Random arrays like the weights: the same whenever the run comes to this step."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(moment.seed), moment.steps), number)
    leaves, tree = jax.tree.flatten(moment.run.params)
    keys = jax.random.split(key, len(leaves))
    drawn = [draw(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)
