"""Triangular and tridiagonal systems, and the factors of matrices, against JAX and against their product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.scipy.sparse.linalg import cg

import bpresearch.chainrule.rules.lax.linear_algebra as rules
from bpresearch import chainrule
from bpresearch.chainrule import NoPrimitiveRuleError
from bpresearch.chainrule.primitives import Equation, table


@pytest.fixture
def matrix():
    """`matrix(*shape, complex=False)`: normal deviates."""
    rng = np.random.default_rng(0)

    def make(*shape, complex=False):
        real = rng.normal(size=shape)
        return jnp.asarray(real + 1j * rng.normal(size=shape) if complex else real)

    return make


def positive(a):
    return a @ jnp.conj(jnp.swapaxes(a, -1, -2)) + a.shape[-1] * jnp.expand_dims(
        jnp.eye(a.shape[-1]), range(a.ndim - 2)
    )


@pytest.mark.parametrize("left_side", [True, False])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("transpose_a", [True, False])
@pytest.mark.parametrize(("complex", "conjugate_a"), [(False, False), (True, False), (True, True)])
def test_triangular_solve(
    assert_equations_right, matrix, left_side, lower, transpose_a, complex, conjugate_a
):
    unit_diagonal = left_side == lower
    a, b = positive(matrix(3, 3, complex=complex)), matrix(3, 2, complex=complex)
    options = {"left_side": left_side, "lower": lower, "transpose_a": transpose_a, "conjugate_a": conjugate_a}

    def f(a, b):
        return lax.linalg.triangular_solve(a, b, unit_diagonal=unit_diagonal, **options)

    assert_equations_right(f, a, b if left_side else b.T, names="triangular_solve")


def test_triangular_solve_in_batches(assert_equations_right, matrix):
    a, b = positive(matrix(2, 3, 3)), matrix(2, 3, 1)
    assert_equations_right(lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True), a, b)


def test_tridiagonal_solve(assert_equations_right, matrix):
    lower, d, upper = matrix(2, 4), matrix(2, 4) + 5, matrix(2, 4)
    args = lower.at[..., 0].set(0), d, upper.at[..., -1].set(0), matrix(2, 4, 2)
    assert_equations_right(lax.linalg.tridiagonal_solve, *args, names="tridiagonal_solve")


@pytest.mark.parametrize(("shape", "complex"), [((3, 3), False), ((2, 3, 3), True)])
def test_cholesky(assert_equations_right, matrix, complex, shape):
    a = positive(matrix(*shape, complex=complex))
    assert_equations_right(lax.linalg.cholesky_p.bind, a, names="cholesky")


def test_the_product_of_cholesky_factors_is_the_matrix(matrix):
    """d(L L^H) = A_dot, and the cotangent is its transpose, for a Hermitian tangent."""
    a, a_dot = positive(matrix(4, 4, complex=True)), positive(matrix(4, 4, complex=True))
    e = equation(lax.linalg.cholesky_p.bind, "cholesky", a)
    (factor,) = e.outs
    factor, l_dot = jnp.tril(factor), table.rules["cholesky"].tangent(e, a_dot)
    np.testing.assert_allclose(
        l_dot @ factor.conj().T + factor @ l_dot.conj().T, a_dot, rtol=1e-12, atol=1e-12
    )
    l_bar = matrix(4, 4, complex=True)
    a_bar = table.rules["cholesky"].backward(e, l_bar)
    assert np.allclose(jnp.sum(l_bar * l_dot).real, jnp.sum(a_bar * a_dot).real, rtol=1e-12)


@pytest.mark.parametrize(("shape", "complex"), [((4, 3), True), ((3, 4), False)])
def test_lu(assert_equations_right, matrix, complex, shape):
    assert_equations_right(lax.linalg.lu, matrix(*shape, complex=complex), names="lu")


@pytest.mark.parametrize(
    ("shape", "full", "complex"),
    [((2, 4, 3), False, False), ((4, 3), True, True), ((3, 4), False, True)],
)
def test_qr(assert_equations_right, matrix, shape, full, complex):
    a = matrix(*shape, complex=complex)
    assert_equations_right(lambda a: lax.linalg.qr(a, full_matrices=full), a, names="qr", tolerance=1e-11)


def test_qr_with_pivoting(assert_equations_right, matrix):
    assert_equations_right(
        lambda a: lax.linalg.qr(a, pivoting=True, full_matrices=False), matrix(4, 3), names="qr"
    )


def test_qr_with_pivoting_in_batches(matrix):
    """JAX itself fails there: each matrix has pivots of its own."""
    a, a_dot, q_bar, r_bar = matrix(2, 4, 3), matrix(2, 4, 3), matrix(2, 4, 3), matrix(2, 3, 3)

    def both(i):
        e = equation(lambda a: lax.linalg.qr(a, pivoting=True, full_matrices=False), "qr", a[i])
        return rules.QRRule.backward(e, q_bar[i], r_bar[i]), *rules.QRRule.tangent(e, a_dot[i])[:2]

    whole = both(slice(None))
    for i in range(2):
        for found, expected in zip(whole, both(i), strict=True):
            np.testing.assert_allclose(found[i], expected, rtol=1e-12, atol=1e-12)


def equation(f, name, *args):
    """The evaluated equation of a primitive in a flat function."""
    (eqn,) = (eqn for eqn in jax.make_jaxpr(f)(*args).jaxpr.eqns if eqn.primitive.name == name)
    e = Equation(eqn.primitive, eqn.params, args, wanted=(True,) * len(args))
    return e.with_results(e.bind(*args))


def test_zero_cotangents_of_unused_factors_change_nothing(matrix):
    a = matrix(4, 3)
    e = equation(lambda a: lax.linalg.qr(a, full_matrices=False), "qr", a)
    r_bar = matrix(3, 3)
    expected = jax.vjp(lambda a: lax.linalg.qr(a, full_matrices=False)[1], a)[1](r_bar)[0]
    np.testing.assert_allclose(rules.QRRule.backward(e, jnp.zeros((4, 3)), r_bar), expected, rtol=1e-12)


def test_what_jax_refuses_is_refused():
    for name in ("householder_product", "hessenberg", "schur", "tridiagonal", "geqrf", "ormqr"):
        assert name in table.refused
    assert "lu_pivots_to_permutation" in table.constants


@pytest.fixture
def x():
    return jnp.linspace(-1.0, 1.5, 12).reshape(4, 3)


def test_a_linear_system_solved_by_conjugate_gradients(x, assert_program_right):
    """`jax.scipy.sparse.linalg.cg`: neither the while loop in it nor its start is differentiated."""

    def f(d, b):
        return cg(lambda y: d * y + 0.1 * jnp.sum(y), jnp.sin(b), tol=1e-14)[0]

    assert_program_right(f, jnp.array([2.0, 3.0, 5.0]), x[0], tolerance=1e-11)


def test_a_linear_system_that_is_not_symmetric(x, assert_program_right):
    """`lax.custom_linear_solve` with a transposed solve of its own, in a `jit`."""

    @jax.jit
    def f(a, b):
        def by(matvec, b):
            return jnp.linalg.inv(lax.stop_gradient(a)) @ b

        def transposed(vecmat, b):
            return jnp.linalg.inv(lax.stop_gradient(a)).T @ b

        return lax.custom_linear_solve(lambda y: a @ y, b, by, transposed)

    a = jnp.eye(3) * 2 + x[:3] * 0.3
    assert_program_right(f, a, x[3], tolerance=1e-11)
    a_bar = chainrule.grad(lambda a: jnp.sum(f(a, x[3])))(a)
    expected = -np.outer(np.linalg.solve(a.T, np.ones(3)), np.linalg.solve(a, x[3]))
    np.testing.assert_allclose(a_bar, expected, rtol=1e-12)


def test_what_has_no_transpose_says_so(x):
    def f(b):
        return lax.custom_linear_solve(lambda y: 2 * y, b, lambda matvec, b: b / 2)

    with pytest.raises(NoPrimitiveRuleError, match=r"custom_linear_solve at .* no transpose_solve"):
        chainrule.grad(lambda b: jnp.sum(f(b)))(x[0])
