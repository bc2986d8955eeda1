"""Convolutional networks for signals and images."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from flax import nnx

from bpresearch.models.dense import Activation, dense
from bpresearch.models.initializers import initializers
from bpresearch.models.patches import patch_convolution
from bpresearch.models.shapes import add_channel, flatten

POOLINGS = {"none": None, "max": nnx.max_pool, "avg": nnx.avg_pool}


def cnn(
    input_shape: Sequence[int],
    outputs: int,
    *,
    channels: Sequence[int] = (25, 25, 25),
    kernel_sizes: Sequence[int] = (5, 3, 3),
    stride: int = 2,
    padding: str | int = "SAME",
    pooling: str = "none",
    activation: Activation = nnx.relu,
    initialization: str = "lecun",
    convolution: Callable[..., jax.Array] = patch_convolution,
    rngs: nnx.Rngs,
) -> nnx.Sequential:
    """Convolutions with an activation after each, flattened into one dense layer.

    With its defaults and `padding=1`, `initialization="torch"` it is the CNN of the MNIST-1D paper
    (Greydanus and Kobak 2024).

    Args:
        input_shape: (length, channels) of a signal or (height, width, channels) of an image; a feature
            vector (length,) is a signal with one channel.
        outputs: number of outputs.
        channels: output channels of each convolution.
        kernel_sizes: kernel size of each convolution, the same along both axes of an image.
        stride: stride of every convolution; with pooling, of the pooling window instead.
        padding: "SAME", "VALID" or the number of zeros on each side.
        pooling: "none", "max" or "avg", over windows of size 2 after each activation.
        activation: the function after each convolution.
        initialization: a name that `initializers` takes.
        convolution: how convolutions are computed, as `nnx.Conv(conv_general_dilated=...)` takes it;
            default: a matrix times patches. XLA's `lax.conv_general_dilated` is slow inside loops on a CPU,
            and on a GPU when every run of a population has a kernel of its own.
        rngs: source of the initial weights.

    Raises:
        ValueError: the input has more than two spatial axes, an option is not of the values named above,
            channels and kernel sizes differ in number, or nothing is left of the input after some
            convolution.

    >>> model = nnx.eval_shape(lambda: bp.models.cnn((40, 1), 10, rngs=nnx.Rngs(0)))
    >>> sum(kernel.size for kernel in jax.tree.leaves(nnx.state(model, nnx.Param)))  # parameters
    5210
    """
    if len(kernel_sizes) != len(channels):
        raise ValueError(
            f"kernel_sizes has {len(kernel_sizes)} values for {len(channels)} channels: give one for each"
        )
    if pooling not in POOLINGS:
        raise ValueError(f"pooling {pooling!r} is not one of {', '.join(POOLINGS)}")
    for name, given in (("channels", channels), ("kernel_sizes", kernel_sizes), ("stride", (stride,))):
        if min(given, default=1) < 1:
            raise ValueError(f"{name} {given} holds {min(given)}: take positive integers")
    if padding not in ("SAME", "VALID") and (isinstance(padding, str) or padding < 0):
        raise ValueError(f"padding {padding!r} is not SAME, VALID or a number of zeros of at least 0")
    if not 1 <= len(input_shape) <= 3:
        raise ValueError(f"cnn takes signals and images, not examples of shape {tuple(input_shape)}")
    layers: list[Any] = []
    if len(input_shape) == 1:
        layers, input_shape = [add_channel], (*input_shape, 1)
    *size, before = input_shape
    axes = len(size)
    for number, (after, kernel_size) in enumerate(zip(channels, kernel_sizes, strict=True), start=1):
        init = initializers(initialization, before * kernel_size**axes)
        layers.append(
            nnx.Conv(
                before,
                after,
                (kernel_size,) * axes,
                strides=stride if pooling == "none" else 1,
                padding=padding,
                conv_general_dilated=convolution,
                **init,
                rngs=rngs,
            )
        )
        layers.append(activation)
        if POOLINGS[pooling] and 0 not in _size_after(layers, input_shape):
            window = tuple(min(2, n) for n in _size_after(layers, input_shape))
            strides = tuple(min(stride, n) for n in window)
            pool = partial(POOLINGS[pooling], window_shape=window, strides=strides)
            layers.append(pool)
        before = after
        if 0 in _size_after(layers, input_shape):
            raise ValueError(
                f"nothing is left of an input of shape {tuple(input_shape)} after convolution "
                f"{number}: take smaller kernel_sizes or padding=SAME"
            )
    features = math.prod(_size_after(layers, input_shape)) * before
    return nnx.Sequential(*layers, flatten, dense(features, outputs, initialization, rngs))


def lenet(
    input_shape: Sequence[int],
    outputs: int,
    *,
    pooling: str = "avg",
    activation: Activation = nnx.tanh,
    initialization: str = "lecun",
    rngs: nnx.Rngs,
) -> nnx.Sequential:
    """LeNet-5 in its usual present form (LeCun et al. 1998): convolutions of 6 and 16 channels, 120, 84.

    Each convolution is over five positions along each axis, with zeros around the input, and followed by the
    activation and pooling over two. The original has a trained factor in its pooling, connects its
    second convolution to some of the channels only, without zeros around them, and ends in radial basis
    functions.

    Args:
        input_shape: (height, width, channels) of an image or (length, channels) of a signal.
        outputs: number of outputs.
        pooling: "max", "avg" or "none", which leaves the stride of two to the convolutions.
        activation: the function after each layer.
        initialization: a name that `initializers` takes.
        rngs: source of the initial weights.

    >>> model = nnx.eval_shape(lambda: bp.models.lenet((28, 28, 1), 10, rngs=nnx.Rngs(0)))
    >>> sum(kernel.size for kernel in jax.tree.leaves(nnx.state(model, nnx.Param)))  # parameters
    107786
    """
    features = cnn(
        input_shape,
        120,
        channels=(6, 16),
        kernel_sizes=(5, 5),
        pooling=pooling,
        activation=activation,
        initialization=initialization,
        rngs=rngs,
    )
    head = dense(120, 84, initialization, rngs), activation, dense(84, outputs, initialization, rngs)
    return nnx.Sequential(*features.layers, activation, *head)


def _size_after(
    layers: Sequence[nnx.Module | Callable[..., jax.Array]], input_shape: Sequence[int]
) -> tuple[int, ...]:
    """Spatial size of what comes out of the layers."""
    x = jax.ShapeDtypeStruct((1, *input_shape), "float32")
    layers = [layer for layer in layers if layer is not add_channel]
    return jax.eval_shape(nnx.Sequential(*layers), x).shape[1:-1] if layers else tuple(input_shape[:-1])
