"""Eigenvalues and singular values, with their vectors (Giles 2008, section 3; Townsend 2016).

First-order perturbation theory. The cotangent of a vector is divided by the gaps between its value and the
others: with equal values there is no derivative, and what comes out is not finite, unless nothing depends on
how their vectors lie. An equation whose vectors are not used has a derivative at equal values, too.

Cotangents are conjugated as in `linear_algebra.py`.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from bpresearch.chainrule.primitives import Equation, NoPrimitiveRuleError, Value, primitive
from bpresearch.chainrule.rules.lax.linear_algebra import H, T, conjugated, mm, on_diagonal


def over_gaps(x: Value, gaps: Value) -> Value:
    """x_ij / gaps_ij off the diagonal, zero on it; 0 / 0 is zero: nothing depends on that pair of vectors."""
    none = on_diagonal(x) | ((x == 0) & (gaps == 0))
    return jnp.where(none, 0, x / jnp.where(none, 1, gaps))


def gaps(w: Value) -> Value:
    """w_j - w_i at (i, j)."""
    return jnp.expand_dims(w, -2) - jnp.expand_dims(w, -1)


def diagonal(x: Value) -> Value:
    """The vector on the diagonal of a matrix."""
    return jnp.diagonal(x, axis1=-2, axis2=-1)


def plus_diagonal(x: Value, d: Value) -> Value:
    """A matrix with a vector added to its diagonal."""
    return x + jnp.where(on_diagonal(x), jnp.expand_dims(d, -1), 0).astype(x.dtype)


def scaled(x: Value, d: Value) -> Value:
    """X diag(d)."""
    return x * jnp.expand_dims(d, -2)


def _whole(e: Equation, count: int) -> None:
    subset = e.params.get("subset_by_index")
    if subset is not None and tuple(subset) != (0, count):
        raise NoPrimitiveRuleError(
            f"{e.name} at {e.place} has no derivative: only some of the vectors are known"
        )


@primitive("eigh")
class EighRule:
    """A = V diag(w) V^H, A Hermitian.      F_ij = 1 / (w_j - w_i), zero on the diagonal

        w_dot = Re diag(V^H A_dot V),     V_dot = V (F * V^H A_dot V)
        A_bar = V (diag(w_bar) + F * V^H V_bar) V^H

    As in JAX a tangent is taken as it is, though one triangle is read: it is right for Hermitian tangents.
    """

    def forward(e):
        _whole(e, e.ins[0].shape[-1])
        return e.bind(*e.ins), ()

    @conjugated
    def backward(e, v_bar, w_bar):
        v, w = e.outs
        if v_bar is None:
            return mm(scaled(v, w_bar.astype(v.dtype)), H(v))
        inner = over_gaps(mm(H(v), v_bar), gaps(w))
        return mm(v, inner if w_bar is None else plus_diagonal(inner, w_bar), H(v))

    def tangent(e, a_dot):
        _whole(e, e.ins[0].shape[-1])
        v, w = e.outs
        inner = mm(H(v), a_dot, v)
        return mm(v, over_gaps(inner, gaps(w))), diagonal(inner).real


@primitive("svd")
class SVDRule:
    """A = U S V^H, S = diag(s).      D = U^H A_dot V,   F_ij = 1 / (s_j^2 - s_i^2), zero on the diagonal

        s_dot = Re diag(D)
        U_dot = U (F * (D S + S D^H) + i Im diag(D) / S) + (I - U U^H) A_dot V S^-1
        V_dot = V (F * (S D + D^H S)) + (I - V V^H) A_dot^H U S^-1

        J = F * U^H U_bar,   K = F * V^H V_bar
        D_bar = diag(s_bar) + (J + J^H) S + S (K + K^H) + i Im diag(U^H U_bar) / S
        A_bar = U D_bar V^H + (I - U U^H) U_bar S^-1 V^H + U S^-1 V_bar^H (I - V V^H)

    Of a complex pair of vectors the phase is free; as in JAX U turns and V does not. Without vectors the
    equation is evaluated with them, once. Square U and V of a matrix that is not are refused, as by JAX.
    """

    def forward(e):
        if e.params["compute_uv"]:
            _thin(e)
            return e.bind(*e.ins), ()
        s, u, vh = _with_vectors(e)
        return [s], (u, vh)

    @conjugated
    def backward(e, s_bar, u_bar=None, vh_bar=None):
        u, vh = e.outs[1:] or e.kept or _with_vectors(e)[1:]
        if u_bar is None and vh_bar is None:
            return mm(scaled(u, s_bar.astype(u.dtype)), vh)
        s, v, (m, n) = e.outs[0], H(vh), e.ins[0].shape[-2:]
        d_bar = plus_diagonal(jnp.zeros_like(vh[..., : s.shape[-1]]), s_bar) if s_bar is not None else 0
        beside_u, beside_v = None, None
        if u_bar is not None:
            p = mm(H(u), u_bar)
            j = over_gaps(p, _gaps_of_squares(s))
            d_bar = d_bar + scaled(j + H(j), s)
            if jnp.iscomplexobj(p):
                d_bar = plus_diagonal(d_bar, 1j * diagonal(p).imag * _inverse(s))
            beside_u = scaled(u_bar - mm(u, p), 1 / s) if m > n else None
        if vh_bar is not None:
            v_bar = H(vh_bar)
            q = mm(vh, v_bar)
            k = over_gaps(q, _gaps_of_squares(s))
            d_bar = d_bar + T(scaled(T(k + H(k)), s))
            beside_v = scaled(v_bar - mm(v, q), 1 / s) if n > m else None
        left = mm(u, d_bar)
        a_bar = mm(left if beside_u is None else left + beside_u, vh)
        return a_bar if beside_v is None else a_bar + mm(u, H(beside_v))

    def tangent(e, a_dot):
        if e.params["compute_uv"]:
            _thin(e)
        s, u, vh = e.outs if e.params["compute_uv"] else _with_vectors(e)
        (m, n), v = a_dot.shape[-2:], H(vh)
        d = mm(H(u), a_dot, v)
        s_dot = diagonal(d).real
        if not e.params["compute_uv"]:
            return s_dot
        ds, sd = scaled(d, s), T(scaled(T(d), s))
        inner = over_gaps(ds + H(ds), _gaps_of_squares(s))
        if jnp.iscomplexobj(d):
            inner = plus_diagonal(inner, 1j * diagonal(d).imag * _inverse(s))
        u_dot, v_dot = mm(u, inner), mm(v, over_gaps(sd + H(sd), _gaps_of_squares(s)))
        if m > n:
            out = mm(a_dot, v)
            u_dot = u_dot + scaled(out - mm(u, H(u), out), 1 / s)
        if n > m:
            out = mm(H(a_dot), u)
            v_dot = v_dot + scaled(out - mm(v, vh, out), 1 / s)
        return s_dot, u_dot, H(v_dot)


def _gaps_of_squares(s: Value) -> Value:
    """s_j^2 - s_i^2, in the form that loses no digits."""
    return gaps(s) * (jnp.expand_dims(s, -2) + jnp.expand_dims(s, -1))


def _inverse(s: Value) -> Value:
    """1 / s, and zero for zero."""
    return jnp.where(s == 0, 0, 1 / jnp.where(s == 0, 1, s))


def _with_vectors(e: Equation) -> Sequence[Value]:
    return e.primitive.bind(*e.ins, **{**e.params, "compute_uv": True, "full_matrices": False})


def _thin(e: Equation) -> None:
    m, n = e.ins[0].shape[-2:]
    _whole(e, min(m, n))
    if e.params["full_matrices"] and m != n:
        raise NoPrimitiveRuleError(
            f"svd at {e.place} has no derivative with full_matrices=True: the vectors beside those of "
            "singular values are free, and JAX refuses them as well"
        )


@primitive("eig")
class EigRule:
    """A V = V diag(w), and A^H U = U diag(w*) for the left ones.

        F_ij = 1 / (w_j - w_i), zero on the diagonal
        P = V^-1 A_dot V,    w_dot = diag(P),    V_dot = X + V diag(c),   X = V (F * P)

    A vector has length one, and its largest element, in row k, is real: that fixes its multiple,

        c_j = -Re(v_j^H x_j) - i Im(x_kj) / v_kj.

    Backward, with g_j = v_j^H (v_j)_bar:

        X_bar = V_bar - V diag(Re g) - i Im(g_j) / v_kj  in row k of column j
        A_bar = V^-H (diag(w_bar) + F^* * V^H X_bar) V^H

    Vectors are differentiated where the user says so, with `enable_eigvec_derivs`, as in JAX.
    """

    def forward(e):
        _allowed(e)
        outs = _with_right(e)
        return outs[: len(outs) - (not e.params["compute_right_eigenvectors"])], (outs[-1],)

    @conjugated
    def backward(e, w_bar, *vector_bars):
        vr = e.kept[0] if e.kept else _with_right(e)[-1]
        left, right = _sides(e, vector_bars)
        a_bar = _eig_backward(e.outs[0], vr, w_bar, right)
        if left is not None:
            a_bar = a_bar + H(_eig_backward(lax.conj(e.outs[0]), e.outs[1], None, left))
        return a_bar.astype(e.ins[0].dtype) if jnp.iscomplexobj(e.ins[0]) else a_bar.real

    def tangent(e, a_dot):
        _allowed(e)
        vr = e.outs[-1] if e.params["compute_right_eigenvectors"] else _with_right(e)[-1]
        a_dot = a_dot.astype(vr.dtype)
        w_dot, vr_dot = _eig_tangent(e.outs[0], vr, a_dot)
        dots = [w_dot]
        if e.params["compute_left_eigenvectors"]:
            dots.append(_eig_tangent(lax.conj(e.outs[0]), e.outs[1], H(a_dot))[1])
        return (*dots, vr_dot) if e.params["compute_right_eigenvectors"] else tuple(dots)


def _eig_tangent(w: Value, v: Value, a_dot: Value) -> tuple[Value, Value]:
    p = jnp.linalg.solve(v, mm(a_dot, v))
    x = mm(v, over_gaps(p, gaps(w)))
    largest, v_k = _largest(v)
    x_k = jnp.sum(jnp.where(largest, x, 0), -2)
    c = -jnp.sum(lax.conj(v) * x, -2).real - 1j * (x_k.imag / v_k)
    return diagonal(p), x + scaled(v, c)


def _eig_backward(w: Value, v: Value, w_bar: Value | None, v_bar: Value | None) -> Value:
    inner = jnp.zeros_like(v)
    if v_bar is not None:
        g = jnp.sum(lax.conj(v) * v_bar, -2)
        largest, v_k = _largest(v)
        x_bar = v_bar - scaled(v, g.real.astype(v.dtype))
        x_bar = x_bar - jnp.where(largest, jnp.expand_dims(1j * (g.imag / v_k), -2), 0)
        inner = over_gaps(mm(H(v), x_bar), lax.conj(gaps(w)))
    if w_bar is not None:
        inner = plus_diagonal(inner, w_bar)
    return jnp.linalg.solve(H(v), mm(inner, H(v)))


def _largest(v: Value) -> tuple[Value, Value]:
    """Where in each column the largest element is, and the element, which is real."""
    k = jnp.argmax(jnp.abs(v), axis=-2, keepdims=True)
    largest = lax.broadcasted_iota(k.dtype, v.shape, v.ndim - 2) == k
    return largest, jnp.sum(jnp.where(largest, v.real, 0), -2)


def _with_right(e: Equation) -> Sequence[Value]:
    return e.primitive.bind(*e.ins, **{**e.params, "compute_right_eigenvectors": True})


def _sides(e: Equation, bars: Sequence[Value | None]) -> tuple[Value | None, Value | None]:
    remaining = iter(bars)
    left = next(remaining) if e.params["compute_left_eigenvectors"] else None
    return left, next(remaining) if e.params["compute_right_eigenvectors"] else None


def _allowed(e: Equation) -> None:
    vectors: Any = e.params["compute_left_eigenvectors"] or e.params["compute_right_eigenvectors"]
    if vectors and not e.params.get("enable_eigvec_derivs", True):
        raise NoPrimitiveRuleError(
            f"eig at {e.place} has derivatives of its vectors only with enable_eigvec_derivs=True of "
            "jax.lax.linalg.eig, as in JAX: they rest on how the vectors are normalized"
        )
