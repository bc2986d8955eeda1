"""What hands its operand on: the cotangent comes back in the operand's type and place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bpresearch.chainrule.primitives import Equation, table
from bpresearch.chainrule.rules.lax import identities  # noqa: F401

X = [[0.5, -2.0], [3.0, 0.25]]


@pytest.mark.parametrize("source", ["float64", "bfloat16", "complex128"])
@pytest.mark.parametrize("target", ["float32", "complex64"])
def test_conversion(source, target, assert_equations_right):
    x = jnp.asarray(X, source)
    params = {"new_dtype": jnp.dtype(target), "weak_type": False, "sharding": None}
    assert_equations_right(
        lambda x: lax.convert_element_type_p.bind(x, **params), x, names="convert_element_type"
    )


def test_conversion_to_integers_has_no_tangent():
    x = jnp.asarray(X)
    e = Equation(lax.convert_element_type_p, {}, (x,), (x.astype(int),), (True,))
    assert table.rules["convert_element_type"].tangent(e, x) is None
    assert table.rules["convert_element_type"].backward(e, None) is None


@pytest.mark.parametrize(
    "f, name",
    [
        (lambda x: jnp.array(x, copy=True), "copy"),
        (lambda x: checkpoint_name(x, "activation"), "name"),
        (lambda x: lax.reduce_precision(x, 8, 7), "reduce_precision"),
    ],
    ids=["copy", "name", "reduce_precision"],
)
def test_identity(f, name, assert_equations_right):
    assert_equations_right(f, jnp.asarray(X), names=name)


def test_barrier_hands_on_what_has_a_derivative(assert_equations_right):
    assert_equations_right(
        lambda x, y: lax.optimization_barrier((x, y)),
        jnp.asarray(X),
        jnp.ones(3),
        names="optimization_barrier",
    )
    e = Equation(
        lax.optimization_barrier_p,
        {},
        (jnp.ones(2), jnp.arange(2)),
        (jnp.ones(2), jnp.arange(2)),
        (True, False),
    )
    x_bar, count_bar = table.rules["optimization_barrier"].backward(e, jnp.full(2, 3.0), None)
    np.testing.assert_array_equal(x_bar, [3.0, 3.0])
    assert count_bar is None


def test_tie_hands_on_its_second_operand():
    before, x = jnp.ones(3), jnp.ones(2)
    e = Equation(Primitive("tie"), {}, (before, x), (x,), (True, True))
    assert table.rules["tie"].backward(e, x)[0] is None
    assert table.rules["tie"].backward(e, x)[1] is x
    assert table.rules["tie"].tangent(e, before, None) is None


def test_a_value_comes_back_to_the_device_it_was_on(assert_equations_right):
    here, there = jax.devices()[0], jax.devices()[-1]
    x = jax.device_put(jnp.asarray(X), here)
    closed = jax.make_jaxpr(lambda x: jax.device_put(x, there, src=here))(x)
    (eqn,) = closed.eqns
    e = Equation(eqn.primitive, eqn.params, (x,), (jax.device_put(x, there),), (True,))
    (x_bar,) = table.rules["device_put"].backward(e, jax.device_put(x, there))
    (y_dot,) = table.rules["device_put"].tangent(e, x)
    assert (x_bar.devices(), y_dot.devices()) == ({here}, {there})
    assert_equations_right(lambda x: jax.device_put(x, here), x, names="device_put")


def test_constraints_of_sharding_hold_for_cotangents():
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,))
    sharding, x = NamedSharding(mesh, PartitionSpec("rows")), jnp.asarray(X)
    (eqn,) = jax.make_jaxpr(lambda x: lax.with_sharding_constraint(x, sharding))(x).eqns
    e, rule = Equation(eqn.primitive, eqn.params, (x,), (x,), (True,)), table.rules["sharding_constraint"]
    backward = jax.make_jaxpr(lambda y_bar: rule.backward(e, y_bar)[0])(x)
    assert [made.primitive.name for made in backward.eqns] == ["sharding_constraint"]
    np.testing.assert_array_equal(rule.tangent(e, x)[0], x)


def test_a_cotangent_takes_the_sharding_of_its_operand():
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.asarray(X), NamedSharding(mesh, PartitionSpec("rows")))
        (eqn,) = jax.make_jaxpr(lambda x: jax.sharding.reshard(x, PartitionSpec(None, "rows")))(x).eqns
        y = jax.sharding.reshard(x, PartitionSpec(None, "rows"))
        e = Equation(eqn.primitive, eqn.params, (x,), (y,), (True,))
        (x_bar,) = table.rules["reshard"].backward(e, y)
        assert jax.typeof(x_bar).sharding == jax.typeof(x).sharding
        assert jax.typeof(table.rules["reshard"].tangent(e, x)[0]).sharding == jax.typeof(y).sharding
        np.testing.assert_array_equal(x_bar, x)


@pytest.mark.parametrize("name", ["stop_gradient", "bitcast_convert_type"])
def test_what_stops_derivatives_is_constant(name):
    assert name in table.constants
