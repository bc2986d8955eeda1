"""Classes of unequal frequency: how long gradient descent and sign descent take for each.

A linear softmax classifier of C classes sees one input for each class, orthogonal to all others, with the
class's frequency p (a setting of Kunstner et al. 2024, arXiv 2402.19449; the equations are derived anew). In
continuous time from zero weights each class is learned by itself: its margin m, the logit of the right class
less any other's, obeys

    gradient descent   dm/dt = p C / (e^m + C - 1),   so   e^m + (C - 1) m = 1 + p C t:  a function of p t;
    sign descent       dm/dt = 2,                     so   m = 2 t:  the same for every class,

and its loss is log(1 + (C - 1) e^-m). A class a thousandth as frequent takes gradient descent a thousand
times as long; sign descent learns all at one rate, and so does Adam, which forgets the gradients' scale.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from jaxtyping import Array, Float


def frequencies(classes: int) -> Float[np.ndarray, " classes"]:
    """Proportional to 1 / k, as words are (Zipf)."""
    weights = 1 / np.arange(1, classes + 1)
    return weights / weights.sum()


def loss_of(margin: Float[np.ndarray, "..."], classes: int) -> Float[np.ndarray, "..."]:
    """log(1 + (C - 1) e^-m)."""
    return np.log1p((classes - 1) * np.exp(-margin))


def by_gradient_descent(
    frequency: Float[np.ndarray, "..."], time: Float[np.ndarray, "..."], classes: int
) -> Float[np.ndarray, "..."]:
    """A class's loss after this time (steps times learning rate), in closed form.

    From e^m + (C - 1) m = a follows m = a / (C - 1) - omega(a / (C - 1) - log(C - 1)), with Wright's omega:
    omega(z) + log omega(z) = z.

    >>> print(by_gradient_descent(np.array([0.5]), np.array([0.0]), 10))  # log(10)
    [2.30258509]
    """
    others, right = classes - 1, 1 + frequency * classes * time
    margin = right / others - scipy.special.wrightomega(right / others - np.log(others))
    return loss_of(margin, classes)


def by_sign_descent(time: Float[np.ndarray, "..."], classes: int) -> Float[np.ndarray, "..."]:
    """Every class's loss after this time: m = 2 t."""
    return loss_of(2 * time, classes)


def trained(
    frequency: Float[np.ndarray, " classes"],
    optimizer: optax.GradientTransformation,
    steps: int,
    every: int = 1,
) -> Float[np.ndarray, "records classes"]:
    """Each class's loss in training on all at once, in float64: before it and after every so many steps.

    Args:
        frequency: of each class; they sum to one.
        optimizer: of Optax.
        steps: number of updates, a multiple of `every`.
        every: updates between two records.
    """
    classes = len(frequency)

    def losses(w: Array) -> Array:
        return optax.losses.softmax_cross_entropy_with_integer_labels(w, jnp.arange(classes))

    with jax.enable_x64(True):
        slope = jax.grad(lambda w: jnp.vdot(jnp.asarray(frequency), losses(w)))
        w = jnp.zeros((classes, classes))  # a row of logits for each input
        return np.asarray(_recorded(slope, losses, optimizer, w, steps // every, every))


def _recorded(
    slope: Callable[[Array], Array], losses: Callable[[Array], Array],
    optimizer: optax.GradientTransformation, w: Array, records: int, every: int,
) -> Array:  # fmt: skip
    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(slope(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    def record(carry, _):
        carry, _ = jax.lax.scan(step, carry, None, every)
        return carry, losses(carry[0])

    @jax.jit
    def run(w):
        recorded = jax.lax.scan(record, (w, optimizer.init(w)), None, records)[1]
        return jnp.concatenate([losses(w)[None], recorded])

    return run(w)
