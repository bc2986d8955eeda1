"""Shapes: every primitive that moves, repeats or leaves out elements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import bpresearch.chainrule.rules.lax.shapes  # noqa: F401  (fills the table)
from bpresearch.chainrule.primitives import table

X = np.random.default_rng(0).normal(size=(2, 3, 4))

CASES = {
    "reshape": ("reshape", lambda x: jnp.reshape(x, (4, 6))),
    "reshape in another order": ("reshape", lambda x: lax.reshape(x, (4, 6), (1, 2, 0))),
    "reshape of one": ("reshape", lambda x: jnp.reshape(x[:1, :1, :1], ())),
    "squeeze": ("squeeze", lambda x: lax.squeeze(x[:, :1, :1], (1, 2))),
    "expand_dims": ("broadcast_in_dim", lambda x: lax.expand_dims(x, (0, 2))),
    "transpose": ("transpose", lambda x: lax.transpose(x, (1, 2, 0))),
    "rev": ("rev", lambda x: x[::-1, :, ::-1]),
    "broadcast along new axes": (
        "broadcast_in_dim",
        lambda x: lax.broadcast_in_dim(x, (5, 2, 3, 6, 4), (1, 2, 4)),
    ),
    "broadcast of length one": ("broadcast_in_dim", lambda x: jnp.broadcast_to(x[:, :1], (7, 2, 3, 4))),
    "broadcast of a number": ("broadcast_in_dim", lambda x: jnp.full((2, 3), x[0, 0, 0])),
    "tile": ("tile", lambda x: jnp.tile(x, (2, 1, 3))),
    "tile along new axes": ("tile", lambda x: jnp.tile(x[0], (2, 1, 3))),
    "split": ("split", lambda x: lax.split(x, (1, 0, 3), 2)),
    "unstack": ("unstack", lambda x: jnp.unstack(x, axis=1)),
    "slice": ("slice", lambda x: lax.slice(x, (1, 0, 1), (2, 3, 3))),
    "slice with steps": ("slice", lambda x: x[:, ::2, 1::2]),
    "slice of nothing": ("slice", lambda x: x[:, 2:2]),
    "slice of the last ones": ("slice", lambda x: x[..., -2:]),
    "concatenate": ("concatenate", lambda x: jnp.concatenate([x, x[:, :1], 2 * x], 1)),
    "stack": ("stack", lambda x: jnp.stack([x[0], x[1], x[0]], 1)),
    "pad": ("pad", lambda x: lax.pad(x, x[0, 0, 0], ((1, 0, 0), (2, 3, 1), (0, 0, 2)))),
    "pad that leaves out": ("pad", lambda x: lax.pad(x, x[0, 0, 0], ((-1, 2, 0), (-1, -2, 2), (3, -1, 1)))),
    "pad with a constant": ("pad", lambda x: lax.pad(x, jnp.ones_like(x, shape=()), ((1, 1, 0),) * 3)),
}


@pytest.mark.parametrize("name, f", CASES.values(), ids=CASES)
def test_shapes_have_jax_s_derivative(assert_equations_right, name, f):
    assert_equations_right(f, X, names=name)


@pytest.mark.parametrize(
    "name, f", [CASES["pad"], CASES["broadcast of length one"]], ids=["pad", "broadcast"]
)
@pytest.mark.parametrize("dtype", [complex, jnp.bfloat16])
def test_cotangents_have_the_operand_s_type(assert_equations_right, name, f, dtype):
    assert_equations_right(
        f, X.astype(dtype) + 1, names=name, tolerance=0.1 if dtype is jnp.bfloat16 else 1e-12
    )


axis_padding = st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 2))


@given(n=st.integers(0, 5), along=axis_padding)
@settings(max_examples=4)
def test_pad_of_any_geometry(assert_equations_right, n, along):
    low, high, gap = along
    if low + high + n + max(n - 1, 0) * gap >= 0:
        x = jnp.arange(float(n))
        assert_equations_right(lambda x, v: lax.pad(x, v, (along,)), x, jnp.float64(2.0), names="pad")


@given(n=st.integers(1, 9), data=st.data())
@settings(max_examples=4)
def test_slice_of_any_geometry(assert_equations_right, n, data):
    start = data.draw(st.integers(0, n))
    limit, step = data.draw(st.integers(start, n)), data.draw(st.integers(1, 4))
    x = jnp.arange(float(n))
    assert_equations_right(lambda x: lax.slice(x, (start,), (limit,), (step,)), x, names="slice")


def test_iota_is_constant():
    assert "iota" in table.constants
    assert jax.make_jaxpr(lambda: lax.iota(float, 3))().jaxpr.eqns[0].primitive.name == "iota"
