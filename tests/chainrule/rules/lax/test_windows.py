"""Windows: sums, extrema with ties, and any operation, with strides, padding and dilations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import bpresearch.chainrule.rules.lax.windows  # noqa: F401  (fills the table)
from bpresearch.chainrule.primitives import Equation, table
from bpresearch.chainrule.rules.lax import windows

X = np.random.default_rng(0).normal(size=(6, 5))
TIES = np.round(X)

GEOMETRIES = {
    "next to each other": dict(window=(2, 2), strides=(2, 2)),
    "next to each other, padded": dict(window=(3, 2), strides=(3, 2), padding=((2, 1), (1, 0))),
    "next to each other, cropped": dict(window=(2, 2), strides=(2, 2), padding=((-1, 0), (0, -2))),
    "overlapping": dict(window=(3, 2), strides=(2, 1), padding="SAME"),
    "with gaps between": dict(window=(1, 2), strides=(2, 3)),
    "of a dilated array": dict(window=(2, 3), strides=(2, 1), base_dilation=(2, 3)),
    "dilated": dict(window=(2, 3), strides=(1, 2), padding="SAME", window_dilation=(3, 2)),
    "nowhere": dict(window=(7, 1), strides=(1, 1)),
}
START = {lax.add: 0.0, lax.max: -np.inf, lax.min: np.inf}
NAMES = {lax.add: "reduce_window_sum", lax.max: "reduce_window_max", lax.min: "reduce_window_min"}


def over_windows(operation, start, window, strides, padding="VALID", **dilations):
    return lambda x: lax.reduce_window(x, start, operation, window, strides, padding, **dilations)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_window_sums_have_jax_s_derivative(assert_equations_right, geometry):
    assert_equations_right(over_windows(lax.add, 0.0, **geometry), X, names="reduce_window_sum")


ONE_SIDED = ("next to each other, cropped", "dilated")
BOTH_SIDED = [([lax.max, lax.min][i % 2], k) for i, k in enumerate(GEOMETRIES) if k not in ONE_SIDED]


@pytest.mark.parametrize("few", [windows.FEW, 0], ids=["taken apart", "scattered"])
@pytest.mark.parametrize("operation, geometry", BOTH_SIDED)
def test_window_extrema_have_jax_s_derivative(assert_equations_right, monkeypatch, operation, geometry, few):
    monkeypatch.setattr(windows, "FEW", few)
    f = over_windows(operation, START[operation], **GEOMETRIES[geometry])
    assert_equations_right(f, X, names=NAMES[operation])


@pytest.mark.parametrize("operation", [lax.max, lax.min])
@pytest.mark.parametrize("geometry", ONE_SIDED)
def test_window_extrema_of_which_jax_has_the_tangent_only(operation, geometry):
    f = over_windows(operation, START[operation], **GEOMETRIES[geometry])
    e, x_dot = evaluated(f, X), jnp.cos(X)
    y_dot = table.rules[NAMES[operation]].tangent(e, x_dot)
    np.testing.assert_allclose(y_dot, jax.jvp(f, (X,), (x_dot,))[1])
    assert_backward_is_the_transpose(e)


@pytest.mark.parametrize("operation", [lax.max, lax.min])
@pytest.mark.parametrize("geometry", ["overlapping", "next to each other, padded"])
def test_of_equal_elements_the_first_wins_as_in_jax_s_backward(operation, geometry):
    """JAX's tangent may take another of them; here it takes the same."""
    f = over_windows(operation, START[operation], **GEOMETRIES[geometry])
    e = evaluated(f, TIES)
    y_bar = jnp.sin(3 * e.outs[0])
    expected = jax.vjp(f, jnp.asarray(TIES))[1](y_bar)[0]
    np.testing.assert_allclose(table.rules[NAMES[operation]].backward(e, y_bar), expected, rtol=1e-14)
    assert_backward_is_the_transpose(e)


def assert_backward_is_the_transpose(e):
    rule, x_dot, y_bar = table.rules[e.primitive.name], jnp.cos(X), jnp.sin(3 * e.outs[0])
    np.testing.assert_allclose(
        jnp.vdot(rule.backward(e, y_bar), x_dot), jnp.vdot(y_bar, rule.tangent(e, x_dot)), rtol=1e-12
    )


