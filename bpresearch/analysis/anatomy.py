"""The anatomy of one weight's gradient: every path from the weight to the loss, factor by factor.

The gradient of a weight is a sum over paths and, for each path, a product of factors: what the weight was
multiplied with (input), then the weights and activation derivatives that the path meets, and last the
derivative of the loss. The factors come from the chain rule's hand-written rules.
"""

import heapq
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from bpresearch import chainrule
from bpresearch.analysis.ablation import kind_of
from bpresearch.functional import format_path, merge, split
from bpresearch.models import add_channel, flatten

POOLINGS = (nnx.avg_pool, nnx.max_pool, nnx.min_pool)
RESHAPING = (flatten, add_channel)
MOST_FACTORS = 50_000_000
"""Of one layer: 400 MB in float64."""


class Link(NamedTuple):
    """A step of the paths: the layer that is passed, and the shape of what comes out of it (one example)."""

    kind: str  # input, weight, activation, loss; pooling or block where the layer is none of these
    layer: str
    shape: tuple[int, ...]


class Path(NamedTuple):
    """One path: the unit that each link leads to, as an index into its flattened output, and its factor."""

    product: float
    factors: tuple[float, ...]
    units: tuple[int, ...]
    example: int


class Anatomy(NamedTuple):
    """A gradient taken apart.

    Attributes:
        links: the steps that every path takes.
        paths: the paths with the largest products, the largest first.
        number: of all paths whose product is not zero.
        total: sum of all paths' products: the gradient.
        size: sum of their absolute values.
        rest: sum of the products of the paths that are not in `paths`.
    """

    links: tuple[Link, ...]
    paths: tuple[Path, ...]
    number: int
    total: float
    size: float

    @property
    def rest(self) -> float:
        return self.total - sum(path.product for path in self.paths)


Way = tuple[float, tuple[float, ...], tuple[int, ...]]
"""A path or the end of one: its product, its factors, and the units that it leads to."""


def take_apart(
    model: nnx.Module,
    loss_fn: Callable[..., jax.Array],
    x: Any,
    y: Any,
    weight: tuple[Any, ...],
    index: tuple[int, ...],
    *,
    paths: int = 5,
) -> Anatomy:
    """The paths by which one element of a parameter acts on the mean loss of a batch.

    The sums run over all paths, by dynamic programming over layers; only the largest paths are listed.

    Args:
        model: an `nnx.Sequential` of layers that treat each example by itself.
        loss_fn: as both engines take it.
        x, y: a batch of examples; in float64 the sum is the gradient to 1e-12.
        weight: path of the parameter, such as `("layers", 1, "kernel")`.
        index: of the element.
        paths: how many of the largest paths to list.

    Raises:
        ValueError: the model is no sequence of layers, a layer mixes examples, or one has too many factors.
    """
    found: list[tuple[list[np.ndarray], list[Way]]] = []
    links: tuple[Link, ...] = ()
    apart = _factors_of(_sequence(model), loss_fn, weight, index)
    for example in range(len(x)):
        links, factors = apart(x[example : example + 1], y[example : example + 1], 1 / len(x))
        found.append((factors, _largest(factors, paths)))
    listed = [Path(*path, n) for n, (_, largest) in enumerate(found) for path in largest]
    listed.sort(key=lambda path: -abs(path.product))
    every = [factors for factors, _ in found]
    return Anatomy(
        links,
        tuple(listed[:paths]),
        round(sum(_sum([(f != 0).astype(float) for f in factors]) for factors in every)),
        sum(_sum(factors) for factors in every),
        sum(_sum([np.abs(f) for f in factors]) for factors in every),
    )


def _sequence(model: nnx.Module) -> nnx.Sequential:
    """The model, if paths can be followed through it."""
    if not isinstance(model, nnx.Sequential):
        raise ValueError(f"paths lead through the layers of an nnx.Sequential, not of {type(model).__name__}")
    for path, layer in nnx.iter_modules(model):
        if isinstance(layer, nnx.BatchNorm) and not layer.use_running_average:
            raise ValueError(
                f"nnx.BatchNorm at {format_path(path)} mixes the examples of the batch, so that no path "
                "belongs to one example: take a model without it, or set use_running_average=True"
            )
    return model


