"""From cotangents by layer to gradients by parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import autodiff, chainrule
from bpresearch.chainrule.gather import gather
from bpresearch.functional import split

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")


def linear(inputs, outputs, **options):
    return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0), **options)


@pytest.fixture
def model(random_model):
    return random_model(lambda: nnx.Sequential(linear(3, 2), nnx.relu, linear(2, 1)))


def cotangents(model, factor=1.0):
    return {
        "layers": {
            i: {"kernel": factor * model.layers[i].kernel[...], "bias": model.layers[i].bias[...]}
            for i in (0, 2)
        }
    }


def test_paths_are_those_of_the_parameters(model):
    _, params, _ = split(model)
    found = gather(model, cotangents(model, 3.0))
    assert list(found["layers"]) == list(params["layers"])
    np.testing.assert_array_equal(found["layers"][2]["kernel"], 3 * params["layers"][2]["kernel"])
    np.testing.assert_array_equal(found["layers"][0]["bias"], params["layers"][0]["bias"])


def test_a_layer_used_three_times_adds_its_uses(random_model):
    def build():
        layer = linear(2, 2)
        return nnx.Sequential(layer, nnx.Sequential(layer, nnx.relu), layer)

    model = random_model(build)
    ones = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    twice = {"kernel": 2 * jnp.ones((2, 2)), "bias": jnp.zeros(2)}
    found = gather(model, {"layers": {2: ones, 1: {"layers": {1: {}, 0: twice}}, 0: ones}})
    assert list(found["layers"]) == [0]
    np.testing.assert_array_equal(found["layers"][0]["kernel"], 4 * np.ones((2, 2)))
    np.testing.assert_array_equal(found["layers"][0]["bias"], 2 * np.ones(2))


def test_shared_layers_as_autodiff(random_model, normal, assert_engines_agree):
    def build():
        layer = linear(3, 3)
        return nnx.Sequential(layer, nnx.tanh, layer, nnx.Sequential(layer, linear(3, 1)))

    x, y = normal(1, 4, 3), normal(2, 4, 1)
    assert assert_engines_agree(random_model(build), optax.squared_error, x, y) <= 1e-12


def test_a_shared_parameter_as_autodiff(random_model, normal, assert_engines_agree):
    """Tied weights: two layers that own one kernel, each with a bias of its own."""

    def build():
        first, second = linear(3, 3), linear(3, 3)
        second.kernel = first.kernel
        return nnx.Sequential(first, nnx.tanh, second)

    x, y = normal(1, 4, 3), normal(2, 4, 3)
    assert assert_engines_agree(random_model(build), optax.squared_error, x, y) <= 1e-12


class Half(nnx.Module):
    """Only one of its two layers and neither of its other variables take part in the output."""

    def __init__(self):
        self.used, self.unused = linear(3, 2), linear(3, 5)
        self.spare = nnx.Param(jnp.ones((2, 2), jnp.bfloat16))
        self.count = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x):
        return self.used(x)


def test_an_unused_parameter_has_gradient_zero(normal, random_model):
    model, x, y = random_model(Half, dtype=None), normal(1, 4, 3), normal(2, 4, 2)
    with jax.numpy_dtype_promotion("standard"):
        _, expected = autodiff.value_and_grad(model, optax.squared_error, x, y)
        _, found = chainrule.value_and_grad(model, optax.squared_error, x, y)
    assert found.keys() == expected.keys() == {"used", "unused", "spare"}
    np.testing.assert_array_equal(found["unused"]["kernel"], np.zeros((3, 5)))
    assert found["spare"].dtype == expected["spare"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["spare"], np.zeros((2, 2)))


def change(model, name, cotangent):
    grads = cotangents(model)
    grads["layers"][2][name] = cotangent
    return grads


def test_a_wrong_shape_names_the_parameter_and_both_shapes(model):
    with pytest.raises(ValueError, match=r"layers\.2\.kernel has shape \(1, 2\), not \(2, 1\)"):
        gather(model, change(model, "kernel", jnp.ones((1, 2))))


def test_a_cotangent_that_would_broadcast_is_refused(model):
    with pytest.raises(ValueError, match=r"layers\.2\.kernel has shape \(\), not \(2, 1\)"):
        gather(model, change(model, "kernel", jnp.ones(())))


@pytest.mark.parametrize("name", ["weights", 3, "in_features", "promote_dtype", "__call__"])
def test_a_name_that_no_parameter_has_is_named_with_its_layer(model, name):
    with pytest.raises(ValueError, match=rf"{name!r}.* of layers\.2$") as error:
        gather(model, change(model, name, jnp.ones(())))
    assert "\n" not in str(error.value)


def test_a_layer_that_is_not_there_is_named(model):
    with pytest.raises(ValueError, match=r"7.* of layers$"):
        gather(model, {"layers": {7: {"kernel": jnp.ones(())}}})
    with pytest.raises(ValueError, match=r"'head'.* of the model$"):
        gather(model, {"head": {"kernel": jnp.ones(())}})


def test_a_variable_that_is_no_parameter_has_no_gradient(random_model):
    with pytest.raises(ValueError, match="count"):
        gather(random_model(Half, dtype=None), {"count": jnp.zeros(())})


def test_a_missing_cotangent_is_refused(model):
    with pytest.raises(ValueError, match=r"layers\.2\.kernel"):
        gather(model, change(model, "kernel", None))


def test_no_cotangents_at_all(model):
    """A rule that returns None where a dict is due."""
    with pytest.raises(ValueError, match=r"layers\.2|2 .* of layers"):
        gather(model, {"layers": {2: None}})


def test_a_gradient_has_the_dtype_of_its_parameter(model):
    """A rule that computes in another precision does not change the precision of the training."""
    found = gather(model, change(model, "kernel", jnp.ones((2, 1), jnp.float32)))
    assert found["layers"][2]["kernel"].dtype == jnp.float64
