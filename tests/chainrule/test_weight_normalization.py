"""`nnx.WeightNorm` and `nnx.SpectralNorm`, whose own code is traced around the layers they wrap."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule
from bpresearch.functional import split

pytestmark = pytest.mark.usefixtures("float64")


def network(rngs):
    return nnx.Sequential(nnx.Linear(4, 5, rngs=rngs), nnx.tanh, nnx.Linear(5, 3, rngs=rngs))


WEIGHT = [
    {},
    {"use_scale": False, "epsilon": 0.1},
    {"feature_axes": None},
    {"feature_axes": (0, -1), "epsilon": 0.1},
    {"feature_axes": 0},
    {"variable_filter": nnx.Param, "epsilon": 0.1},  # biases too
]


@pytest.fixture
def wrapped(random_model, float64_model):
    def wrapped(kind, inner, **options):
        model = kind(random_model(lambda: inner(nnx.Rngs(0))), **options, rngs=nnx.Rngs(1))
        if kind is nnx.WeightNorm and model.use_scale:
            for path, scale in model.scales.items():
                value = jnp.linspace(0.5, 2.0, scale.size).reshape(scale.shape)
                model.scales[path] = type(scale)(value) if isinstance(scale, nnx.Param) else value
        return float64_model(model)

    return wrapped


@pytest.mark.parametrize("options", WEIGHT)
def test_weight_norm(options, wrapped, normal, assert_engines_agree):
    model = wrapped(nnx.WeightNorm, network, **options)
    x, y = normal(1, 6, 4), normal(2, 6, 3)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12


SPECTRAL = [{}, {"n_steps": 3, "epsilon": 1e-3}, {"update_stats": False}, {"n_steps": 0}]


@pytest.mark.parametrize("options", SPECTRAL)
def test_spectral_norm(options, wrapped, normal, assert_engines_agree):
    """The fixture compares the singular vectors left in the state, too."""
    model = wrapped(nnx.SpectralNorm, network, **options)
    x, y = normal(1, 6, 4), normal(2, 6, 3)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12


def test_convolutions(wrapped, normal, assert_engines_agree):
    def convolution(rngs):
        return nnx.Conv(2, 3, (3,), rngs=rngs)

    model = nnx.Sequential(
        wrapped(nnx.WeightNorm, convolution),
        wrapped(nnx.SpectralNorm, lambda rngs: nnx.Conv(3, 2, 2, rngs=rngs)),
    )
    x, y = normal(1, 4, 5, 2), normal(2, 4, 5, 2)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12


def test_a_layer_used_twice(wrapped, normal, assert_engines_agree):
    def square(rngs):
        return nnx.Linear(4, 4, rngs=rngs)

    layer = wrapped(nnx.WeightNorm, square)
    model = nnx.Sequential(layer, nnx.tanh, layer)
    assert assert_engines_agree(model, optax.squared_error, normal(1, 6, 4), normal(2, 6, 4)) <= 1e-11


def test_the_gradient_of_a_normalised_matrix_is_orthogonal_to_it(wrapped, normal, gradient_by_rules):
    """Scaling a column of W (or, for the spectral norm, all of W) changes nothing."""

    def linear(rngs):
        return nnx.Linear(4, 3, rngs=rngs)

    for kind, axis in ((nnx.WeightNorm, 0), (nnx.SpectralNorm, None)):
        model = wrapped(kind, linear)
        if kind is nnx.SpectralNorm:  # with the singular vectors themselves
            v = np.linalg.svd(np.asarray(model.layer_instance.kernel[...]))[2]
            model.batch_stats["kernel", "u"][...] = jnp.asarray(v[:1])
        kernel = np.asarray(model.layer_instance.kernel[...])
        _, grads, _ = gradient_by_rules(model, optax.squared_error, normal(1, 6, 4), normal(2, 6, 3))
        kernel_bar = np.asarray(grads["layer_instance"]["kernel"])
        assert np.abs(kernel_bar).max() > 1e-3
        np.testing.assert_allclose(np.sum(kernel_bar * kernel, axis), 0, atol=1e-10)


def test_the_layer_keeps_its_weights(wrapped, normal):
    model = wrapped(nnx.WeightNorm, network)
    before = np.asarray(model.layer_instance.layers[0].kernel[...])
    chainrule.value_and_grad(model, optax.squared_error, normal(1, 6, 4), normal(2, 6, 3))
    np.testing.assert_array_equal(model.layer_instance.layers[0].kernel[...], before)


def test_the_power_method_goes_on_in_training(wrapped, normal):
    """Step after step, sigma approaches the largest singular value."""
    model = wrapped(nnx.SpectralNorm, lambda rngs: nnx.Linear(4, 3, rngs=rngs))
    graphdef, params, state = split(model)
    gradient = jax.jit(chainrule.gradient(graphdef, optax.squared_error))
    for _ in range(30):
        (_, state), _ = gradient(params, state, (normal(1, 2, 4), normal(2, 2, 3)))
    largest = np.linalg.norm(np.asarray(model.layer_instance.kernel[...]), 2)
    np.testing.assert_allclose(state["batch_stats"]["kernel", "sigma"], largest, rtol=1e-6)


def test_finite_differences(wrapped, normal, assert_matches_finite_differences):
    model = wrapped(nnx.WeightNorm, network, feature_axes=None, epsilon=1e-3)
    assert_matches_finite_differences(model, optax.squared_error, normal(1, 6, 4), normal(2, 6, 3))


def test_finite_differences_at_the_singular_vectors(wrapped, normal, assert_matches_finite_differences):
    """There s is stationary in u and v, so that they may count as constants."""
    model = wrapped(nnx.SpectralNorm, lambda rngs: nnx.Linear(4, 3, rngs=rngs), epsilon=0.0)
    _, _, v = np.linalg.svd(np.asarray(model.layer_instance.kernel[...]))
    model.batch_stats["kernel", "u"][...] = jnp.asarray(v[:1])
    assert_matches_finite_differences(model, optax.squared_error, normal(1, 6, 4), normal(2, 6, 3))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding(dtype, wrapped, normal, assert_sound_in):
    model = nnx.Sequential(
        wrapped(nnx.WeightNorm, lambda rngs: nnx.Linear(4, 5, rngs=rngs)),
        nnx.tanh,
        wrapped(nnx.SpectralNorm, lambda rngs: nnx.Linear(5, 3, rngs=rngs)),
    )
    assert_sound_in(dtype, model, optax.squared_error, normal(1, 6, 4), normal(2, 6, 3))


def test_torch_spectral_norm(wrapped, normal, gradient_by_rules):
    torch = pytest.importorskip("torch")
    from torch.nn.utils import parametrizations

    model = wrapped(nnx.SpectralNorm, lambda rngs: nnx.Linear(4, 3, rngs=rngs), epsilon=0.0)
    kernel, bias = (np.asarray(getattr(model.layer_instance, name)[...]) for name in ("kernel", "bias"))
    v = np.asarray(model.batch_stats["kernel", "u"][...]) @ kernel.T
    u = v / np.linalg.norm(v) @ kernel
    twin = parametrizations.spectral_norm(torch.nn.Linear(4, 3, dtype=torch.float64)).eval()
    norm, weight = twin.parametrizations.weight[0], twin.parametrizations.weight.original
    with torch.no_grad():
        weight.copy_(torch.tensor(kernel.T))
        twin.bias.copy_(torch.tensor(bias))
        norm._u.copy_(torch.tensor(u[0] / np.linalg.norm(u)))
        norm._v.copy_(torch.tensor(v[0] / np.linalg.norm(v)))
    x, y = normal(1, 6, 4), normal(2, 6, 3)
    inputs = torch.tensor(np.asarray(x), requires_grad=True)
    torch.nn.functional.mse_loss(twin(inputs), torch.tensor(np.asarray(y))).backward()
    _, grads, x_bar = gradient_by_rules(model, optax.squared_error, x, y)
    np.testing.assert_allclose(grads["layer_instance"]["kernel"], weight.grad.numpy().T, rtol=1e-10)
    np.testing.assert_allclose(grads["layer_instance"]["bias"], twin.bias.grad.numpy(), rtol=1e-10)
    np.testing.assert_allclose(x_bar, inputs.grad.numpy(), rtol=1e-10)


def test_torch_weight_norm(wrapped, normal, gradient_by_rules):
    torch = pytest.importorskip("torch")
    from torch.nn.utils import parametrizations

    model = wrapped(nnx.WeightNorm, lambda rngs: nnx.Linear(4, 3, rngs=rngs), epsilon=0.0)
    kernel, bias = (np.asarray(getattr(model.layer_instance, name)[...]) for name in ("kernel", "bias"))
    scale = np.asarray(model.scales["kernel",][...])
    twin = parametrizations.weight_norm(torch.nn.Linear(4, 3, dtype=torch.float64))
    magnitude, direction = twin.parametrizations.weight.original0, twin.parametrizations.weight.original1
    with torch.no_grad():
        direction.copy_(torch.tensor(kernel.T))
        magnitude.copy_(torch.tensor(scale[:, None]))
        twin.bias.copy_(torch.tensor(bias))
    x, y = normal(1, 6, 4), normal(2, 6, 3)
    torch.nn.functional.mse_loss(twin(torch.tensor(np.asarray(x))), torch.tensor(np.asarray(y))).backward()
    _, grads, _ = gradient_by_rules(model, optax.squared_error, x, y)
    np.testing.assert_allclose(grads["layer_instance"]["kernel"], direction.grad.numpy().T, rtol=1e-10)
    np.testing.assert_allclose(grads["layer_instance"]["bias"], twin.bias.grad.numpy(), rtol=1e-10)
    if "scales" in grads:
        np.testing.assert_allclose(grads["scales"]["kernel",], magnitude.grad.numpy()[:, 0], rtol=1e-10)
