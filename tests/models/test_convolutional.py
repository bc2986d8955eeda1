"""Convolutional networks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

from bpresearch import autodiff, chainrule
from bpresearch.functional import split
from bpresearch.models import add_channel, cnn, flatten, patch_convolution

SHAPES = [(40, 1), (8, 8, 1), (10,), (2,)]
small = {"channels": (3, 2), "kernel_sizes": (3, 2)}


def build(shape, outputs=10, **options):
    return cnn(shape, outputs, rngs=nnx.Rngs(0), **options)


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def output_shape(model, *shape):
    return jax.eval_shape(lambda x: model(x), jnp.ones(shape)).shape


def test_the_published_cnn():
    """MNIST-1D's: three times 25 channels, kernels of 5, 3 and 3, stride 2, padding 1: 40, 19, 10, 5."""
    model = build((40, 1), padding=1, initialization="torch")
    assert count(model) == (5 + 1) * 25 + 2 * (3 * 25 + 1) * 25 + (5 * 25 + 1) * 10 == 5210
    assert [layer.kernel_size for layer in model.layers[:6:2]] == [(5,), (3,), (3,)]
    assert model.layers[1::2][:3] == [nnx.relu] * 3
    sizes = [output_shape(nnx.Sequential(*model.layers[:n]), 1, 40, 1)[1] for n in (1, 3, 5)]
    assert sizes == [19, 10, 5]


