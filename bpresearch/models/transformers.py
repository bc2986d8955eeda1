"""Residual blocks over sequences: the GPT-2 style transformer, the vision transformer, the mixer."""

import math
from collections.abc import Sequence
from functools import partial

from flax import nnx

from bpresearch.models.attention import CausalAttention, dot_product_attention
from bpresearch.models.combinators import LayerStack, LearnedPositions, Residual, Unembed
from bpresearch.models.patches import patch_convolution
from bpresearch.models.shapes import add_channel, average, positions, swap

gelu = partial(nnx.gelu, approximate=True)


def transformer(
    input_shape: Sequence[int],
    outputs: int,
    *,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    scan_layers: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Sequential:
    """A causal language model in the style of GPT-2 (Radford et al. 2019): logits of each next token.

    Embedding and learned positions; blocks of attention and a two-layer perceptron, four times as wide,
    both residual with layer normalization before them; a last normalization; and the embedding again as
    output layer (tied weights). Initial weights are N(0, 0.02^2), and those that end a residual branch
    smaller by sqrt(2 depth), as in GPT-2.

    Args:
        input_shape: (length,), of sequences of tokens.
        outputs: size of the vocabulary, which is that of the inputs too.
        width: features of a token, a multiple of `heads`.
        depth: number of blocks.
        heads: attention heads.
        scan_layers: compile one block and scan over the blocks' parameters.
        rngs: source of the initial weights.

    Raises:
        ValueError: the examples are not sequences of tokens, or the heads do not divide the width.

    >>> model = nnx.eval_shape(lambda: bp.models.transformer((64,), 128, rngs=nnx.Rngs(0)))
    >>> sum(kernel.size for kernel in jax.tree.leaves(nnx.state(model, nnx.Param)))  # parameters
    112384
    """
    if len(input_shape) != 1:
        raise ValueError(f"transformer takes sequences of tokens, not examples of shape {tuple(input_shape)}")
    _check_heads(width, heads)
    initial = nnx.initializers.normal(0.02)
    last = nnx.initializers.normal(0.02 / math.sqrt(2 * depth))

    def block(rngs: nnx.Rngs) -> nnx.Sequential:
        attention = CausalAttention(
            heads,
            width,
            kernel_init=initial,
            out_kernel_init=last,
            attention_fn=dot_product_attention,
            decode=False,
            rngs=rngs,
        )
        return nnx.Sequential(
            Residual(nnx.Sequential(nnx.LayerNorm(width, rngs=rngs), attention)),
            Residual(_perceptron(width, 4 * width, rngs, initial, last)),
        )

    embed = nnx.Embed(outputs, width, embedding_init=initial, rngs=rngs)
    return nnx.Sequential(
        embed,
        LearnedPositions(input_shape[0], width, rngs=rngs),
        *_blocks(block, depth, scan_layers, rngs),
        nnx.LayerNorm(width, rngs=rngs),
        Unembed(embed),
    )


def vit(
    input_shape: Sequence[int],
    outputs: int,
    *,
    width: int = 32,
    depth: int = 2,
    heads: int = 4,
    patch_size: int = 2,
    scan_layers: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Sequential:
    """A vision transformer (Dosovitskiy et al. 2021) that averages over positions (Beyer et al. 2022).

    The blocks are those of `transformer`, with attention in both directions.

    Args:
        input_shape: (height, width, channels) of an image or (length, channels) of a signal.
        outputs: number of outputs.
        width: features of a patch, a multiple of `heads`.
        depth: number of blocks.
        heads: attention heads.
        patch_size: side of the patches that the image is cut into; what is left over at its end is unused.
        scan_layers: compile one block and scan over the blocks' parameters.
        rngs: source of the initial weights.

    Raises:
        ValueError: the patches are larger than the image, or the heads do not divide the width.

    >>> model = nnx.eval_shape(lambda: bp.models.vit((8, 8, 1), 10, patch_size=2, rngs=nnx.Rngs(0)))
    >>> sum(kernel.size for kernel in jax.tree.leaves(nnx.state(model, nnx.Param)))  # parameters
    26474
    """
    _check_heads(width, heads)
    stem, length = _patches("vit", input_shape, patch_size, width, rngs)

    def block(rngs: nnx.Rngs) -> nnx.Sequential:
        attention = nnx.MultiHeadAttention(
            heads, width, attention_fn=dot_product_attention, decode=False, rngs=rngs
        )
        return nnx.Sequential(
            Residual(nnx.Sequential(nnx.LayerNorm(width, rngs=rngs), attention)),
            Residual(_perceptron(width, 4 * width, rngs)),
        )

    return nnx.Sequential(
        *stem,
        LearnedPositions(length, width, rngs=rngs),
        *_blocks(block, depth, scan_layers, rngs),
        nnx.LayerNorm(width, rngs=rngs),
        average,
        nnx.Linear(width, outputs, rngs=rngs),
    )


def mixer(
    input_shape: Sequence[int],
    outputs: int,
    *,
    width: int = 32,
    depth: int = 2,
    patch_size: int = 2,
    scan_layers: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Sequential:
    """The MLP-Mixer (Tolstikhin et al. 2021): perceptrons over positions and over features in turn.

    Args:
        input_shape: (height, width, channels) of an image or (length, channels) of a signal.
        outputs: number of outputs.
        width: features of a patch.
        depth: number of blocks.
        patch_size: side of the patches that the image is cut into; what is left over at its end is unused.
        scan_layers: compile one block and scan over the blocks' parameters.
        rngs: source of the initial weights.

    Raises:
        ValueError: the patches are larger than the image.

    >>> model = nnx.eval_shape(lambda: bp.models.mixer((8, 8, 1), 10, patch_size=2, rngs=nnx.Rngs(0)))
    >>> sum(kernel.size for kernel in jax.tree.leaves(nnx.state(model, nnx.Param)))  # parameters
    21770
    """
    stem, length = _patches("mixer", input_shape, patch_size, width, rngs)

    def block(rngs: nnx.Rngs) -> nnx.Sequential:
        over_positions = (
            nnx.Linear(length, 2 * width, rngs=rngs),
            gelu,
            nnx.Linear(2 * width, length, rngs=rngs),
        )
        return nnx.Sequential(
            Residual(nnx.Sequential(nnx.LayerNorm(width, rngs=rngs), swap, *over_positions, swap)),
            Residual(_perceptron(width, 4 * width, rngs)),
        )

    return nnx.Sequential(
        *stem,
        *_blocks(block, depth, scan_layers, rngs),
        nnx.LayerNorm(width, rngs=rngs),
        average,
        nnx.Linear(width, outputs, rngs=rngs),
    )


def _perceptron(width, hidden, rngs, initial=None, last=None):
    """Normalization, a wider dense layer with GELU, and a dense layer back to the width."""
    initial = initial or nnx.initializers.lecun_normal()
    return nnx.Sequential(
        nnx.LayerNorm(width, rngs=rngs),
        nnx.Linear(width, hidden, kernel_init=initial, rngs=rngs),
        gelu,
        nnx.Linear(hidden, width, kernel_init=last or initial, rngs=rngs),
    )


def _blocks(block, depth, scan_layers, rngs):
    if scan_layers and depth:
        return [LayerStack(block, depth, rngs=rngs)]
    return [block(rngs) for _ in range(depth)]


def _patches(model, input_shape, patch_size, width, rngs):
    """The layers that make a sequence of patches of an image or signal, and its length."""
    layers: list = []
    if len(input_shape) == 1:
        layers, input_shape = [add_channel], (*input_shape, 1)
    *size, channels = input_shape
    if not 1 <= patch_size <= min(size):
        shape = tuple(input_shape)
        raise ValueError(f"{model}: patch_size {patch_size} does not fit examples of shape {shape}")
    window = (patch_size,) * len(size)
    cut = nnx.Conv(
        channels,
        width,
        window,
        strides=window,
        padding="VALID",
        conv_general_dilated=patch_convolution,
        rngs=rngs,
    )
    return [*layers, cut, positions], math.prod(n // patch_size for n in size)


def _check_heads(width, heads):
    if heads < 1 or width % heads:
        raise ValueError(f"width {width} is not a multiple of heads {heads}")