def evaluated(f, *args):
    """The one equation of f, evaluated."""
    (eqn,) = jax.make_jaxpr(f)(*args).jaxpr.eqns
    literals = [jnp.asarray(v.val) for v in eqn.invars if hasattr(v, "val")]
    ins = (*map(jnp.asarray, args), *literals)
    outs = Equation(eqn.primitive, eqn.params, ins).bind(*ins)
    return Equation(eqn.primitive, eqn.params, ins, outs, (True,) * len(ins))


sides = st.integers(0, 2)


@given(
    operation=st.sampled_from([lax.add, lax.max, lax.min]),
    n=st.integers(1, 8),
    w=st.integers(1, 4),
    stride=st.integers(1, 4),
    padding=st.tuples(sides, sides),
    dilation=st.integers(1, 3),
)
@settings(max_examples=3)
def test_windows_of_any_geometry(assert_equations_right, operation, n, w, stride, padding, dilation):
    padding = tuple(min(side, w - 1) for side in padding)
    f = over_windows(operation, START[operation], (w,), (stride,), (padding,), base_dilation=(dilation,))
    assert_equations_right(f, X.reshape(-1)[:n], names=NAMES[operation])


@pytest.mark.parametrize("dtype", [complex, jnp.bfloat16])
def test_cotangents_have_the_operand_s_type(assert_equations_right, dtype):
    tolerance = 5e-2 if dtype is jnp.bfloat16 else 1e-12
    for geometry in ("overlapping", "next to each other"):
        f = over_windows(lax.add, np.zeros((), dtype), **GEOMETRIES[geometry])
        assert_equations_right(f, X.astype(dtype), names="reduce_window_sum", tolerance=tolerance)
    if dtype is jnp.bfloat16:
        f = over_windows(lax.max, np.array(-np.inf, dtype), **GEOMETRIES["overlapping"])
        assert_equations_right(f, X.astype(dtype), names="reduce_window_max", tolerance=tolerance)


@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
@pytest.mark.parametrize("select", [lax.ge_p, lax.le_p])
def test_selecting_and_gathering_have_jax_s_derivative(assert_equations_right, select, dilation):
    ones, window = (1, 1), {"window_dimensions": (2, 2), "window_strides": (2, 1)}
    window |= {"select_prim": select, "padding": ((1, 0), (0, 1))}
    gather = lambda v, x: lax.select_and_gather_add_p.bind(  # noqa: E731
        v, x, base_dilation=dilation, window_dilation=ones, **window
    )
    # What is selected by has no derivative: JAX's own for it is zero as well.
    assert_equations_right(lambda v: gather(v, X), X[::-1], names="select_and_gather_add")
    y = gather(X, TIES)
    if dilation == ones:
        scatter = lambda v: lax.select_and_scatter_add_p.bind(v, jnp.asarray(TIES), **window)  # noqa: E731
        assert_equations_right(scatter, y, names="select_and_scatter_add")


@pytest.mark.parametrize("geometry", ["overlapping", "of a dilated array"])
def test_any_operation_over_windows(geometry):
    """The product over windows against the derivative of a loop over their elements."""
    options = GEOMETRIES[geometry]
    f = over_windows(lax.mul, 1.0, **options)
    e = evaluated(f, X)
    y_bar, x_dot = jnp.cos(e.outs[0]), np.cos(X)
    expected, pull = jax.vjp(lambda x: products(x, e.params, e.outs[0].shape), jnp.asarray(X))
    np.testing.assert_allclose(e.outs[0], expected)
    x_bar, _ = jax.jit(lambda y_bar: table.rules["reduce_window"].backward(e, y_bar))(y_bar)
    np.testing.assert_allclose(x_bar, pull(y_bar)[0], rtol=1e-12, atol=1e-15)
    (y_dot,) = jax.jit(lambda x_dot: table.rules["reduce_window"].tangent(e, x_dot, None))(x_dot)
    np.testing.assert_allclose(y_dot, jax.jvp(f, (X,), (x_dot,))[1], rtol=1e-12, atol=1e-15)


def products(x, p, size):
    """prod_k seen[k, t] by definition, where ones are outside and in the gaps."""
    dilated = lax.pad(
        x, jnp.ones(()),
        [(low, high, d - 1) for (low, high), d in zip(p["padding"], p["base_dilation"], strict=True)],
    )  # fmt: skip
    y = jnp.ones(size)
    for k in itertools.product(*map(range, p["window_dimensions"])):
        starts = [i * r for i, r in zip(k, p["window_dilation"], strict=True)]
        places = zip(starts, size, p["window_strides"], strict=True)
        y = y * dilated[tuple(slice(a, a + (m - 1) * s + 1, s) for a, m, s in places)]
    return y
