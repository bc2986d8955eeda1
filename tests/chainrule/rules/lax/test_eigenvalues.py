"""Eigenvalues and singular values, against JAX and against what the factors must multiply to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bpresearch.chainrule.rules.lax.eigenvalues as rules
from bpresearch.chainrule.primitives import Equation, NoPrimitiveRuleError


@pytest.fixture
def matrix():
    """`matrix(*shape, complex=False)`: normal deviates."""
    rng = np.random.default_rng(0)

    def make(*shape, complex=False):
        real = rng.normal(size=shape)
        return jnp.asarray(real + 1j * rng.normal(size=shape) if complex else real)

    return make


def hermitian(a):
    return (a + jnp.conj(jnp.swapaxes(a, -1, -2))) / 2


def equation(f, name, *args):
    """The equation of a primitive in a flat function, with what its rule keeps."""
    (eqn,) = (eqn for eqn in jax.make_jaxpr(f)(*args).jaxpr.eqns if eqn.primitive.name == name)
    e = Equation(eqn.primitive, eqn.params, args, wanted=(True,) * len(args))
    rule = {"eigh": rules.EighRule, "svd": rules.SVDRule, "eig": rules.EigRule}[name]
    outs, kept = rule.forward(e)
    return Equation(e.primitive, e.params, args, tuple(outs), e.wanted, kept=kept)


def eigh(a):
    return lax.linalg.eigh(a, symmetrize_input=False)


def svd(a, **options):
    return lax.linalg.svd(a, **{"full_matrices": False, **options})


@pytest.mark.parametrize(("shape", "complex"), [((3, 3), False), ((2, 3, 3), True)])
def test_eigh(assert_equations_right, matrix, complex, shape):
    assert_equations_right(eigh, hermitian(matrix(*shape, complex=complex)), names="eigh")


@pytest.mark.parametrize(
    ("shape", "complex", "vectors"),
    [
        ((3, 3), True, True),
        ((2, 4, 3), False, True),
        ((4, 3), True, True),
        ((3, 4), True, True),
        ((3, 4), True, False),
    ],
)
def test_svd(assert_equations_right, matrix, shape, complex, vectors):
    a = matrix(*shape, complex=complex)
    assert_equations_right(lambda a: svd(a, compute_uv=vectors), a, names="svd", tolerance=1e-11)


@pytest.mark.parametrize(
    ("left", "right", "complex"),
    [(False, False, True), (True, False, True), (False, True, True), (True, True, False)],
)
def test_eig(assert_equations_right, matrix, left, right, complex):
    def f(a):
        sides = {"compute_left_eigenvectors": left, "compute_right_eigenvectors": right}
        return lax.linalg.eig(a, enable_eigvec_derivs=True, **sides)

    assert_equations_right(f, matrix(3, 3, complex=complex), names="eig", tolerance=1e-11)


def test_eigenvalues_of_a_batch(assert_equations_right, matrix):
    def f(a):
        return lax.linalg.eig(a, compute_left_eigenvectors=False, compute_right_eigenvectors=False)

    assert_equations_right(f, matrix(2, 3, 3), names="eig", tolerance=1e-11)


def test_equal_eigenvalues_have_a_derivative_without_their_vectors(matrix):
    e, bar = equation(eigh, "eigh", jnp.eye(3)), jnp.asarray([2.0, 2.0, 2.0])
    for v_bar in (None, jnp.zeros((3, 3))):
        np.testing.assert_array_equal(rules.EighRule.backward(e, v_bar, bar), 2 * jnp.eye(3))
    assert not np.isfinite(rules.EighRule.backward(e, matrix(3, 3), bar)).all()


def test_equal_singular_values_have_a_derivative_without_their_vectors():
    e, bar, none = equation(svd, "svd", jnp.eye(3)), jnp.ones(3), jnp.zeros((3, 3))
    np.testing.assert_array_equal(rules.SVDRule.backward(e, bar, None, None), jnp.eye(3))
    np.testing.assert_array_equal(rules.SVDRule.backward(e, bar, none, none), jnp.eye(3))


@pytest.mark.parametrize("shape", [(4, 3), (3, 4)])
def test_the_factors_multiply_to_the_matrix(matrix, shape):
    """d(U S V^H) = A_dot."""
    a, a_dot = matrix(*shape, complex=True), matrix(*shape, complex=True)
    e = equation(svd, "svd", a)
    (s, u, vh), (s_dot, u_dot, vh_dot) = e.outs, rules.SVDRule.tangent(e, a_dot)
    sum_of_three = (u_dot * s[None]) @ vh + (u * s_dot[None]) @ vh + (u * s[None]) @ vh_dot
    np.testing.assert_allclose(sum_of_three, a_dot, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kept", [True, False])
def test_vectors_are_kept_where_only_values_are_results(matrix, kept):
    a, bar = matrix(4, 3), matrix(3)
    e = equation(lambda a: svd(a, compute_uv=False), "svd", a)
    assert len(e.outs) == 1 and len(e.kept) == 2
    expected = jax.vjp(lambda a: svd(a, compute_uv=False), a)[1](bar)[0]
    e = e if kept else Equation(e.primitive, e.params, e.ins, e.outs, e.wanted)
    np.testing.assert_allclose(rules.SVDRule.backward(e, bar), expected, rtol=1e-12, atol=1e-12)


def test_full_square_vectors_are_refused_as_in_jax(matrix):
    with pytest.raises(NoPrimitiveRuleError, match="full_matrices=True"):
        equation(lambda a: svd(a, full_matrices=True), "svd", matrix(4, 3))
    with pytest.raises(NotImplementedError):
        jax.jvp(lambda a: svd(a, full_matrices=True), (matrix(4, 3),), (matrix(4, 3),))


def test_eigenvectors_without_leave_are_refused_as_in_jax(matrix):
    with pytest.raises(NoPrimitiveRuleError, match="enable_eigvec_derivs"):
        equation(lax.linalg.eig, "eig", matrix(3, 3))
    with pytest.raises(NotImplementedError):
        jax.jvp(lax.linalg.eig, (matrix(3, 3),), (matrix(3, 3),))


def test_part_of_a_decomposition_is_refused_as_in_jax(matrix):
    a = hermitian(matrix(3, 3))
    part = Equation(*_of(lambda a: eigh(a), a), (a,), wanted=(True,))
    part.params["subset_by_index"] = (0, 2)
    with pytest.raises(NoPrimitiveRuleError, match="only some"):
        rules.EighRule.forward(part)


def _of(f, *args):
    (eqn,) = jax.make_jaxpr(f)(*args).jaxpr.eqns
    return eqn.primitive, dict(eqn.params)
