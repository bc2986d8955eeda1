"""The anatomy of one weight's gradient: every path from the weight to the loss, factor by factor.

The gradient of a weight is a sum over paths and, for each path, a product of factors: what the weight was
multiplied with (input), then the weights and activation derivatives that the path meets, and last the
derivative of the loss. The factors come from the chain rule's hand-written rules. Paths run through the
equations of the traced loss (see `steps`), so any model has them; where there are branches, they part and
meet.
"""

import functools
import math
from collections.abc import Callable, Hashable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, PyTree

from bpresearch.chainrule.primitives import Equation, is_floating
from bpresearch.chainrule.whole import LayerCall
from bpresearch.functional import Loss, Params, TrainingLoss, as_inputs, merge, objective, split
from bpresearch.paths import format_path
from bpresearch.theory import routes
from bpresearch.theory.ablation import kind_of
from bpresearch.theory.slopes import UNSEEN, WEIGHT, Slope, Slopes, each, form_of, is_unseen, loss_bars
from bpresearch.theory.steps import LossProgram, Step, trace
from bpresearch.verify.precision import compiled

POOLINGS = (nnx.avg_pool, nnx.max_pool, nnx.min_pool)
BILINEAR = ("dot_general", "conv_general_dilated", "mul")
MOST_FACTORS = 50_000_000
"""Of one layer: 400 MB in float64."""


class Link(NamedTuple):
    """A step of the paths: the layer that is passed, and the shape of what comes out of it (one example).

    Attributes:
        kind: input, weight, activation, loss; one for a bias; pooling or block where it is none of these.
        layer: its path; of a function its name; of an equation outside of layers with rules, what is
            computed, and in which layer.
        shape: of what comes out; a complex number is two units.
        step: its number in the program.
        line: the user's own file and line; of the loss, which is many equations, none.
    """

    kind: str
    layer: str
    shape: tuple[int, ...]
    step: int = 0
    line: str = ""

    def unit_name(self, unit: int) -> str:
        """A unit by its place in the output: `[4]`, or `[12,3]` for position 12 of channel 3."""
        if self.kind == "loss":
            return "loss"
        return "[" + ",".join(str(i) for i in np.unravel_index(unit, self.shape)) + "]"


class Path(NamedTuple):
    """One path: the unit that each link leads to, as an index into its flattened output, and its factor.

    `example` is None where the examples of the batch are not independent: there the batch is one.
    """

    product: float
    factors: tuple[float, ...]
    units: tuple[int, ...]
    example: int | None
    links: tuple[Link, ...]


class Anatomy(NamedTuple):
    """A gradient taken apart.

    Attributes:
        links: the steps that the listed paths take, in order; all steps where none is listed.
        paths: the paths with the largest products, the largest first.
        number: of all paths whose product is not zero.
        total: sum of all paths' products: the gradient.
        size: sum of their absolute values.
        kinds: of factor that occur on any path whose product is not zero.
        rest: sum of the products of the paths that are not in `paths`.
    """

    links: tuple[Link, ...]
    paths: tuple[Path, ...]
    number: int
    total: float
    size: float
    kinds: frozenset[str]

    @property
    def rest(self) -> float:
        return self.total - sum(path.product for path in self.paths)

    def largest(self, count: int) -> "Anatomy":
        """The same with fewer paths listed."""
        links = {link for path in self.paths[:count] for link in path.links} or self.links
        return self._replace(
            links=tuple(link for link in self.links if link in links), paths=self.paths[:count]
        )


def take_apart(
    model: nnx.Module,
    loss_fn: Loss | TrainingLoss,
    x: PyTree,
    y: PyTree,
    weight: tuple[Hashable, ...],
    index: tuple[int, ...],
    *,
    paths: int = 5,
) -> Anatomy:
    """The paths by which one element of a parameter acts on the mean loss of a batch.

    The sums run over all paths, by dynamic programming over the program; only the largest paths are listed.
    Each example has paths of its own, if the loss is the mean of the examples' losses.

    Args:
        model: any NNX model.
        loss_fn: as both engines take it.
        x, y: a batch of examples; in float64 the sum is the gradient to 1e-12.
        weight: path of the parameter, such as `("layers", 1, "kernel")`.
        index: of the element.
        paths: how many of the largest paths to list.

    Raises:
        ValueError: a layer mixes examples as `nnx.BatchNorm` does in training, or has too many factors.
    """
    _refuse_batch_norm(model)
    single = independent_examples(model, loss_fn, x, y, weight)
    batches = [(x, y)] if single is None else single
    program = trace(model, loss_fn, *batches[0], 1 / len(batches))
    slopes = Slopes(program, program.paths.index(weight))
    name = getattr(loss_fn, "__name__", "loss")
    links = [_link(program, slope, name, single is not None) for slope in slopes.listed]
    _refuse_too_large(slopes, links)
    graphs = [_edges(slopes, values) for values in _evaluated(slopes, index, batches)]
    return _anatomy(graphs, slopes.end, links, paths, single is not None)


