"""Linear algebra: solving triangular systems, and the factors of Cholesky, LU and QR.

The formulas are those of M. Giles, "Collected matrix derivative results for forward and reverse mode
algorithmic differentiation" (2008); what else is used is named at its rule. Eigenvalues are in
`eigenvalues.py`.

Whoever writes about matrices takes <A, B> = Re tr(A^H B) for the product of a cotangent with a tangent, JAX
Re tr(A^T B). The one cotangent is the conjugate of the other: `conjugated` lets a rule read like its source.
Every rule takes batches: the matrices are in the last two axes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from bpresearch.chainrule.primitives import Value, constant, primitive, refused

refused(
    "cholesky_update",
    "geqp3",
    "geqrf",
    "hessenberg",
    "householder_product",
    "ormqr",
    "schur",
    "symmetric_product",
    "tridiagonal",
    why="JAX has no derivative of it either",
)
constant("lu_pivots_to_permutation", why="integers")


def conjugated(backward: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Decorator of a backward written for the conjugates of JAX's cotangents."""

    def conj(bar):
        return bar if bar is None or not jnp.iscomplexobj(bar) else lax.conj(bar)

    @functools.wraps(backward)
    def converted(e, *bars):
        cotangents = backward(e, *map(conj, bars))
        return tuple(map(conj, cotangents)) if isinstance(cotangents, tuple) else conj(cotangents)

    return converted


def mm(*factors: Value) -> Value:
    """The product of two or more matrices, from the left to the right."""
    return functools.reduce(functools.partial(lax.batch_matmul, precision=lax.Precision.HIGHEST), factors)


def T(x: Value) -> Value:
    """Transpose."""
    return jnp.swapaxes(x, -1, -2)


def H(x: Value) -> Value:
    """Conjugate transpose."""
    return T(lax.conj(x) if jnp.iscomplexobj(x) else x)


def on_diagonal(x: Value) -> Value:
    """Where the element of a matrix is on the diagonal."""
    rows, columns = (lax.broadcasted_iota(jnp.int32, jnp.shape(x), x.ndim - i) for i in (2, 1))
    return rows == columns


def solve_lower(l: Value, b: Value, **options: bool) -> Value:  # noqa: E741
    """L^-1 B; as its options say, B L^-1 or with the transpose of L."""
    return lax.linalg.triangular_solve(l, b, lower=True, **{"left_side": True, **options})


@primitive("triangular_solve")
class TriangularSolveRule:
    """X = op(A)^-1 B, or X = B op(A)^-1: A is triangular, op may transpose and conjugate.

        op(A) X = B:   X_dot = op(A)^-1 (B_dot - op(A)_dot X)
                       B_bar = op(A)^-T X_bar,    op(A)_bar = -B_bar X^T
        X op(A) = B:   X_dot = (B_dot - X op(A)_dot) op(A)^-1
                       B_bar = X_bar op(A)^-T,    op(A)_bar = -X^T B_bar

    Only the triangle that is read has a derivative; a diagonal that is taken for ones has none.
    """

    def backward(e, x_bar):
        (a, _), (x,), p = e.ins, e.outs, e.params
        b_bar = lax.linalg.triangular_solve(a, x_bar, **{**p, "transpose_a": not p["transpose_a"]})
        if not e.wanted[0]:
            return None, b_bar
        op_a_bar = -(mm(b_bar, T(x)) if p["left_side"] else mm(T(x), b_bar))
        return _read(T(op_a_bar) if p["transpose_a"] else op_a_bar, p), b_bar

    def tangent(e, a_dot, b_dot):
        (a, _), (x,), p = e.ins, e.outs, e.params
        right = b_dot
        if a_dot is not None:
            op_a_dot = _read(a_dot, p)
            op_a_dot = T(op_a_dot) if p["transpose_a"] else op_a_dot
            product = mm(op_a_dot, x) if p["left_side"] else mm(x, op_a_dot)
            right = -product if b_dot is None else b_dot - product
        return lax.linalg.triangular_solve(a, right, **p)


def _read(a_dot: Value, params: dict[str, Any]) -> Value:
    """The part of a tangent or cotangent of A that is read, conjugated as A is."""
    skipped = 1 if params["unit_diagonal"] else 0
    part = jnp.tril(a_dot, -skipped) if params["lower"] else jnp.triu(a_dot, skipped)
    return lax.conj(part) if params["conjugate_a"] and jnp.iscomplexobj(part) else part


