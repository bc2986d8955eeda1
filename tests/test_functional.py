"""A model as a pure function of plain dicts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import autodiff
from bpresearch.functional import as_inputs, merge, split, state_of
from bpresearch.paths import format_path


class Everything(nnx.Module):
    """Parameters, statistics, random streams and a plain array."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.linear = nnx.Linear(3, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.mask = jnp.array([1.0, 0.0])

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x))) * self.mask[None]


def leaves(tree):
    arrays = jax.tree.leaves(tree)
    keys = [jnp.issubdtype(a.dtype, jax.dtypes.prng_key) for a in arrays]
    return [np.asarray(jax.random.key_data(a) if k else a) for a, k in zip(arrays, keys, strict=True)]


def test_split_gives_plain_dicts_with_the_models_own_paths():
    model = Everything()
    _, params, state = split(model)
    assert params.keys() == {"linear", "norm"} and params["norm"].keys() == {"scale", "bias"}
    assert params["linear"]["kernel"].shape == (3, 2)
    assert jax.tree.structure(params) == jax.tree.structure(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert state["norm"].keys() == {"mean", "var"} and "dropout" in state and "mask" in state
    for tree in (params, state):
        assert type(tree) is dict
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))


def test_merge_is_the_inverse_of_split():
    model, x = Everything(), jnp.ones((4, 3))
    parts = split(model)
    again = merge(*parts)
    for ours, theirs in zip(split(again)[1:], parts[1:], strict=True):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for found, expected in zip(leaves(ours), leaves(theirs), strict=True):
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(again(x), model(x))


def test_what_is_merged_is_a_copy():
    model = Everything()
    graphdef, params, state = split(model)
    merge(graphdef, params, state)(jnp.ones((4, 3)))
    assert not np.any(model.norm.mean[...]) and not np.any(state["norm"]["mean"])


def test_structure_and_arrays_are_apart():
    """Two models that differ in their arrays alone have one graph definition, and so one program."""
    first, second, other = (nnx.Linear(3, n, rngs=nnx.Rngs(s)) for n, s in ((2, 0), (2, 1), (4, 0)))
    assert split(first)[0] == split(second)[0] != split(other)[0]
    assert hash(split(first)[0]) == hash(split(second)[0])


def test_state_of_is_the_state_that_split_gives():
    model = Everything()
    model(jnp.ones((4, 3)))
    assert jax.tree.structure(state_of(model)) == jax.tree.structure(split(model)[2])
    for found, expected in zip(leaves(state_of(model)), leaves(split(model)[2]), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_model_without_parameters_or_state():
    graphdef, params, state = split(nnx.Sequential(nnx.relu))
    assert params == state == {}
    np.testing.assert_array_equal(merge(graphdef, params, state)(jnp.array([-1.0, 2.0])), [0, 2])


def test_a_shared_layer_appears_once():
    layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    _, params, _ = split(nnx.Sequential(layer, nnx.relu, layer))
    assert list(params["layers"]) == [0]


def test_inputs_are_a_tuple_or_one():
    x = jnp.ones(3)
    assert as_inputs(x) == (x,) and as_inputs((x, x)) == (x, x)
    assert as_inputs([x]) == ([x],) and as_inputs({"a": x}) == ({"a": x},)


@pytest.mark.parametrize(
    ("path", "written"), [((), ""), (("layers", 0, "kernel"), "layers.0.kernel"), (("loss",), "loss")]
)
def test_paths_as_reports_write_them(path, written):
    assert format_path(path) == written


def test_models_whose_options_cannot_be_hashed_are_told_apart():
    """A list of paddings: the same shapes of parameters, another program."""
    x, y = jnp.arange(4.0).reshape(1, 4, 1), jnp.zeros((1, 4, 1))
    losses = []
    for padding in ([(0, 2)], [(2, 0)], [(0, 2)]):
        ones = nnx.initializers.ones
        model = nnx.Conv(1, 1, (3,), padding=padding, kernel_init=ones, rngs=nnx.Rngs(0))
        losses.append(autodiff.value_and_grad(model, optax.squared_error, x, y)[0])
    # Sums of 0, 1, 2, 3 over three neighbours, to the right or to the left.
    assert losses == [(3**2 + 6**2 + 5**2 + 3**2) / 4, (0 + 1 + 3**2 + 6**2) / 4, losses[0]]