def _anatomy(
    graphs: list[list[routes.Edge]], end: int, links: list[Link | None], paths: int, single: bool
) -> Anatomy:
    """All examples' paths together."""
    listed = [
        _path(route, links, n if single else None)
        for n, edges in enumerate(graphs)
        for route in routes.largest(edges, WEIGHT, end, paths)
    ]
    listed = sorted(listed, key=lambda path: -abs(path.product))[:paths]
    passed = {link for path in listed for link in path.links} or {link for link in links if link}
    ordered = sorted(passed, key=lambda link: (link.kind == "loss", link.step))
    number, total, size = np.sum([_sums(edges, end) for edges in graphs], axis=0)
    live = {links[edge] for edges in graphs for edge in routes.live(edges, WEIGHT, end)}
    kinds = frozenset(link.kind for link in live if link)
    return Anatomy(tuple(ordered), tuple(listed), round(number), float(total), float(size), kinds)


def _refuse_batch_norm(model: nnx.Module) -> None:
    for path, layer in nnx.iter_modules(model):
        if isinstance(layer, nnx.BatchNorm) and not layer.use_running_average:
            raise ValueError(
                f"nnx.BatchNorm at {format_path(path)} mixes the examples of the batch, so that no path "
                "belongs to one example: take a model without it, or set use_running_average=True"
            )


def independent_examples(
    model: nnx.Module, loss_fn: Loss | TrainingLoss, x: PyTree, y: PyTree, weight: tuple[Hashable, ...]
) -> list[tuple[PyTree, PyTree]] | None:
    """The batch as batches of one, if its loss and gradient are the means of theirs; else None."""
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves((x, y))}
    if len(sizes) != 1 or sizes == {()}:
        return None
    ((count,),) = sizes
    single = [jax.tree.map(lambda leaf, n=n: leaf[n : n + 1], (x, y)) for n in range(count)]
    by_jax = gradient_by_jax(model, loss_fn)

    def loss_and_gradient(x: PyTree, y: PyTree) -> Float[np.ndarray, " values"]:
        loss, grads = by_jax(x, y)
        return np.append(np.asarray(leaf_at(grads, weight), np.float64), float(loss))

    try:
        apart = [loss_and_gradient(*batch) for batch in single]
    except (TypeError, ValueError, IndexError):  # the model does not take a batch of one
        return None
    rounding = 1000 * jnp.finfo(jnp.result_type(float)).eps * np.mean(np.abs(apart), axis=0)
    differences = np.abs(loss_and_gradient(x, y) - np.mean(apart, axis=0))
    return single if np.all(differences <= rounding + np.finfo(float).tiny) else None


def gradient_by_jax(
    model: nnx.Module, loss_fn: Loss | TrainingLoss
) -> Callable[..., tuple[jax.Array, Params]]:
    """The function `(x, y) -> loss, grads` by `jax.grad`, compiled."""
    graphdef, params, state = split(model)
    of_batch = objective(loss_fn)

    def loss(params, state, x, y):
        return of_batch(merge(graphdef, params, state), params, x, y)

    return functools.partial(compiled(jax.value_and_grad(loss)), params, state)


def leaf_at(tree: PyTree, path: tuple[Hashable, ...]) -> PyTree:
    """The array at a path of a nested dict."""
    for key in path:
        tree = tree[key]
    return tree


# -------------------------------------------------------------------------------------------------- the links


def _link(program: LossProgram, slope: Slope, loss: str, single: bool) -> Link | None:
    """The link that a slope is; None where paths pass without a factor."""
    step = program.steps.steps[slope.step]
    if slope.form == "loss":
        return Link("loss", loss, (), slope.step)
    if slope.unseen:
        return None
    shape = slope.shape_after[1:] if single and slope.shape_after[:1] == (1,) else slope.shape_after
    return Link(_kind(program, step, slope.operand), _name(step), shape, slope.step, step.line)


def _name(step: Step) -> str:
    """A module's path, a function's name: `layers.1` of a dense layer, `sigmoid` of what comes after it."""
    call = step.call
    if not call:
        return f"{step.layer} {step.name}".strip()
    return call.path if call.path and isinstance(call.layer, nnx.Module) else call.name


def _kind(program: LossProgram, step: Step, k: int) -> str:
    """The kind of the factors that come from a step's operand."""
    if step.call:
        return _kind_in_layer(step.call, k)
    name, others = step.eqn.primitive.name, [*step.ins[:k], *step.ins[k + 1 :]]
    if name in BILINEAR and any(v in program.data for v in others) and step.ins[k] in program.parameters:
        return "input"
    if name in BILINEAR and any(v in program.parameters for v in others):
        return "weight"
    if name in UNSEEN and step.ins[k] in program.parameters:
        return "one"
    if form_of(step, k) == "each":
        return "activation"
    return "pooling" if name.startswith(("reduce_window", "reduce_max", "reduce_min")) else "block"


