"""Recurrent models of sequences: of a signal's points or an image's rows."""

import math
from collections.abc import Sequence
from functools import partial

from flax import nnx

from bpresearch.models.dense import dense
from bpresearch.models.initializers import initializers
from bpresearch.models.shapes import flatten, last, steps


def gru(
    input_shape: Sequence[int],
    outputs: int,
    *,
    width: int = 32,
    depth: int = 1,
    initialization: str = "lecun",
    rngs: nnx.Rngs,
) -> nnx.Sequential:
    """Gated recurrent units (Cho et al. 2014) whose last output is classified by a dense layer.

    Args:
        input_shape: shape of one example; its first axis is time, and the others are flattened.
        outputs: number of outputs.
        width: number of hidden units.
        depth: number of recurrences one on another, at least 1.
        initialization: `lecun`, with orthogonal recurrent weights, or another name that `initializers`
            takes, for all weights.
        rngs: source of the initial weights.

    >>> model = nnx.eval_shape(lambda: bp.models.gru((40, 1), 10, rngs=nnx.Rngs(0)))
    >>> sum(kernel.size for kernel in jax.tree.leaves(nnx.state(model, nnx.Param)))  # parameters
    3594
    """
    return _classifier(nnx.GRUCell, input_shape, outputs, width, depth, initialization, rngs)


def lstm(
    input_shape: Sequence[int],
    outputs: int,
    *,
    width: int = 32,
    depth: int = 1,
    initialization: str = "lecun",
    rngs: nnx.Rngs,
) -> nnx.Sequential:
    """Long short-term memory (Hochreiter and Schmidhuber 1997) whose last output is classified.

    Takes the arguments of `gru`.

    >>> model = nnx.eval_shape(lambda: bp.models.lstm((40, 1), 10, rngs=nnx.Rngs(0)))
    >>> sum(kernel.size for kernel in jax.tree.leaves(nnx.state(model, nnx.Param)))  # parameters
    4682
    """
    return _classifier(nnx.OptimizedLSTMCell, input_shape, outputs, width, depth, initialization, rngs)


def bidirectional_gru(
    input_shape: Sequence[int],
    outputs: int,
    *,
    width: int = 6,
    initialization: str = "lecun",
    rngs: nnx.Rngs,
) -> nnx.Sequential:
    """The recurrent model of the MNIST-1D paper: its outputs at all times go into one dense layer.

    With `initialization="torch"` and the default width it is the paper's GRU (Greydanus and Kobak 2024),
    but for a second bias of the hidden state that PyTorch adds.

    Args:
        input_shape: shape of one example; its first axis is time, and the others are flattened.
        outputs: number of outputs.
        width: number of hidden units in each direction; 6 in the paper.
        initialization: as in `gru`; the paper has `torch`.
        rngs: source of the initial weights.

    >>> model = nnx.eval_shape(lambda: bp.models.bidirectional_gru((40, 1), 10, rngs=nnx.Rngs(0)))
    >>> sum(kernel.size for kernel in jax.tree.leaves(nnx.state(model, nnx.Param)))  # parameters
    5098
    """
    time, features = input_shape[0], math.prod(input_shape[1:])
    cells = (_cell(nnx.GRUCell, features, width, initialization, rngs) for _ in range(2))
    return nnx.Sequential(
        steps,
        nnx.Bidirectional(*map(nnx.RNN, cells)),
        flatten,
        dense(2 * width * time, outputs, initialization, rngs),
    )


def _classifier(cell_type, input_shape, outputs, width, depth, initialization, rngs):
    if depth < 1:
        raise ValueError(f"depth {depth}: a recurrent model has at least 1 recurrence")
    sizes = [math.prod(input_shape[1:]), *[width] * (depth - 1)]
    layers = [nnx.RNN(_cell(cell_type, n, width, initialization, rngs)) for n in sizes]
    return nnx.Sequential(steps, *layers, last, dense(width, outputs, initialization, rngs))


def _cell(cell_type, features, width, initialization, rngs):
    init = initializers(initialization, width)
    if initialization != "lecun":
        init["recurrent_kernel_init"] = init["kernel_init"]
    return partial(cell_type, features, width, **init)(rngs=rngs)
