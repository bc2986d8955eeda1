"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

__all__ = ["soap"]


KEEP, ONCE_MORE, FIRST = 0, 1, 2
"""What becomes of the eigenvectors in a step."""


class Basis(NamedTuple):
    """What is kept of one side of a matrix of weights: rows or columns."""

    covariance: Float[Array, "side side"]
    """The mean of g g^T: L of the rows, of g^T the R of the columns."""
    vectors: Float[Array, "side side"]
    """Its eigenvectors as columns, as far as they are known: Q."""


class SoapState(NamedTuple):
    """The state of SOAP, of which each tree has the weights' structure."""

    number: Int[Array, ""]
    """Of updates so far."""
    mean: PyTree
    """m, the mean of the gradients, in the weights' own basis."""
    square: PyTree
    """v, the mean of the squares of the gradients in the eigenbasis."""
    rows: PyTree
    """A `Basis` for each matrix, None for what is none or has too many rows."""
    columns: PyTree


def soap(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.95,
    b2: ArrayLike = 0.95,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.01,
    precondition_every: int = 10,
    largest_side: int = 1024,
) -> optax.GradientTransformation:
    """Matrices: w <- w - lr (Q_L (m' / (sqrt(v) + eps)) Q_R^T + wd w), with Adam's m and v for the rest.

    L and R are means, b2, of g g^T and g^T g, and Q_L and Q_R their eigenvectors: m' = Q_L^T m Q_R, and v is
    the mean of (Q_L^T g Q_R)^2. The eigenvectors are found anew every `precondition_every` steps by one step
    of power iteration and a QR decomposition, Q <- QR(L Q); the first gradient gives them by an
    eigendecomposition, and no direction. m and v have Adam's bias correction (Vyas et al. 2024, algorithm
    3). At most two axes count: kernels of convolutions are matrices from their inputs to their outputs.

    Args:
        learning_rate: lr.
        b1: of m.
        b2: of v, L and R.
        eps: added to sqrt(v).
        weight_decay: wd.
        precondition_every: steps between two looks at the eigenvectors, at least 1.
        largest_side: a side of more rows or columns than this keeps its own basis.

    >>> optimizer, w, g = bp.optim.soap(0.1), jnp.ones((2, 2)), jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> update, _ = optimizer.update(g, optimizer.init(w), w)
    >>> update.shape
    (2, 2)
    """
    if precondition_every < 1:
        raise ValueError(f"precondition_every={precondition_every}: takes at least 1 step")

    def sides(w: Array) -> tuple[bool, bool]:
        """Whether rows and columns get a basis."""
        if w.ndim < 2:
            return False, False
        rows, columns = w.reshape(-1, w.shape[-1]).shape
        return rows <= largest_side, columns <= largest_side

    def blank(w: Array, side: int) -> Basis | None:
        if not sides(w)[side]:
            return None
        size = w.reshape(-1, w.shape[-1]).shape[side]
        dtype = jnp.promote_types(w.dtype, jnp.float32)
        return Basis(jnp.zeros((size, size), dtype), jnp.eye(size, dtype=dtype))

    def init(params: PyTree) -> SoapState:
        zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.promote_types(w.dtype, jnp.float32)), params)
        rows, columns = ([blank(w, side) for w in jax.tree.leaves(params)] for side in (0, 1))
        return SoapState(jnp.int32(0), zeros, zeros, rows, columns)

    def update(updates: PyTree, state: SoapState, params: PyTree = None) -> tuple[PyTree, SoapState]:
        count, tree = state.number + 1, jax.tree.structure(updates)
        moved = []
        trees = (updates, state.mean, state.square)
        for g, m, v, rows, columns in zip(
            *map(jax.tree.leaves, trees), state.rows, state.columns, strict=True
        ):
            moved.append(_of_one(g, m, v, rows, columns, count, b1, b2, eps, precondition_every))
        directions, means, squares, rows, columns = map(list, zip(*moved, strict=True))
        after = SoapState(count, tree.unflatten(means), tree.unflatten(squares), rows, columns)
        return tree.unflatten(directions), after

    return optax.chain(
        optax.GradientTransformation(init, update),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _turned(a: Array, rows: Basis | None, columns: Basis | None, *, back: bool = False) -> Array:
    """Q_L^T a Q_R, the matrix in the eigenbasis, or back: Q_L a Q_R^T."""
    if rows is not None:
        a = (rows.vectors if back else rows.vectors.T) @ a
    if columns is not None:
        a = a @ (columns.vectors.T if back else columns.vectors)
    return a


def _of_one(
    g: Array, m: Array, v: Array, rows: Basis | None, columns: Basis | None, count: Array,
    b1: ArrayLike, b2: ArrayLike, eps: ArrayLike, every: int,
) -> tuple[Array, Array, Array, Basis | None, Basis | None]:  # fmt: skip
    """The direction of one parameter, its m and v, and its bases for the next step."""
    shape = g.shape
    matrix = (lambda a: a.reshape(-1, shape[-1])) if len(shape) > 1 else (lambda a: a.reshape(-1, 1))
    gradient, mean, square = matrix(g).astype(m.dtype), matrix(m), matrix(v)
    moving = (
        count if rows is None and columns is None else count - 1
    )  # the first gradient gives a basis alone
    begun = moving > 0
    steps = jnp.maximum(moving, 1)
    mean = jnp.where(begun, b1 * mean + (1 - b1) * gradient, mean)
    square = jnp.where(begun, b2 * square + (1 - b2) * _turned(gradient, rows, columns) ** 2, square)
    scaled = _turned(mean / (1 - b1**steps), rows, columns) / (jnp.sqrt(square / (1 - b2**steps)) + eps)
    direction = jnp.where(begun, _turned(scaled, rows, columns, back=True), 0)
    look = jnp.where(begun, jnp.where(moving % every == 0, ONCE_MORE, KEEP), FIRST)
    rows, square = _next_basis(rows, gradient @ gradient.T, square, 0, look, b2)
    columns, square = _next_basis(columns, gradient.T @ gradient, square, 1, look, b2)
    return direction.reshape(shape).astype(g.dtype), mean.reshape(shape), square.reshape(shape), rows, columns


def _next_basis(
    basis: Basis | None, outer: Array, square: Array, axis: int, look: Array, b2: ArrayLike
) -> tuple[Basis | None, Array]:
    """The basis of one side after a gradient, and v, whose order along `axis` is that of the eigenvectors."""
    if basis is None:
        return None, square
    covariance = b2 * basis.covariance + (1 - b2) * outer

    def unchanged() -> tuple[Array, Array]:
        return basis.vectors, square

    def once_more() -> tuple[Array, Array]:
        product = covariance @ basis.vectors
        order = jnp.argsort(-jnp.sum(basis.vectors * product, axis=0))  # by the eigenvalues, as far as known
        return jnp.linalg.qr(product[:, order])[0], jnp.take(square, order, axis=axis)

    def first() -> tuple[Array, Array]:
        return jnp.linalg.eigh(covariance)[1][:, ::-1], square

    vectors, square = jax.lax.switch(look, [unchanged, once_more, first])
    return Basis(jnp.asarray(covariance), vectors), square