def test_the_published_cnn_in_torch():
    torch = pytest.importorskip("torch")
    from torch import nn

    class ConvBase(nn.Module):
        """The network of the paper's code, as published."""

        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv1d(1, 25, 5, stride=2, padding=1)
            self.conv2 = nn.Conv1d(25, 25, 3, stride=2, padding=1)
            self.conv3 = nn.Conv1d(25, 25, 3, stride=2, padding=1)
            self.linear = nn.Linear(125, 10)

        def forward(self, x):
            h = self.conv1(x.view(-1, 1, 40)).relu()
            h = self.conv3(self.conv2(h).relu()).relu()
            return self.linear(h.view(h.shape[0], -1))

    twin, model = ConvBase(), build((40, 1), padding=1, initialization="torch")
    assert sum(p.numel() for p in twin.parameters()) == count(model)
    with torch.no_grad():
        for layer, index in ((twin.conv1, 0), (twin.conv2, 2), (twin.conv3, 4)):
            layer.weight.copy_(
                torch.tensor(np.moveaxis(np.asarray(model.layers[index].kernel[...]), 0, 2)).transpose(0, 1)
            )
            layer.bias.copy_(torch.tensor(np.asarray(model.layers[index].bias[...])))
        # PyTorch flattens channels first.
        kernel = np.asarray(model.layers[7].kernel[...]).reshape(5, 25, 10).transpose(2, 1, 0)
        twin.linear.weight.copy_(torch.tensor(kernel.reshape(10, 125)))
        twin.linear.bias.copy_(torch.tensor(np.asarray(model.layers[7].bias[...])))
    x = np.random.default_rng(0).normal(size=(6, 40, 1)).astype(np.float32)
    with torch.no_grad():
        expected = twin(torch.tensor(x[..., 0])).numpy()
    np.testing.assert_allclose(model(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pooling", ["none", "max", "avg"])
def test_default_options_take_every_shape(shape, pooling):
    model = build(shape, 7, pooling=pooling)
    assert output_shape(model, 1, *shape) == (1, 7)
    assert output_shape(model, 5, *shape) == (5, 7)


@pytest.mark.parametrize(
    ("shape", "flat"), [((40, 1), 5), ((8, 8, 1), 1), ((10,), 2), ((2,), 1), ((7, 9, 3), 2)]
)
def test_number_of_parameters(shape, flat):
    """ "SAME" padding with stride 2 halves each axis, rounded up, at each of the three convolutions."""
    axes = max(len(shape) - 1, 1)
    before = shape[-1] if len(shape) > 1 else 1
    convolutions = (before * 5**axes + 1) * 25 + 2 * (25 * 3**axes + 1) * 25
    assert count(build(shape)) == convolutions + (flat * 25 + 1) * 10


def test_paths_of_parameters():
    _, params, state = split(build((8, 8, 1), **small))
    assert list(params["layers"]) == [0, 2, 5] and state == {}
    _, params, _ = split(build((10,), **small))  # the first layer makes a signal of the vector
    assert list(params["layers"]) == [1, 3, 6]
    _, params, _ = split(build((8, 8, 1), pooling="max", **small))
    assert list(params["layers"]) == [0, 3, 7]


def test_layers_in_order():
    model = build((10,), activation=nnx.tanh, **small)
    kinds = [add_channel, nnx.Conv, nnx.tanh, nnx.Conv, nnx.tanh, flatten, nnx.Linear]
    for layer, kind in zip(model.layers, kinds, strict=True):
        assert layer is kind or type(layer) is kind


@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_with_pooling_the_window_has_the_stride(pooling):
    """40 points, convolutions that keep them, windows of two: 40 -> 20 -> 10 with stride 2, -> 38 with 1."""
    for stride, features in ((2, 10), (1, 38)):
        model = build((40, 1), pooling=pooling, stride=stride, **small)
        assert all(layer.strides == 1 for layer in model.layers if isinstance(layer, nnx.Conv))
        assert model.layers[-1].in_features == 2 * features


def test_number_of_convolutions():
    model = build((16, 1), channels=(4,), kernel_sizes=(7,), stride=1)
    assert count(model) == (7 + 1) * 4 + (16 * 4 + 1) * 10
    assert count(build((16, 1), channels=(), kernel_sizes=())) == (16 + 1) * 10


def test_convolutions_are_those_asked_for():
    for convolution in (patch_convolution, lax.conv_general_dilated):
        model = build((10, 1), convolution=convolution, **small)
        assert model.layers[0].conv_general_dilated is convolution
    assert build((10, 1), **small).layers[0].conv_general_dilated is patch_convolution


@pytest.mark.parametrize(
    ("shape", "options", "parts"),
    [
        (
            (40, 1),
            {"channels": (3, 3), "kernel_sizes": (3,)},
            ["kernel_sizes", "1", "2", "channels"],
        ),
        ((40, 1), {"pooling": "sum"}, ["pooling", "'sum'", "none, max, avg"]),
        ((4, 4, 4, 1), {}, ["(4, 4, 4, 1)", "signals and images"]),
        ((), {}, ["()"]),
        ((40, 1), {"initialization": "xavier"}, ["'xavier'", "lecun"]),
        ((40, 1), {"padding": "MIRROR"}, ["padding", "MIRROR", "SAME", "VALID"]),
        ((40, 1), {"padding": -1}, ["padding", "-1"]),
        ((40, 1), {"stride": 0}, ["stride", "0"]),
        ((40, 1), {"channels": (3, 0, 3)}, ["channels", "0"]),
        ((40, 1), {"kernel_sizes": (3, 0, 3)}, ["kernel_sizes", "0"]),
        ((4, 1), {"padding": "VALID"}, ["(4, 1)", "convolution 1", "kernel_sizes"]),
        ((12, 1), {"padding": "VALID", "stride": 2}, ["(12, 1)", "convolution 3", "kernel_sizes"]),
        ((3, 9, 1), {"padding": "VALID"}, ["(3, 9, 1)", "convolution 1"]),
        ((4, 1), {"padding": "VALID", "pooling": "max"}, ["(4, 1)", "convolution 1"]),
    ],
)
def test_bad_options_are_named_in_one_line(shape, options, parts):
    with pytest.raises(ValueError) as error:
        build(shape, **options)
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        small,
        {**small, "padding": 1, "stride": 1},
        {**small, "pooling": "max"},
        {**small, "pooling": "avg", "stride": 1},
    ],
)
@pytest.mark.parametrize("convolution", [patch_convolution, lax.conv_general_dilated])
def test_engines_agree(shape, options, convolution, float64):
    model = build(shape, 3, initialization="torch", convolution=convolution, **options)
    graphdef, params, state = split(model)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    rng = np.random.default_rng(0)
    batch = jnp.asarray(rng.normal(size=(4, *shape))), jnp.array([0, 2, 1, 2])
    loss_fn = optax.softmax_cross_entropy_with_integer_labels
    quickly = {"xla_backend_optimization_level": 0}
    by_autodiff, by_rules = (
        jax.jit(engine.gradient(graphdef, loss_fn, inputs=True), compiler_options=quickly)(
            params, state, batch
        )
        for engine in (autodiff, chainrule)
    )
    assert jax.tree.structure(by_rules) == jax.tree.structure(by_autodiff)
    for found, expected in zip(*map(jax.tree.leaves, (by_rules, by_autodiff)), strict=True):
        assert found.dtype == expected.dtype == jnp.float64
        error = np.abs(found - expected).max()
        assert error <= 1e-12 * np.abs(expected).max()
