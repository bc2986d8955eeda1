"""Contractions: axes of each kind in any order, ragged groups, convolutions with every option."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import bpresearch.chainrule.rules.lax.contractions  # noqa: F401  (fills the table)
from bpresearch.chainrule.primitives import Equation, NoPrimitiveRuleError, table


def normal(seed, shape, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    draw = rng.normal(size=shape)
    return jnp.asarray(draw + 1j * rng.normal(size=shape) if dtype is complex else draw, dtype)


@pytest.mark.parametrize(
    "subscripts, shapes",
    [
        ("ik,kj->ij", [(3, 4), (4, 2)]),
        ("i,j->ij", [(3,), (2,)]),
        ("bik,bjk->bij", [(2, 3, 4), (2, 5, 4)]),
        ("bqhd,bkhd->bhqk", [(2, 3, 2, 4), (2, 5, 2, 4)]),
        ("klm,mjl->kj", [(2, 3, 4), (4, 5, 3)]),
    ],
)
def test_dot_general_has_jax_s_derivative(assert_equations_right, subscripts, shapes):
    x, w = (normal(i, shape, complex if len(shape) == 2 else float) for i, shape in enumerate(shapes))
    assert_equations_right(lambda x, w: jnp.einsum(subscripts, x, w), x, w, names="dot_general")


@given(data=st.data())
@settings(max_examples=3)
def test_dot_general_with_axes_in_any_order(assert_equations_right, data):
    axes = {"batch": 2, "other batch": 1, "shared": 3, "also shared": 2}
    lengths = {**axes, "x's": 4, "w's": 5}
    of_x = data.draw(st.permutations([*axes, "x's"]))
    of_w = data.draw(st.permutations([*axes, "w's"]))
    batch = data.draw(st.permutations(["batch", "other batch"]))
    shared = data.draw(st.permutations(["shared", "also shared"]))
    numbers = tuple(
        tuple([of.index(name) for name in group] for of in (of_x, of_w)) for group in (shared, batch)
    )
    x, w = (normal(i, [lengths[name] for name in of]) for i, of in enumerate((of_x, of_w)))
    assert_equations_right(lambda x, w: lax.dot_general(x, w, numbers), x, w, names="dot_general")


def test_dot_general_gives_cotangents_of_the_operands_types(assert_equations_right):
    x, w = normal(0, (3, 4), jnp.bfloat16), normal(1, (4, 2), jnp.bfloat16)
    assert_equations_right(lambda x, w: x @ w, x, w, names="dot_general", tolerance=1e-2)
    wide = {"preferred_element_type": jnp.float32, "precision": lax.Precision.HIGHEST}
    assert_equations_right(lambda x, w: jnp.matmul(x, w, **wide), x, w, names="dot_general", tolerance=1e-2)


def test_only_cotangents_that_are_wanted_are_computed():
    x, w = normal(0, (3, 4)), normal(1, (4, 2))
    eqn = jax.make_jaxpr(lambda x, w: x @ w)(x, w).jaxpr.eqns[-1]
    for wanted in [(True, False), (False, True)]:
        e = Equation(eqn.primitive, eqn.params, (x, w), (x @ w,), wanted)
        bars = table.rules["dot_general"].backward(e, x @ w)
        assert [bar is not None for bar in bars] == [*wanted]


RAGGED = {
    "rows": ((5, 3), (2, 3, 4), ([1], [1], [], []), 0, [0], [2, 3]),
    "rows left over": ((5, 3), (2, 3, 4), ([1], [1], [], []), 0, [0], [2, 1]),
    "columns": ((3, 5), (4, 2, 3), ([0], [2], [], []), 1, [1], [2, 3]),
    "in a batch": ((5, 2, 3), (3, 2, 4, 2), ([2], [0], [1], [3]), 0, [1], [[2, 3], [1, 4]]),
}


def ragged(x_shape, w_shape, numbers, ragged, groups, sizes):
    x_k, w_k, x_b, w_b = numbers
    numbers = lax.RaggedDotDimensionNumbers(((x_k, w_k), (x_b, w_b)), [ragged], groups)
    f = lambda x, w: lax.ragged_dot_general(x, w, jnp.asarray(sizes), numbers)  # noqa: E731
    return f, normal(0, x_shape), normal(1, w_shape)


@pytest.mark.parametrize("case", RAGGED.values(), ids=RAGGED)
def test_ragged_dot_general_has_jax_s_derivative(assert_equations_right, case):
    assert_equations_right(*ragged(*case), names="ragged_dot_general")


def test_ragged_dot_general_refuses_backward_where_groups_are_contracted():
    f, x, w = ragged((3, 5), (5, 4), ([1], [0], [], []), 1, [], [2, 3])
    eqn = jax.make_jaxpr(f)(x, w).jaxpr.eqns[-1]
    y, sizes = f(x, w), jnp.array([2, 3])
    e = Equation(eqn.primitive, eqn.params, (x, w, sizes), (y,), (True, True, False))
    with pytest.raises(NoPrimitiveRuleError, match="contracted or a batch axis"):
        table.rules["ragged_dot_general"].backward(e, y)
    along = f(x, 2 * w)
    np.testing.assert_allclose(table.rules["ragged_dot_general"].tangent(e, None, 2 * w, None), along)


CONVOLUTIONS = {
    "plain": {},
    "strides that leave elements over": {"window_strides": (2, 3)},
    "padding": {"padding": ((2, 1), (0, 3))},
    "cropping": {"padding": ((-1, 1), (2, -2))},
    "a dilated window": {"rhs_dilation": (2, 1), "padding": "SAME"},
    "a dilated input": {"lhs_dilation": (2, 3), "window_strides": (3, 2), "padding": ((0, 0), (1, 1))},
    "feature groups": {"feature_group_count": 2, "window_strides": (2, 1)},
    "depthwise": {"feature_group_count": 4},
    "batch groups": {"batch_group_count": 2, "rhs_dilation": (1, 2)},
    "everything": {
        "window_strides": (2, 1),
        "padding": ((1, 2), (3, 0)),
        "lhs_dilation": (1, 2),
        "rhs_dilation": (2, 1),
        "feature_group_count": 2,
    },
}


@pytest.mark.parametrize("number, options", list(enumerate(CONVOLUTIONS.values())), ids=CONVOLUTIONS)
def test_convolution_has_jax_s_derivative(assert_equations_right, number, options):
    layout = [("NHWC", "HWIO", "NHWC"), ("HNCW", "OHIW", "CWNH")][number % 2]
    of_x, of_w, _ = layout
    lengths = {"N": 4, "H": 7, "W": 6, "C": 4}
    x = normal(0, [lengths[axis] for axis in of_x])
    lengths = {"H": 3, "W": 2, "I": 4 // options.get("feature_group_count", 1), "O": 4}
    w = normal(1, [lengths[axis] for axis in of_w])
    options = {"window_strides": (1, 1), "padding": "VALID", "dimension_numbers": layout, **options}
    f = lambda x, w: lax.conv_general_dilated(x, w, **options)  # noqa: E731
    assert_equations_right(f, x, w, names="conv_general_dilated")


@given(
    n=st.integers(1, 7),
    w=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.tuples(st.integers(-1, 3), st.integers(-1, 3)),
    dilations=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([(1, 1), (3, 1), (1, 3)]),
)
@settings(max_examples=5)
def test_convolution_of_any_geometry(assert_equations_right, n, w, stride, padding, dilations, groups):
    features, batches = groups
    x, w = normal(0, (3, 3, n)), normal(1, (6, 3 // features, w))
    options = {"feature_group_count": features, "batch_group_count": batches}
    geometry = ((stride,), (padding,), (dilations[0],), (dilations[1],))
    f = lambda x, w: lax.conv_general_dilated(x, w, *geometry, **options)  # noqa: E731
    assert_equations_right(f, x, w, names="conv_general_dilated")


def test_convolution_gives_cotangents_of_the_operands_types(assert_equations_right):
    x, w = normal(0, (1, 2, 5), jnp.bfloat16), normal(1, (3, 2, 2), jnp.bfloat16)
    for wide in (None, jnp.float32):
        f = lambda x, w, wide=wide: lax.conv(x, w, (1,), "SAME", preferred_element_type=wide)  # noqa: E731
        assert_equations_right(f, x, w, names="conv_general_dilated", tolerance=1e-2)
    z, v = normal(0, (1, 2, 5), complex), normal(1, (3, 2, 2), complex)
    assert_equations_right(lambda x, w: lax.conv(x, w, (2,), "VALID"), z, v, names="conv_general_dilated")
