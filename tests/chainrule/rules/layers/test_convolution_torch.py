"""Convolutions and their transposes against PyTorch's, on the same weights."""

import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

from bpresearch import chainrule
from bpresearch.models import patch_convolution

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")

CASES = [
    {},
    {"stride": 2, "padding": 1},
    {"dilation": 2, "padding": 2, "bias": False},
    {"groups": 2, "padding": 1},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": "same"},
]
AXES = {
    1: (torch.nn.Conv1d, torch.nn.ConvTranspose1d),
    2: (torch.nn.Conv2d, torch.nn.ConvTranspose2d),
    3: (torch.nn.Conv3d, torch.nn.ConvTranspose3d),
}


def channels_first(array):
    return np.moveaxis(np.asarray(array), -1, 1)


def out_in_window(kernel):
    return np.moveaxis(np.asarray(kernel), (-1, -2), (0, 1))


def assert_as_torch(model, twin, x, normal):
    with torch.no_grad():
        twin.weight.copy_(torch.tensor(out_in_window(model.kernel[...])))
        if twin.bias is not None:
            twin.bias.copy_(torch.tensor(np.asarray(model.bias[...])))
    inputs = torch.tensor(channels_first(x), requires_grad=True)
    outputs = twin(inputs)
    y = normal(2, *np.moveaxis(outputs.detach().numpy(), 1, -1).shape)
    torch.nn.functional.mse_loss(outputs, torch.tensor(channels_first(y))).backward()
    _, (grads, x_bar) = chainrule.value_and_grad(model, optax.squared_error, x, y, inputs=True)
    expected = twin.weight.grad.numpy()
    np.testing.assert_allclose(out_in_window(grads["kernel"]), expected, rtol=1e-10, atol=1e-15)
    if twin.bias is not None:
        np.testing.assert_allclose(grads["bias"], twin.bias.grad.numpy(), rtol=1e-10)
    np.testing.assert_allclose(channels_first(x_bar), inputs.grad.numpy(), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("convolve", [lax.conv_general_dilated, patch_convolution])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("axes", AXES)
def test_convolution(convolve, case, axes, random_model, normal):
    padding = case.get("padding", 0)
    named = {"circular": "CIRCULAR", "reflect": "REFLECT"}.get(case.get("padding_mode"))
    options = {
        "strides": case.get("stride", 1),
        "padding": named or (padding.upper() if isinstance(padding, str) else padding),
        "kernel_dilation": case.get("dilation", 1),
        "feature_group_count": case.get("groups", 1),
        "use_bias": case.get("bias", True),
        "conv_general_dilated": convolve,
    }
    model = random_model(lambda: nnx.Conv(4, 2, (3,) * axes, **options, rngs=nnx.Rngs(0)))
    twin = AXES[axes][0](4, 2, 3, **case, dtype=torch.float64)
    assert_as_torch(model, twin, normal(1, 3, *[6] * axes, 4), normal)


@pytest.mark.parametrize("case", [{}, {"stride": 2}, {"stride": 2, "dilation": 2, "bias": False}])
@pytest.mark.parametrize("axes", AXES)
def test_transposed_convolution(case, axes, random_model, normal):
    dilation = case.get("dilation", 1)
    options = {
        "strides": case.get("stride", 1),
        "padding": dilation * 2,
        "kernel_dilation": dilation,
        "use_bias": case.get("bias", True),
        "transpose_kernel": True,
    }
    model = random_model(lambda: nnx.ConvTranspose(2, 3, (3,) * axes, **options, rngs=nnx.Rngs(0)))
    twin = AXES[axes][1](2, 3, 3, **case, dtype=torch.float64)
    assert_as_torch(model, twin, normal(1, 3, *[4] * axes, 2), normal)
