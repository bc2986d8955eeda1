"""Initial weights."""

import jax
import numpy as np
import pytest
from flax import nnx

from bpresearch.models import cnn, mlp
from bpresearch.models.initializers import initializers

FAN_IN, FAN_OUT = 400, 300


@pytest.fixture(scope="module")
def layers():
    """A large layer for each initialisation: many draws from its distributions."""
    rngs = nnx.Rngs(0)
    return {
        name: nnx.Linear(FAN_IN, FAN_OUT, **initializers(name, FAN_IN), rngs=rngs)
        for name in ("lecun", "he", "glorot", "torch")
    }


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("lecun", 1 / FAN_IN),
        ("he", 2 / FAN_IN),
        ("glorot", 2 / (FAN_IN + FAN_OUT)),
        ("torch", 1 / (3 * FAN_IN)),
    ],
)
def test_variance_of_kernels(layers, name, variance):
    kernel = np.asarray(layers[name].kernel[...], float)
    # 120,000 draws: the standard error of the variance is at most 0.4 % of it.
    np.testing.assert_allclose(kernel.var(), variance, rtol=0.02)
    assert abs(kernel.mean()) < 5 * np.sqrt(variance / kernel.size)


@pytest.mark.parametrize("name", ["lecun", "he", "glorot"])
def test_biases_start_at_zero(layers, name):
    assert not np.any(layers[name].bias[...])


def test_uniform_kernels_fill_their_interval(layers):
    for name, bound in [
        ("glorot", np.sqrt(6 / (FAN_IN + FAN_OUT))),
        ("torch", 1 / np.sqrt(FAN_IN)),
    ]:
        kernel = np.abs(layers[name].kernel[...])
        assert 0.999 * bound < kernel.max() <= bound * (1 + 1e-6)
        np.testing.assert_allclose(np.median(kernel), bound / 2, rtol=0.02)


def test_torch_biases_are_uniform_too(layers):
    bias, bound = np.asarray(layers["torch"].bias[...]), 1 / np.sqrt(FAN_IN)
    assert 0.95 * bound < np.abs(bias).max() <= bound * (1 + 1e-6)
    np.testing.assert_allclose(bias.var(), bound**2 / 3, rtol=0.2)


def test_kernel_and_bias_are_drawn_apart():
    layer = nnx.Linear(1, 50, **initializers("torch", 1), rngs=nnx.Rngs(0))
    correlation = np.corrcoef(layer.kernel[0], layer.bias[...])[0, 1]
    assert abs(correlation) < 0.6


def test_torch_itself_has_these_bounds():
    torch = pytest.importorskip("torch")
    bound = 1 / np.sqrt(FAN_IN)
    twin = torch.nn.Linear(FAN_IN, FAN_OUT)
    for parameter in twin.parameters():
        assert 0.95 * bound < parameter.abs().max() <= bound * (1 + 1e-6)
    convolution = torch.nn.Conv1d(20, FAN_OUT, 20)  # the same fan-in: 20 channels under 20 elements
    assert 0.95 * bound < convolution.bias.abs().max() <= bound * (1 + 1e-6)


def test_fan_in_of_a_convolution_counts_its_window():
    model = cnn((9, 9, 4), 10, channels=(50,), kernel_sizes=(5,), initialization="torch", rngs=nnx.Rngs(0))
    for array in (model.layers[0].kernel[...], model.layers[0].bias[...]):
        assert 0.09 < np.abs(array).max() <= 0.1 * (1 + 1e-6)  # 1 / sqrt(4 * 5 * 5)


def test_he_keeps_the_size_of_what_passes_through_relu():
    """Layer after layer of a deep network, the mean square stays (He et al. 2015)."""
    model = mlp((512,), 512, widths=(512,) * 8, initialization="he", rngs=nnx.Rngs(0))
    outputs = model(jax.random.normal(jax.random.key(1), (64, 512)))
    assert 1 < np.mean(np.asarray(outputs) ** 2) < 4  # 2 after the last layer, which has no ReLU


def test_an_unknown_name_gets_the_list():
    message = "initialisation 'xavier' is not one of lecun, he, glorot, torch"
    with pytest.raises(ValueError, match=f"^{message}$"):
        initializers("xavier", 3)
    with pytest.raises(ValueError, match=f"^{message}$"):
        mlp((3,), 2, initialization="xavier", rngs=nnx.Rngs(0))
