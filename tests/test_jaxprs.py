"""Traced programs."""

import jax
import jax.numpy as jnp

from bpresearch.jaxprs import traced


def test_a_traced_function_gives_arrays_also_for_numbers_that_stand_in_it():
    again, shapes = traced(lambda x: {"twice": 2 * x, "one": 1, "half": jnp.bfloat16(0.5)}, jnp.ones(3))
    found = again(jnp.arange(3.0))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    assert found["twice"].tolist() == [0, 2, 4] and (int(found["one"]), float(found["half"])) == (1, 0.5)
