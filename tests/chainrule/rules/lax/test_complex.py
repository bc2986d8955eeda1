"""Complex numbers and their parts against JAX, whose convention for cotangents is ours."""

import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax import lax

from bpresearch.chainrule.rules.lax import complex  # noqa: F401

Z = [0.3 + 0.4j, -1.7 + 0.2j, 0j, 2.1 - 0.7j]


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("f", [lax.real, lax.imag, lax.conj, lax.abs], ids=lambda f: f.__name__)
def test_parts(f, dtype, assert_equations_right):
    assert_equations_right(
        f, jnp.asarray(Z, dtype), names=f.__name__, tolerance=1e-6 if dtype == "complex64" else 1e-14
    )


def test_conjugate_of_a_real_number(assert_equations_right):
    assert_equations_right(
        lambda x: lax.conj_p.bind(x, input_dtype=x.dtype), jnp.asarray([0.5, -2.0]), names="conj"
    )


@settings(max_examples=10)
@given(arrays(float, 3, elements=st.floats(-9, 9)), arrays(float, 3, elements=st.floats(-9, 9)))
def test_a_number_from_its_parts(assert_equations_right, a, b):
    assert_equations_right(lax.complex, jnp.asarray(a), jnp.asarray(b), names="complex")


@pytest.mark.parametrize("shapes", [((), (2, 3)), ((2, 3), ())], ids=str)
def test_one_part_for_all(shapes, assert_equations_right):
    a, b = (jnp.full(shape, 0.5) for shape in shapes)
    assert_equations_right(lambda a, b: lax.complex_p.bind(a, b), a, b, names="complex")