@primitive("tridiagonal_solve")
class TridiagonalSolveRule:
    """X = T^-1 B; T has the diagonals l, d and u:  (T X)_i = l_i X_{i-1} + d_i X_i + u_i X_{i+1}.

    X_dot = T^-1 (B_dot - T_dot X)
    B_bar = T^-T X_bar,    (l_i)_bar = -<(B_bar)_i, X_{i-1}>,  (d_i)_bar = -<(B_bar)_i, X_i>,
                           (u_i)_bar = -<(B_bar)_i, X_{i+1}>
    """

    def backward(e, x_bar):
        (lower, d, upper, _), (x,) = e.ins, e.outs
        b_bar = e.bind(_shift(upper, 1), d, _shift(lower, -1), x_bar)[0]
        bars = (-jnp.sum(b_bar * neighbour, -1) for neighbour in (_down(x), x, _up(x)))
        return *bars, b_bar

    def tangent(e, *dots):
        (lower, d, upper, _), (x,) = e.ins, e.outs
        *diagonals, b_dot = dots
        terms = [
            -jnp.expand_dims(dot, -1) * neighbour
            for dot, neighbour in zip(diagonals, (_down(x), x, _up(x)), strict=True)
            if dot is not None
        ]
        right = functools.reduce(jnp.add, terms if b_dot is None else [b_dot, *terms])
        return e.bind(lower, d, upper, right)[0]


def _shift(x: Value, by: int, axis: int = -1) -> Value:
    """x_{i-by} at i, zero from beyond the ends."""
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (by, -by, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), padding)


def _down(x: Value) -> Value:
    return _shift(x, 1, axis=-2)


def _up(x: Value) -> Value:
    return _shift(x, -1, axis=-2)


# Of a Hermitian matrix Cholesky reads the lower triangle. Older JAX takes a tangent as it is for all that,
# newer JAX its lower triangle; for Hermitian tangents, the ones that matter, both are the same.
READS_TRIANGLE = jax.__version_info__ >= (0, 11)


@primitive("cholesky")
class CholeskyRule:
    """A = L L^H.      P(X) is the lower triangle of X with half of its diagonal (I. Murray, 2016).

    L_dot = L P(L^-1 A_dot L^-H)
    A_bar = L^-H P(L^H L_bar) L^-1 =: S,    of the lower triangle alone: A_bar = 2 P((S + S^H) / 2)
    """

    @conjugated
    def backward(e, l_bar):
        l = jnp.tril(e.outs[0])  # noqa: E741
        product = solve_lower(l, _half(mm(H(l), l_bar)), transpose_a=True, conjugate_a=True)
        s = solve_lower(l, product, left_side=False)
        return _half(s + H(s)) if READS_TRIANGLE else s

    def tangent(e, a_dot):
        l = jnp.tril(e.outs[0])  # noqa: E741
        if READS_TRIANGLE:
            a_dot = _half(a_dot)
            a_dot = a_dot + H(a_dot)
        right = solve_lower(l, a_dot, left_side=False, transpose_a=True, conjugate_a=True)
        return mm(l, _half(solve_lower(l, right)))


def _half(x: Value) -> Value:
    lower = jnp.tril(x)
    return jnp.where(on_diagonal(x), 0.5 * lower, lower)


@primitive("lu")
class LURule:
    """A[p] = L U: L and U are packed in one matrix, p is the permutation (de Hoog, Anderssen, Lukas 2011).

        F = L^-1 A_dot[p] U^-1,         (LU)_dot = L tril(F, -1) + triu(F) U
        F_bar = tril(L^H LU_bar, -1) + triu(LU_bar U^H),     A_bar[p] = L^-H F_bar U^-H

    For a matrix that is not square, L and U are made square with the columns or rows of an identity.
    """

    @conjugated
    def backward(e, lu_bar, *_):
        lu, _, permutation = e.outs
        l, u = _square_factors(lu)  # noqa: E741
        f_bar = jnp.tril(mm(H(l), lu_bar), -1) + jnp.triu(mm(lu_bar, H(u)))
        left = solve_lower(l, f_bar, transpose_a=True, conjugate_a=True, unit_diagonal=True)
        permuted = lax.linalg.triangular_solve(u, left, lower=False, transpose_a=True, conjugate_a=True)
        return _rows(permuted, jnp.argsort(permutation, -1))

    def tangent(e, a_dot):
        lu, _, permutation = e.outs
        l, u = _square_factors(lu)  # noqa: E741
        left = solve_lower(l, _rows(a_dot, permutation), unit_diagonal=True)
        f = lax.linalg.triangular_solve(u, left, lower=False)
        return mm(l, jnp.tril(f, -1)) + mm(jnp.triu(f), u), None, None


def _rows(x: Value, order: Value) -> Value:
    return jnp.take_along_axis(x, jnp.expand_dims(order, -1), axis=-2)


def _square_factors(lu: Value) -> tuple[Value, Value]:
    """L of shape (m, m) and U of shape (n, n) from what is packed in (m, n)."""
    *_, m, n = lu.shape
    batch, zero, k = [(0, 0, 0)] * (lu.ndim - 2), jnp.zeros((), lu.dtype), min(m, n)
    l = lax.pad(jnp.tril(lu, -1)[..., :k], zero, [*batch, (0, 0, 0), (0, m - k, 0)])  # noqa: E741
    u = lax.pad(jnp.triu(lu)[..., :k, :], zero, [*batch, (0, n - k, 0), (0, 0, 0)])
    after = on_diagonal(u) & (lax.broadcasted_iota(jnp.int32, u.shape, u.ndim - 1) >= k)
    return jnp.where(on_diagonal(l), 1, l), jnp.where(after, 1, u)


