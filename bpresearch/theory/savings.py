"""What back-propagation saves: values kept, products shared, reciprocals instead of divisions.

A network of n equal layers, x <- tanh(x W), whose loss is the mean of its outputs' squares. Every variant
computes the same gradient of all n matrices; they differ in what they store and what they do again. The
costs are XLA's own counts for the compiled program.
"""

import re
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

Weights = Float[Array, "layers width width"]
Batch = Float[Array, "batch width"]
Copies = Float[Array, "copies batch width"]


class Inputs(NamedTuple):
    """What the variants start from: weights, a batch, its forward values, the derivative of the loss.

    The batch and the derivative come as often as there are layers (`xs`, `bars`), for passes that may not
    share them.
    """

    weights: Weights
    xs: Copies
    values: list[Batch]
    bars: Copies


def inputs(depth: int, width: int, batch: int, dtype: str = "float32") -> Inputs:
    """Random weights that keep the values' size, and a random batch."""
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(depth, width, width)) / np.sqrt(width), dtype)
    x = jnp.asarray(rng.normal(size=(batch, width)), dtype)
    values = forward(weights, x)
    bar = 2 * values[-1] / values[-1].size
    return Inputs(weights, jnp.stack([x] * depth), values, jnp.stack([bar] * depth))


def loss(weights: Weights, x: Batch) -> Float[Array, ""]:
    """The mean of the squared outputs."""
    return jnp.mean(forward(weights, x)[-1] ** 2)


def forward(weights: Weights, x: Batch) -> list[Batch]:
    """The input and every layer's output: the values that derivatives need."""
    values = [x]
    for w in weights:
        values.append(jnp.tanh(values[-1] @ w))
    return values


def back(bar: Batch, value: Batch, w: Float[Array, "width width"]) -> Batch:
    """One more factor of the product: from the cotangent of a layer's output to that of its input."""
    return (bar * (1 - value**2)) @ w.T


def stored_values(weights: Weights, xs: Copies) -> list:
    """The gradient with every layer's output kept from the one pass forward until it is needed."""
    values = forward(weights, xs[0])
    bar = 2 * values[-1] / values[-1].size
    return stored_products(weights, values, bar[None])


def recomputed_values(weights: Weights, xs: Copies) -> list:
    """The same with nothing kept: each layer's input is computed again from the network's input.

    Each pass has its own copy of the input, or the compiler would keep the values after all; and it takes a
    zero from the cotangent, so that it waits for it: passes side by side would need their memory at once.
    """
    grads, bar = [], None
    for layer in reversed(range(len(weights))):
        start = xs[layer] if bar is None else xs[layer] + 0 * bar
        *_, x, value = forward(weights[: layer + 1], start)
        bar = 2 * value / value.size if bar is None else bar
        grads.append(x.T @ (bar * (1 - value**2)))
        bar = back(bar, value, weights[layer])
    return grads[::-1]


def stored_products(weights: Weights, values: list[Batch], bars: Copies) -> list:
    """Reverse mode: one product from the loss backward, of which every layer's gradient takes its part."""
    bar, grads = bars[0], []
    for w, before, value in reversed(list(zip(weights, values[:-1], values[1:], strict=True))):
        grads.append(before.T @ (bar * (1 - value**2)))
        bar = back(bar, value, w)
    return grads[::-1]


def fresh_products(weights: Weights, values: list[Batch], bars: Copies) -> list:
    """The same, with every layer's product multiplied afresh, from the loss down to that layer.

    Each starts from its own copy of the loss's derivative, or the compiler would share the products again.
    """
    grads, depth = [], len(weights)
    for layer in range(depth):
        bar = bars[layer]
        for later in range(depth - 1, layer, -1):
            bar = back(bar, values[later + 1], weights[later])
        grads.append(values[layer].T @ (bar * (1 - values[layer + 1] ** 2)))
    return grads


VARIANTS: dict[str, Callable[[Inputs], list]] = {
    "values stored": lambda given: stored_values(given.weights, given.xs),
    "values recomputed": lambda given: recomputed_values(given.weights, given.xs),
    "products shared": lambda given: stored_products(given.weights, given.values, given.bars),
    "products afresh": lambda given: fresh_products(given.weights, given.values, given.bars),
}
"""The gradient of every layer's weights, by what is saved."""


def forward_mode(weights: Weights, x: Batch) -> Weights:
    """One parameter at a time: the derivative of the loss along each parameter's axis."""
    axes = jnp.eye(weights.size, dtype=weights.dtype).reshape(-1, *weights.shape)
    return jax.lax.map(partial(along, weights, x), axes).reshape(weights.shape)


def along(weights: Weights, x: Batch, direction: Weights) -> Float[Array, ""]:
    """The derivative of the loss along one direction, in a single pass forward."""
    return jax.jvp(lambda w: loss(w, x), (weights,), (direction,))[1]


class Cost(NamedTuple):
    """What a compiled program costs: operations and bytes of temporary values by XLA's analysis, and time."""

    operations: float
    memory: float
    microseconds: float


def cost(function: Callable[..., PyTree], *inputs: PyTree, calls: int = 5) -> Cost:
    """The cost of a function, compiled for these inputs; the time is the median of some calls."""
    compiled, times = jax.jit(function).lower(*inputs).compile(), []
    for _ in range(calls + 1):  # the first is not counted
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*inputs))
        times.append(1e6 * (time.perf_counter() - begin))
    analysis, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    operations, temporary = analysis.get("flops", np.nan), memory.temp_size_in_bytes if memory else np.nan
    return Cost(float(operations), float(temporary), float(np.median(times[1:])))


def exponent(sizes: list[int], costs: list[float]) -> float:
    """The power of the size that the costs grow with: the slope of a line through their logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def divide_rows(x: Batch, by: Float[Array, "batch 1"], how: str) -> Batch:
    """x / by: as "written", by "reciprocal" (x times 1 / by), or by "division" of each element for certain.

    The compiler may not look through the barrier, so that it cannot see that a row has one divisor.
    """
    if how == "written":
        return x / by
    if how == "reciprocal":
        return x * (1 / by)
    return x / jax.lax.optimization_barrier(jnp.broadcast_to(by, x.shape))


def softmax(x: Batch, how: str) -> Batch:
    """e^x / sum e^x."""
    powers = jnp.exp(x - jnp.max(x, axis=1, keepdims=True))
    return divide_rows(powers, jnp.sum(powers, axis=1, keepdims=True), how)


def normalize(x: Batch, how: str) -> Batch:
    """(x - mean) / standard deviation, row by row."""
    centred = x - jnp.mean(x, axis=1, keepdims=True)
    return divide_rows(centred, jnp.sqrt(jnp.mean(centred**2, axis=1, keepdims=True) + 1e-5), how)


def sigmoid(x: Batch, how: str) -> Batch:
    """1 / (1 + e^-x): each element has a divisor of its own; (1 + tanh(x / 2)) / 2 has none to divide by."""
    if how == "reciprocal":
        return 0.5 + 0.5 * jnp.tanh(0.5 * x)
    return 1 / (1 + jnp.exp(-x)) if how == "written" else jnp.ones_like(x) / (1 + jnp.exp(-x))


def elements_divided(function: Callable[..., PyTree], *inputs: PyTree) -> int:
    """How many numbers the optimised program divides: its `divide` instructions by their sizes."""
    text = jax.jit(function).lower(*inputs).compile().as_text() or ""
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* divide\(", text)
    return sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)
