"""The residual network with batch normalization."""

from collections.abc import Sequence

from flax import nnx

from bpresearch.models.combinators import Parallel, Residual, add
from bpresearch.models.dense import dense
from bpresearch.models.patches import patch_convolution
from bpresearch.models.shapes import add_channel, average


def resnet(
    input_shape: Sequence[int],
    outputs: int,
    *,
    channels: Sequence[int] = (8, 16, 32),
    depth: int = 1,
    rngs: nnx.Rngs,
) -> nnx.Sequential:
    """A small residual network as for CIFAR-10 (He et al. 2016): 2 depth len(channels) + 2 layers.

    A convolution over three positions along each axis, then stages of blocks of two such convolutions, each
    with batch normalization and ReLU, the second one's ReLU after the branch is added. From the second
    stage on, a stage begins with a stride of two, and its first shortcut is a convolution over one position.
    At the end the average over all positions goes into a dense layer.

    Args:
        input_shape: (height, width, channels) of an image or (length, channels) of a signal.
        outputs: number of outputs.
        channels: channels of each stage.
        depth: number of blocks in each stage.
        rngs: source of the initial weights: normal with variance 2 / fan_in (He et al. 2015).

    Raises:
        ValueError: there is no stage, a stage has no channels, or the depth is below 1.

    >>> model = nnx.eval_shape(lambda: bp.models.resnet((32, 32, 3), 10, rngs=nnx.Rngs(0)))
    >>> sum(kernel.size for kernel in jax.tree.leaves(nnx.state(model, nnx.Param)))  # parameters
    19954
    """
    if min(channels, default=0) < 1 or depth < 1:
        raise ValueError(
            f"resnet: channels {tuple(channels)} and depth {depth}: take positive integers, at least one"
        )
    layers: list = []
    if len(input_shape) == 1:
        layers, input_shape = [add_channel], (*input_shape, 1)
    axes, before = len(input_shape) - 1, input_shape[-1]

    def convolution(before: int, after: int, size: int, stride: int = 1) -> list:
        """A convolution without bias, which the normalization after it has."""
        layer = nnx.Conv(
            before,
            after,
            (size,) * axes,
            strides=stride,
            use_bias=False,
            kernel_init=nnx.initializers.he_normal(),
            conv_general_dilated=patch_convolution,
            rngs=rngs,
        )
        return [layer, nnx.BatchNorm(after, momentum=0.9, rngs=rngs)]

    def block(before: int, after: int, stride: int) -> list:
        first = [*convolution(before, after, 3, stride), nnx.relu]
        branch = nnx.Sequential(*first, *convolution(after, after, 3))
        if (before, stride) == (after, 1):
            return [Residual(branch), nnx.relu]
        shortcut = nnx.Sequential(*convolution(before, after, 1, stride))
        return [Parallel(branch, shortcut, merge=add), nnx.relu]

    layers += [*convolution(before, channels[0], 3), nnx.relu]
    before = channels[0]
    for stage, after in enumerate(channels):
        for number in range(depth):
            layers += block(before, after, stride=2 if stage and not number else 1)
            before = after
    return nnx.Sequential(*layers, average, dense(before, outputs, "lecun", rngs))