@primitive("qr")
class QRRule:
    """A = Q R, or A[:, p] = Q R with pivoting (Walter and Lehmann 2010; Roberts and Roberts 2020).

    With m >= n rows and C = Q^H A_dot R^-1, and W = Q^H Q_dot, which is skew-Hermitian:

        W = tril(C, -1) - tril(C, -1)^H + i Im diag(C)
        Q_dot = Q (W - C) + A_dot R^-1,      R_dot = (C - W) R

        P = Q^H Q_bar - R_bar R^H,    N = -(triu(P, 1) + triu(P, 1)^H + Re diag(P))
        A_bar = (Q_bar + Q N) R^-H

    With m < n, A = [A1 A2], R = [R1 R2], A1 = Q R1 and R2 = Q^H A2. With `full_matrices` and m > n, Q is
    [Q1 Q2], and Q2 is what Householder's reflections make it: with Z = Q1[n:] (Q1[:n] - I)^-1,

        Q2_dot = Q1_dot Z^H - (Q1 + Q2 Z) (Q1_dot[n:] - Z Q1_dot[:n])^H      (arXiv 2409.13374)
    """

    @conjugated
    def backward(e, q_bar, r_bar, *_):
        (a,), (q, r, *pivots) = e.ins, e.outs
        *_, m, n = a.shape
        if m >= n:
            if q.shape[-1] > n:
                q_bar, q = _backward_of_complement(q, q_bar, n), q[..., :n]
                r_bar, r = r_bar[..., :n, :], r[..., :n, :]
            a_bar = _thin_backward(q, r, q_bar, r_bar)
        else:
            r1, r2, r1_bar, r2_bar = r[..., :m], r[..., m:], r_bar[..., :m], r_bar[..., m:]
            q_bar = q_bar + mm(q, r2, H(r2_bar))
            a_bar = jnp.concatenate((_thin_backward(q, r1, q_bar, r1_bar), mm(q, r2_bar)), -1)
        return T(_rows(T(a_bar), jnp.argsort(pivots[0], -1))) if pivots else a_bar

    def tangent(e, a_dot):
        (a,), (q, r, *pivots) = e.ins, e.outs
        *_, m, n = a.shape
        if pivots:
            a_dot = T(_rows(T(a_dot), pivots[0]))
        if m >= n:
            q_dot, r_dot = _thin_tangent(q[..., :n], r[..., :n, :], a_dot)
            if q.shape[-1] > n:
                q_dot = jnp.concatenate((q_dot, _tangent_of_complement(q, q_dot)), -1)
                r_dot = jnp.concatenate((r_dot, jnp.zeros_like(r[..., n:, :])), -2)
        else:
            q_dot, r1_dot = _thin_tangent(q, r[..., :m], a_dot[..., :m])
            r2_dot = mm(H(q), a_dot[..., m:]) + mm(H(q_dot), q, r[..., m:])
            r_dot = jnp.concatenate((r1_dot, r2_dot), -1)
        return q_dot, r_dot, *(None for _ in pivots)


def _thin_backward(q: Value, r: Value, q_bar: Value, r_bar: Value) -> Value:
    p = mm(H(q), q_bar) - mm(r_bar, H(r))
    above = jnp.triu(p, 1)
    n = -(above + H(above) + jnp.where(on_diagonal(p), p.real, 0).astype(p.dtype))
    right = q_bar + mm(q, n)
    return lax.linalg.triangular_solve(r, right, lower=False, transpose_a=True, conjugate_a=True)


def _thin_tangent(q: Value, r: Value, a_dot: Value) -> tuple[Value, Value]:
    a_dot_over_r = lax.linalg.triangular_solve(r, a_dot, lower=False)
    c = mm(H(q), a_dot_over_r)
    below = jnp.tril(c, -1)
    w = below - H(below)
    if jnp.iscomplexobj(c):
        w = w + jnp.where(on_diagonal(c), 1j * c.imag, 0)
    return mm(q, w - c) + a_dot_over_r, mm(c - w, r)


def _reflected(q: Value, n: int) -> tuple[Value, Value]:
    """Z and Q1 + Q2 Z."""
    q1, q2, top, below = q[..., :n], q[..., n:], q[..., :n, :n], q[..., n:, :n]
    z = H(jnp.linalg.solve(H(jnp.where(on_diagonal(top), top - 1, top)), H(below)))
    return z, q1 + mm(q2, z)


def _tangent_of_complement(q: Value, q1_dot: Value) -> Value:
    n = q1_dot.shape[-1]
    z, g = _reflected(q, n)
    return mm(q1_dot, H(z)) - mm(g, H(q1_dot[..., n:, :] - mm(z, q1_dot[..., :n, :])))


def _backward_of_complement(q: Value, q_bar: Value, n: int) -> Value:
    """The cotangent of Q1, from those of Q1 and of Q2, which is a function of Q1."""
    z, g = _reflected(q, n)
    q1_bar, q2_bar = q_bar[..., :n], q_bar[..., n:]
    below = -mm(H(q2_bar), g)
    return q1_bar + mm(q2_bar, z) + jnp.concatenate((-mm(H(z), below), below), -2)
