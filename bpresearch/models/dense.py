"""Models of dense layers: the linear classifier, the multi-layer perceptron and its residual sibling."""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
from flax import nnx

from bpresearch.models.combinators import Residual
from bpresearch.models.initializers import initializers
from bpresearch.models.shapes import flatten

Activation = Callable[[jax.Array], jax.Array]


def dense(inputs: int, outputs: int, initialization: str, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer with initial weights by name."""
    return nnx.Linear(inputs, outputs, **initializers(initialization, inputs), rngs=rngs)


def linear(
    input_shape: Sequence[int], outputs: int, *, initialization: str = "lecun", rngs: nnx.Rngs
) -> nnx.Sequential:
    """o = W x + b: with cross-entropy, multinomial logistic regression.

    Args:
        input_shape: shape of one example; its axes are flattened.
        outputs: number of outputs.
        initialization: a name that `initializers` takes.
        rngs: source of the initial weights.

    >>> model = bp.models.linear((8, 8, 1), 10, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 8, 8, 1))).shape
    (2, 10)
    """
    return nnx.Sequential(flatten, dense(math.prod(input_shape), outputs, initialization, rngs))


def mlp(
    input_shape: Sequence[int],
    outputs: int,
    *,
    widths: Sequence[int] = (100, 100),
    activation: Activation = nnx.relu,
    initialization: str = "lecun",
    rngs: nnx.Rngs,
) -> nnx.Sequential:
    """A multi-layer perceptron: dense layers of the given widths with an activation after each.

    Args:
        input_shape: shape of one example; its axes are flattened.
        outputs: number of outputs.
        widths: width of each hidden layer; none makes the model linear.
        activation: the function between layers.
        initialization: a name that `initializers` takes.
        rngs: source of the initial weights.

    Raises:
        ValueError: a width is below 1.

    >>> model = nnx.eval_shape(lambda: bp.models.mlp((40,), 10, widths=(16, 16), rngs=nnx.Rngs(0)))
    >>> sum(kernel.size for kernel in jax.tree.leaves(nnx.state(model, nnx.Param)))  # parameters
    1098
    """
    if min(widths, default=1) < 1:
        raise ValueError(f"widths {widths} holds {min(widths)}: take positive integers")
    sizes = [math.prod(input_shape), *widths]
    layers: list = [flatten]
    for before, after in itertools.pairwise(sizes):
        layers += [dense(before, after, initialization, rngs), activation]
    return nnx.Sequential(*layers, dense(sizes[-1], outputs, initialization, rngs))


def residual_mlp(
    input_shape: Sequence[int],
    outputs: int,
    *,
    width: int = 100,
    depth: int = 1,
    activation: Activation = nnx.relu,
    initialization: str = "lecun",
    rngs: nnx.Rngs,
) -> nnx.Sequential:
    """The MLP of the MNIST-1D paper: h = relu(W x), then h <- h + relu(W h) (Greydanus and Kobak 2024).

    Args:
        input_shape: shape of one example; its axes are flattened.
        outputs: number of outputs.
        width: width of every hidden layer; 100 in the paper.
        depth: number of residual branches; one in the paper.
        activation: the function after each hidden layer.
        initialization: a name that `initializers` takes; the paper has `torch`.
        rngs: source of the initial weights.

    Raises:
        ValueError: the width is below 1.

    >>> model = nnx.eval_shape(lambda: bp.models.residual_mlp((40,), 10, width=16, depth=2, rngs=nnx.Rngs(0)))
    >>> sum(kernel.size for kernel in jax.tree.leaves(nnx.state(model, nnx.Param)))  # parameters
    1370
    """
    if width < 1:
        raise ValueError(f"width {width}: take a positive integer")
    layers: list = [flatten, dense(math.prod(input_shape), width, initialization, rngs), activation]
    for _ in range(depth):
        branch = nnx.Sequential(dense(width, width, initialization, rngs), activation)
        layers.append(Residual(branch))
    return nnx.Sequential(*layers, dense(width, outputs, initialization, rngs))


def autoencoder(
    input_shape: Sequence[int],
    outputs: int,
    *,
    widths: Sequence[int] = (100, 50, 8),
    activation: Activation = nnx.tanh,
    initialization: str = "lecun",
    rngs: nnx.Rngs,
) -> nnx.Sequential:
    """A deep autoencoder (Hinton and Salakhutdinov 2006): to a short code and, mirrored, back.

    The code itself and the output have no activation.

    Args:
        input_shape: shape of one example; its axes are flattened.
        outputs: number of outputs: the size of an example.
        widths: width of each layer of the encoder; the last is that of the code.
        activation: the function after each other hidden layer.
        initialization: a name that `initializers` takes.
        rngs: source of the initial weights.

    Raises:
        ValueError: there is no width, or one below 1.

    >>> model = nnx.eval_shape(lambda: bp.models.autoencoder((8, 8, 1), 64, rngs=nnx.Rngs(0)))
    >>> sum(kernel.size for kernel in jax.tree.leaves(nnx.state(model, nnx.Param)))  # parameters
    23972
    """
    if min(widths, default=0) < 1:
        raise ValueError(f"widths {tuple(widths)}: take at least one positive integer")
    sizes = [math.prod(input_shape), *widths, *reversed(widths[:-1]), outputs]
    code = len(widths)
    layers: list = [flatten]
    for number, (before, after) in enumerate(itertools.pairwise(sizes), start=1):
        layers.append(dense(before, after, initialization, rngs))
        if number not in (code, len(sizes) - 1):
            layers.append(activation)
    return nnx.Sequential(*layers)