def _kind_in_layer(call: LayerCall, k: int) -> str:
    kind, own = kind_of(call.layer_with_options), call.names[k].removeprefix("gradient of ")
    if kind == "weight" and own != call.names[k]:
        return {"kernel": "input", "bias": "one"}.get(own, "block")
    return kind or ("pooling" if call.layer in POOLINGS else "block")


def _refuse_too_large(slopes: Slopes, links: list[Link | None]) -> None:
    for slope, link in zip(slopes.listed, links, strict=True):
        before, after = math.prod(slope.shape_before), math.prod(slope.shape_after)
        if link and slope.form == "dense" and slope.before != WEIGHT and before * after > MOST_FACTORS:
            raise ValueError(
                f"{link.layer} has {before:,} inputs and {after:,} outputs, more than {MOST_FACTORS:,} "
                "factors: take a smaller model or data set"
            )


# -------------------------------------------------------------------------------------------------- the paths


def _evaluated(
    slopes: Slopes, index: tuple[int, ...], batches: list[tuple[PyTree, PyTree]]
) -> Iterator[list[np.ndarray]]:
    """The numbers in all slopes, batch by batch, in one compiled program."""
    args = [slopes.program.flatten(*batch) for batch in batches]
    place = int(np.ravel_multi_index(index, args[0][slopes.parameter].shape))
    program = compiled(slopes.values(place))
    for operands in args:
        yield jax.device_get(program(operands))


def _edges(slopes: Slopes, values: list[np.ndarray]) -> list[routes.Edge]:
    return [
        routes.Edge(slope.before, slope.after, slopes.factors(slope, np.asarray(value)))
        for slope, value in zip(slopes.listed, values, strict=True)
    ]


def _sums(edges: list[routes.Edge], end: int) -> tuple[float, float, float]:
    """Of all paths: their number, the sum of their products, the sum of their absolute values."""

    def total(of_factors: Callable[[np.ndarray], np.ndarray]) -> float:
        mapped = [e._replace(factors=e.factors._replace(values=of_factors(e.factors.values))) for e in edges]
        return routes.total(mapped, WEIGHT, end)

    return total(np.ones_like), total(np.array), total(np.abs)


def _path(route: routes.Route, links: list[Link | None], example: int | None) -> Path:
    """The route by the links that it passes."""
    passed = [
        (factor, unit, link)
        for edge, unit, factor in zip(route.edges, route.units, route.factors, strict=True)
        if (link := links[edge])
    ]
    factors, units, passed_links = zip(*passed, strict=True)
    return Path(route.product, factors, units, example, passed_links)


# ------------------------------------------------------------------------------------------ all live factors


def factor_statistics(
    model: nnx.Module, loss_fn: Loss, x: PyTree, y: PyTree
) -> list[tuple[str, str, Float[np.ndarray, " values"]]]:
    """Every factor that a gradient of the model meets, layer by layer: (layer, kind, its live values).

    Weights are the elements of the kernel, activation derivatives one value for each example and unit,
    the loss's derivative that of each example's loss by each output.
    """
    program = trace(model, loss_fn, x, y, float(_number_of_values(model, loss_fn, x, y)))
    moving = program.steps.moving(range(len(program.paths)))
    equations = program.steps.evaluate(program.flatten(x, y), moving)
    factors = []
    for i, (step, e) in enumerate(zip(program.steps.steps, equations, strict=True)):
        if i not in program.of_loss and any(out in moving for out in step.outs):
            factors += [(_name(step), *values) for values in _live_factors(program, step, e)]
    bars = loss_bars(program, equations, moving)
    made = {out for i in program.of_loss for out in program.steps.steps[i].outs}
    slopes = [np.ravel(bar) for v, bar in bars.items() if v not in made]
    return [*factors, ("loss", "loss", np.concatenate(slopes).astype(np.float64))]


def _number_of_values(model: nnx.Module, loss_fn: Loss, x: PyTree, y: PyTree) -> int:
    graphdef, params, state = split(model)

    def values(params, state, x, y):
        return loss_fn(*as_inputs(merge(graphdef, params, state)(*as_inputs(x))), *as_inputs(y))

    return jax.eval_shape(values, params, state, x, y).size


def _live_factors(
    program: LossProgram, step: Step, e: Equation
) -> Iterator[tuple[str, Float[np.ndarray, " values"]]]:
    """The weights, or the derivatives of the activation, that a step multiplies its data with."""
    for k, v in enumerate(step.ins):
        if v not in program.data or not is_floating(e.ins[k]):
            continue
        kind = _kind(program, step, k)
        if kind == "weight":
            names = step.call.names if step.call else ["gradient of kernel"] * len(step.ins)
            weights = [
                np.ravel(x)
                for x, own, name in zip(e.ins, step.ins, names, strict=True)
                if own in program.parameters and name == "gradient of kernel"
            ]
            yield kind, np.concatenate(weights).astype(np.float64)
        elif kind == "activation" and not is_unseen(step, k):
            yield kind, np.ravel(each(e, k, None)).astype(np.float64)
