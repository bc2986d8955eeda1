"""What has no rule has a reason, and the reason is true: JAX refuses it as well, or it has no results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.xla_metadata import set_xla_metadata

import bpresearch.chainrule.rules.lax.opaque  # noqa: F401
from bpresearch.chainrule.primitives import table


def primitives(f, *args):
    return {eqn.primitive.name: eqn for eqn in jax.make_jaxpr(f)(*args).jaxpr.eqns}


def test_what_has_no_results_is_constant():
    def f(x):
        jax.debug.print("x = {}", x)
        jax.debug.callback(lambda x: None, x)
        jax.debug.inspect_array_sharding(x, callback=lambda sharding: None)
        return x

    found = primitives(f, 1.0)
    assert set(found) == {"debug_print", "debug_callback", "inspect_sharding"} <= set(table.constants)
    assert not any(eqn.outvars for eqn in found.values())


def test_callbacks_are_refused_as_in_jax():
    def f(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), x.dtype), x)

    assert "pure_callback" in primitives(f, 1.0) and "pure_callback" in table.refused
    with pytest.raises(ValueError, match="Pure callbacks do not support JVP"):
        jax.grad(f)(1.0)


def test_references_are_refused():
    def f(x):
        ref = jax.new_ref(x)
        ref[...] = 2 * ref[...]
        return jax.ref.freeze(ref)

    assert {"new_ref", "get", "swap"} <= set(primitives(f, jnp.ones(2))) & set(table.refused)


def test_a_label_changes_nothing(assert_equations_right):
    label = {"names": "xla_metadata_value"}
    assert_equations_right(lambda x: set_xla_metadata(jnp.sin(x), note="here"), jnp.ones(2), **label)
