"""Convolution as a matrix times patches, and the windows it shares with pooling.

XLA's convolution on the CPU loses most of its speed inside loops (`lax.scan`, `lax.map`), and on a GPU under
`vmap`, where kernels that differ between runs make it a convolution with a group for each run. Cutting out
the shifted copies of the input that the kernel sees, its *patches*, and multiplying them by the kernel as a
matrix ("im2col", Chellapilla, Puri and Simard 2006) keeps the speed of matrix products there. The matrices
have positions and examples along their rows: there are more of them than channels, and long rows are what
products and copies on a CPU are fast with.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Shaped

Padding = tuple[tuple[int, int], ...]


def offsets(window: Sequence[int], dilation: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Where the elements of a dilated window lie, in row-major order."""
    return itertools.product(*(range(0, w * d, d) for w, d in zip(window, dilation, strict=True)))


def take(
    x: Shaped[Array, "first *padded last"],
    offset: Sequence[int],
    strides: Sequence[int],
    size: Sequence[int],
) -> Shaped[Array, "first *size last"]:
    """What one element of the window sees as the window moves: x[:, offset + strides * t] for t < size."""
    limits = [o + s * (n - 1) + 1 for o, s, n in zip(offset, strides, size, strict=True)]
    return lax.slice(x, (0, *offset, 0), (x.shape[0], *limits, x.shape[-1]), (1, *strides, 1))


def pad(x: Array, padding: Padding, value: ArrayLike = 0, dilation: Sequence[int] | None = None) -> Array:
    """Pads (or, where negative, crops) the spatial axes, with `dilation - 1` values between elements."""
    if dilation is None and all(side <= 0 for pair in padding for side in pair):  # XLA fuses slices better
        begin = [-low for low, _ in padding]
        end = [n + high for n, (_, high) in zip(x.shape[1:-1], padding, strict=True)]
        return lax.slice(x, (0, *begin, 0), (x.shape[0], *end, x.shape[-1]))
    interior = [d - 1 for d in dilation] if dilation else [0] * len(padding)
    spatial = [(low, high, gap) for (low, high), gap in zip(padding, interior, strict=True)]
    return lax.pad(x, jnp.asarray(value, x.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])


def padded_size(size: Sequence[int], padding: Padding, dilation: Sequence[int]) -> tuple[int, ...]:
    """Spatial size after `pad`."""
    return tuple(
        (n - 1) * d + 1 + low + high for n, (low, high), d in zip(size, padding, dilation, strict=True)
    )


def output_size(
    padded: Sequence[int], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Number of positions of a window in a padded input: floor((n - d (w - 1) - 1) / s) + 1, at least 0."""
    return tuple(
        max((n - d * (w - 1) - 1) // s + 1, 0)
        for n, w, s, d in zip(padded, window, strides, dilation, strict=True)
    )


def explicit_padding(
    padding: str | Sequence[tuple[int, int]],
    size: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> Padding:
    """ "SAME", "VALID" or explicit pairs as explicit pairs."""
    if isinstance(padding, str):
        spread = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
        return tuple(lax.padtype_to_pads(tuple(size), spread, tuple(strides), padding))
    return tuple((int(low), int(high)) for low, high in padding)


def patch_convolution(
    x: Shaped[Array, "batch *spatial in"],
    kernel: Shaped[Array, "*window in_per_group out"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    dimension_numbers: Any = None,
    out_sharding: None = None,
) -> Shaped[Array, "batch *moved out"]:
    """`lax.conv_general_dilated` for channels-last arrays: pass it to `nnx.Conv(conv_general_dilated=...)`.

    y[n, t] = sum_k x[n, s t + d k - low] W[k], the sum over the elements k of the window.

    >>> layer = nnx.Conv(1, 2, (3,), conv_general_dilated=bp.models.patch_convolution, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 5, 1))).shape
    (1, 5, 2)
    """
    patches = extract_patches(x, kernel.shape[:-2], window_strides, padding, lhs_dilation, rhs_dilation)
    options = {"precision": precision, "preferred_element_type": preferred_element_type}
    *window, group_in, out = kernel.shape
    if feature_group_count == 1:
        # As one matrix product: autodiff's derivative of a product with more axes copies its transpose.
        columns = patches.reshape(patches.shape[0], -1)
        y = jnp.matmul(jnp.moveaxis(kernel, -1, 0).reshape(out, -1), columns, **options)
    else:
        columns = patches.reshape(math.prod(window), feature_group_count, group_in, -1)
        matrix = kernel.reshape(-1, group_in, feature_group_count, out // feature_group_count)
        y = jnp.einsum("kgin,kigo->gon", columns, matrix, **options)
    return jnp.swapaxes(y.reshape(out, *patches.shape[1:]), 0, -1)


def extract_patches(
    x: Shaped[Array, "batch *spatial channels"],
    window: Sequence[int],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
) -> Shaped[Array, "patch *moved batch"]:
    """The input under the window at each of its positions, one element of the window after another."""
    dilated = padded_size(x.shape[1:-1], ((0, 0),) * len(window), lhs_dilation)
    pads = explicit_padding(padding, dilated, window, strides, rhs_dilation)
    x = pad(jnp.swapaxes(x, 0, -1), pads, dilation=lhs_dilation)
    size = output_size(x.shape[1:-1], window, strides, rhs_dilation)
    if 0 in size:
        return jnp.zeros((math.prod(window) * x.shape[0], *size, x.shape[-1]), x.dtype)
    taken = [take(x, offset, strides, size) for offset in offsets(window, rhs_dilation)]
    return jnp.concatenate(taken, axis=0)


def put_back(
    parts: Sequence[Shaped[Array, "first *moved last"]],
    where: Sequence[tuple[int, ...]],
    strides: Sequence[int],
    size: Sequence[int],
) -> Shaped[Array, "first *size last"]:
    """The adjoint of taking patches: each element of the input adds up all the windows that saw it.

    Args:
        parts: for each element of the window, the cotangent of what it saw as the window moved.
        where: the offsets of these elements.
        strides: how the window moved.
        size: spatial size of the padded input.
    """
    moved = parts[0].shape[1:-1]
    total = jnp.zeros((parts[0].shape[0], *size, parts[0].shape[-1]), parts[0].dtype)
    if 0 in moved:
        return total
    for part, offset in zip(parts, where, strict=True):
        spread = [(m - 1) * s + 1 for m, s in zip(moved, strides, strict=True)]
        around = tuple((o, n - o - m) for o, n, m in zip(offset, size, spread, strict=True))
        total = total + pad(part, around, dilation=strides)
    return total