def _factors_of(
    model: nnx.Sequential, loss_fn: Callable[..., jax.Array], weight: tuple[Any, ...], index: tuple[int, ...]
) -> Callable[..., tuple[tuple[Link, ...], list[np.ndarray]]]:
    """`(x, y, share) -> links, factors` for one example; factor arrays are (units after, units before).

    The first has one column, the weight itself, and the last one row, the loss. An activation's factors
    are a vector, as each unit leads to itself alone.
    """
    graphdef, params, state = split(model)
    first, leaf = weight[1], weight[2:]

    def factors(params: Any, x: jax.Array, y: jax.Array, share: jax.Array) -> list[jax.Array]:
        model, found = merge(graphdef, params, state), []
        for number, layer in enumerate(model.layers):
            name = ("layers", number)
            outputs, residuals = chainrule.forward(layer, x, name=name)

            def pull(y_bar, layer=layer, residuals=residuals, name=name):
                grads, x_bar = chainrule.backward(layer, residuals, y_bar, name=name)
                return reduce(lambda part, key: part[key], leaf, grads)[index] if number == first else x_bar  # noqa: B023

            if number > first and kind_of(layer) == "activation":
                found.append(pull(jnp.ones_like(outputs)).ravel())
            elif number >= first and layer not in RESHAPING:
                each = jnp.eye(outputs.size, dtype=outputs.dtype).reshape(-1, *outputs.shape)
                found.append(jax.vmap(pull)(each).reshape(outputs.size, -1))
            x = outputs
        values, residuals = chainrule.forward(loss_fn, x, y, name=("loss",))
        values_bar = jnp.full(values.shape, share / values.size, values.dtype)
        _, (outputs_bar, _) = chainrule.backward(loss_fn, residuals, values_bar, name=("loss",))
        return [*found, outputs_bar.reshape(1, -1)]

    compiled = jax.jit(factors)

    def apart(x, y, share):
        links = _links(model, loss_fn, first, leaf, x)
        return links, [np.asarray(array, np.float64) for array in compiled(params, x, y, share)]

    return apart


def _links(
    model: nnx.Sequential, loss_fn: Any, first: int, leaf: tuple[Any, ...], x: Any
) -> tuple[Link, ...]:
    graphdef, *variables = split(model)

    def outputs(x: jax.Array, *variables: Any) -> list[jax.Array]:
        values = [x]
        for layer in merge(graphdef, *variables).layers:
            values.append(layer(values[-1]))
        return values

    links, values = [], jax.eval_shape(outputs, x, *variables)
    for number, (layer, before, after) in enumerate(zip(model.layers, values[:-1], values[1:], strict=True)):
        if number < first or layer in RESHAPING:
            continue
        kind, name = kind_of(layer), format_path(("layers", number))
        if number > first and kind != "activation" and before.size * after.size > MOST_FACTORS:
            raise ValueError(
                f"{name} has {before.size:,} inputs and {after.size:,} outputs, more than {MOST_FACTORS:,} "
                "factors: take a smaller model or data set"
            )
        if number == first and kind == "weight":
            kind = "input" if leaf == ("kernel",) else "one"
        function = getattr(layer, "func", layer)
        links.append(Link(kind or ("pooling" if function in POOLINGS else "block"), name, after.shape[1:]))
    return (*links, Link("loss", getattr(loss_fn, "__name__", "loss"), ()))


def _sum(factors: list[np.ndarray]) -> float:
    """The sum over all paths: back-propagation, a product of matrices from the loss backward."""
    bar = np.ones(1)
    for factor in reversed(factors):
        bar = factor * bar if factor.ndim == 1 else factor.T @ bar
    return float(bar[0])


def _largest(factors: list[np.ndarray], count: int) -> list[Way]:
    """The paths with the largest absolute products, as (product, factors, units), the largest first.

    Backward through the links, every unit keeps the `count` largest ways from there to the loss: the best
    paths through a unit end in the best ways from it.
    """
    ways: list[list[Way]] = [[(1.0, (), ())]]
    for factor in reversed(factors):
        before: list[list[Way]] = []
        for unit in range(factor.shape[-1]):
            onward = [unit] if factor.ndim == 1 else range(factor.shape[0])
            values = factor[[unit]] if factor.ndim == 1 else factor[:, unit]
            reached = [
                (float(value) * product, (float(value), *rest), (after, *units))
                for after, value in zip(onward, values, strict=True)
                if value
                for product, rest, units in ways[after]
            ]
            before.append(heapq.nlargest(count, reached, key=lambda way: abs(way[0])))
        ways = before
    return ways[0]


def factor_statistics(
    model: nnx.Sequential, loss_fn: Callable[..., jax.Array], x: Any, y: Any
) -> list[tuple[str, str, Float[np.ndarray, " values"]]]:
    """Every factor downstream of the first layer, layer by layer: (layer, kind, its live values).

    Weights are the elements of the kernel, activation derivatives one value for each example and unit,
    the loss's derivative that of each example's loss by each output.
    """
    found, x = [], jnp.asarray(x)
    for number, layer in enumerate(model.layers):
        outputs, residuals = chainrule.forward(layer, x, name=("layers", number))
        kind, where = kind_of(layer), format_path(("layers", number))
        if kind == "weight":
            found.append((where, kind, np.asarray(layer.kernel[...], np.float64).ravel()))
        elif kind == "activation":
            _, slope = chainrule.backward(layer, residuals, jnp.ones_like(outputs))
            found.append((where, kind, np.asarray(slope, np.float64).ravel()))
        x = outputs
    values, residuals = chainrule.forward(loss_fn, x, y)
    _, (slope, _) = chainrule.backward(loss_fn, residuals, jnp.ones_like(values))
    return [*found, ("loss", "loss", np.asarray(slope, np.float64).ravel())]
