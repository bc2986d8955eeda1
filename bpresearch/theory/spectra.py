"""The spectrum of a symmetric operator that is known by its products alone: Lanczos (1950).

matfree has the same decomposition. This one also ends well where the vectors' space is exhausted (an operator
of low rank, as a Gauss-Newton matrix of few outputs is, or zero), and calls no LAPACK: jaxlib's batched
`eigh`, which matfree's quadrature calls as well, waits for threads of the pool that it runs on, and in a
program of several CPU devices waits for ever.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

exactly = partial(jnp.matmul, precision="highest")
"""Accelerators round what they multiply to fewer digits unless they are asked."""

SWEEPS = 10
"""Over all pairs, after which rotations of up to some hundred rows change nothing any more."""


class Spectrum(NamedTuple):
    """What k steps of Lanczos tell of an operator's eigenvalues, by Gauss's quadrature with k nodes.

    Attributes:
        values: the nodes (Ritz values), ascending; the outermost converge to eigenvalues first. An operator
            with r different eigenvalues has r of them, and NaN in front.
        weights: how much of the spectrum, as the start vector sees it, lies at each; they add up to 1, and
            f(A)'s mean over the spectrum is about sum(weights f(values)).
    """

    values: Float[Array, " k"]
    weights: Float[Array, " k"]

    def largest(self, count: int) -> Float[Array, " count"]:
        """The largest values, descending; NaN where there are fewer."""
        reversed_ = self.values[::-1][:count]
        return jnp.pad(reversed_, (0, count - len(reversed_)), constant_values=jnp.nan)

    @property
    def smallest(self) -> Float[Array, ""]:
        """The smallest value."""
        return jnp.nanmin(self.values)


def spectrum(product: Callable[[PyTree], PyTree], start: PyTree, steps: int) -> Spectrum:
    """The Ritz values of a symmetric operator A and their weights, from Lanczos's recursion.

        beta_i q_i+1 = A q_i - alpha_i q_i - beta_i-1 q_i-1,    alpha_i = q_i.A q_i

    from q_1 = v / |v|, each vector made orthogonal to all before it, twice (Parlett 1980). The tridiagonal
    matrix of alphas and betas has the Ritz values as eigenvalues; a weight is the square of the first element
    of its eigenvector (Golub and Welsch 1969). With v normal, a weight of p has a standard deviation of
    about sqrt(2 p (1 - p) / n) around the share of the n eigenvalues that are there (Ghorbani et al. 2019).

    >>> A = jnp.diag(jnp.array([3.0, 1.0, -2.0, -2.0]))
    >>> found = spectrum(lambda v: A @ v, jnp.ones(4), 4)
    >>> print(found.values.round(4), found.weights.round(4))
    [nan -2.  1.  3.] [0.   0.5  0.25 0.25]

    Args:
        product: v -> A v.
        start: v, an array or a tree of arrays.
        steps: products; the number of elements of v, where that is smaller.
    """
    v, unravel = ravel_pytree(start)
    count = min(steps, v.size)
    zero = jnp.zeros((), v.dtype)

    def step(
        carry: tuple[Array, Array, Array, Array], i: Array
    ) -> tuple[tuple[Array, Array, Array, Array], tuple[Array, Array, Array]]:
        basis, q, scale, valid = carry
        basis = basis.at[i].set(q)
        image = ravel_pytree(product(unravel(q)))[0].astype(v.dtype)
        alpha = exactly(q, image)
        for _ in range(2):
            image -= exactly(basis.T, exactly(basis, image))
        beta = jnp.linalg.norm(image)
        scale = jnp.maximum(scale, jnp.abs(alpha) + beta)
        goes_on = valid & (beta > 100 * jnp.finfo(v.dtype).eps * scale)
        beta = jnp.where(goes_on, beta, zero)
        following = jnp.where(goes_on, image / jnp.where(goes_on, beta, 1), 0)
        return (basis, following, scale, goes_on), (alpha, beta, valid)

    first = (jnp.zeros((count, v.size), v.dtype), v / jnp.linalg.norm(v), zero, jnp.array(True))
    (_, _, scale, _), (alphas, betas, valid) = jax.lax.scan(step, first, jnp.arange(count))
    return _quadrature(alphas, betas[:-1], valid, 3 * scale + 1)


def _quadrature(
    alphas: Float[Array, " k"], betas: Float[Array, " k-1"], valid: Bool[Array, " k"], bound: Float[Array, ""]
) -> Spectrum:
    """Nodes and weights; rows that are not valid have no couplings, and are put below all others first."""
    diagonal = jnp.where(valid, alphas, -bound)
    values, vectors = eigh(jnp.diag(diagonal) + jnp.diag(betas, 1) + jnp.diag(betas, -1))
    there = jnp.arange(len(alphas)) >= len(alphas) - jnp.sum(valid)
    return Spectrum(jnp.where(there, values, jnp.nan), jnp.where(there, vectors[0] ** 2, 0))


def eigh(matrix: Float[Array, "k k"]) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
    """The eigenvalues of a small symmetric matrix, ascending, and its eigenvectors in columns.

    By Jacobi's rotations (1846), each of which makes one element off the diagonal zero, tan(2 angle) being
    2 a_ij / (a_jj - a_ii): k / 2 of them at once, between disjoint pairs, all pairs in turn as in a
    tournament (Brent and Luk 1985).

    >>> values, vectors = eigh(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> print(values.round(4), jnp.abs(vectors).round(4)[0])
    [1. 3.] [0.7071 0.7071]
    """
    k = len(matrix)
    even = k + k % 2  # whoever is paired with no one rests
    turns = 1 + (np.arange(even - 1) + np.arange(even - 1)[:, None]) % (even - 1)
    rounds = np.concatenate([np.zeros((even - 1, 1), int), turns], axis=1)
    pairs = np.stack([rounds[:, : even // 2], rounds[:, even // 2 :][:, ::-1]], axis=1)

    def rotate(n: Array, decomposition: tuple[Array, Array]) -> tuple[Array, Array]:
        a, vectors = decomposition
        i, j = jnp.asarray(pairs)[n % len(pairs)]
        twice, apart = 2 * a[i, j], a[j, j] - a[i, i]
        sign = jnp.where(apart < 0, -1, 1).astype(a.dtype)
        length = jnp.abs(apart) + jnp.hypot(apart, twice)
        tangent = jnp.where(twice == 0, 0, sign * twice / jnp.where(twice == 0, 1, length))
        cosine = 1 / jnp.sqrt(1 + tangent**2)
        sine = tangent * cosine
        turn = jnp.zeros_like(a).at[i, i].set(cosine).at[j, j].set(cosine)
        turn = turn.at[i, j].set(sine).at[j, i].set(-sine)
        return exactly(turn.T, exactly(a, turn)), exactly(vectors, turn)

    begin = jnp.zeros((even, even), matrix.dtype).at[:k, :k].set(matrix), jnp.eye(even, dtype=matrix.dtype)
    a, vectors = jax.lax.fori_loop(0, SWEEPS * len(pairs), rotate, begin)
    values, vectors = jnp.diag(a)[:k], vectors[:k, :k]
    order = jnp.argsort(values)
    return values[order], vectors[:, order]
