"""Optax's losses by name, and what each compares the outputs of a model with."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

# By what they compare outputs with: integers, numbers or one-hot rows, one-hot rows, rows of 1 and -1.
OF_CLASSES = (
    "softmax_cross_entropy_with_integer_labels",
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
)
OF_NUMBERS = (
    "squared_error",
    "l2_loss",
    "huber_loss",
    "log_cosh",
    "cosine_similarity",
    "cosine_distance",
)
OF_ROWS = (
    "softmax_cross_entropy",
    "safe_softmax_cross_entropy",
    "poly_loss_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "ranking_softmax_loss",
    "dice_loss",
)
OF_SIGNS = ("hinge_loss", "perceptron_loss")

BY_NAME: dict[str, Callable[..., jax.Array]] = {
    name: getattr(optax.losses, name)
    for name in (*OF_CLASSES, *OF_NUMBERS, *OF_ROWS, *OF_SIGNS)
    if hasattr(optax.losses, name)
}
"""`(outputs, targets) -> values`, one for each example or element."""

ALIASES = {
    "cross_entropy": "softmax_cross_entropy_with_integer_labels",
    "mse": "squared_error",
}


def named(name: str) -> Callable[..., jax.Array]:
    """The loss of a name, or of an alias."""
    return BY_NAME[ALIASES.get(name, name)]


def targets(loss: Callable[..., jax.Array], classes: int | None, y: np.ndarray) -> np.ndarray:
    """Targets as a loss of `BY_NAME` takes them: classes, or a row for each example of 0 and 1, or -1 and 1.

    Numbers (`classes` None) stay as they are; so do the labels of any loss that is not of `BY_NAME`.

    >>> targets(optax.losses.hinge_loss, 3, np.array([0, 2]))
    array([[ 1., -1., -1.],
           [-1., -1.,  1.]], dtype=float32)

    Raises:
        ValueError: a loss of `BY_NAME` is given a negative label.
    """
    if classes is None or loss not in BY_NAME.values():
        return y
    if y.min() < 0:  # as an index, it would count from the last class
        raise ValueError(f"data: a label is {y.min()}: the loss takes classes, integers from 0")
    if loss.__name__ in OF_CLASSES:
        return y
    rows = np.eye(classes, dtype=np.float32)[y]
    return 2 * rows - 1 if loss.__name__ in OF_SIGNS else rows


def accuracy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Whether the largest output is that of the class: integers, or one-hot rows.

    >>> accuracy(jnp.array([[1.0, 2.0], [3.0, 2.0]]), jnp.array([1, 1])).tolist()
    [True, False]
    """
    labels = targets if jnp.issubdtype(targets.dtype, jnp.integer) else jnp.argmax(targets, axis=-1)
    return jnp.argmax(outputs, axis=-1) == labels
