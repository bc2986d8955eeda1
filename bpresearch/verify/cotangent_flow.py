"""The sizes of what flows through a model: of each layer's output, and of its cotangent."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from bpresearch import chainrule
from bpresearch.chainrule.notes import collecting, note
from bpresearch.chainrule.primitives import LAYER, Equation, is_floating
from bpresearch.functional import TrainingLoss, split

FOLD = 1000.0
"""A cotangent that shrinks or grows so many times is said to vanish or to explode."""

WHOLE = -1
"""The depth of a layer that is one equation."""


@dataclass(frozen=True)
class Flowing:
    """What flows through one layer.

    Attributes:
        layer: its path; "model" for operations in no layer, listed only where there is no layer.
        output_rms, output_max: root mean square and largest absolute value of its output.
        cotangent_rms, cotangent_max: the same of the derivative of the loss with respect to its output.
        ratio: `cotangent_rms` over that of the next layer; NaN for the last.
    """

    layer: str
    output_rms: float
    output_max: float
    cotangent_rms: float
    cotangent_max: float
    ratio: float = math.nan


@dataclass(frozen=True)
class Flow:
    """The rows of all layers, in the network's order."""

    rows: tuple[Flowing, ...]

    @property
    def summary(self) -> str:
        """One sentence: whether the cotangent vanishes or explodes on its way back, or stays in between."""
        if not self.rows:
            return "No layer of the model has a cotangent."
        *_, last = self.rows
        sizes = [row.cotangent_rms for row in self.rows]
        broken = next((row for row in reversed(self.rows) if not math.isfinite(row.cotangent_rms)), None)
        if broken is not None:
            return (
                f"The cotangent is not finite from {broken.layer} on: ask bp.verify.find_nan where it begins."
            )
        if last.cotangent_rms == 0:
            return f"The cotangent of {last.layer}, the last layer, is zero: the loss does not depend on it."
        least, most = (pick(self.rows, key=lambda row: row.cotangent_rms) for pick in (min, max))
        if least.cotangent_rms == 0:
            (*_, least) = (row for row in self.rows if row.cotangent_rms == 0)
            return f"The cotangent of {least.layer} is zero: nothing comes back to it from {last.layer}."
        if last.cotangent_rms / least.cotangent_rms >= FOLD:
            fold = last.cotangent_rms / least.cotangent_rms
            return f"The cotangent shrinks {fold:.0e}-fold from {last.layer} to {least.layer}: vanishing."
        if most.cotangent_rms / last.cotangent_rms >= FOLD:
            fold = most.cotangent_rms / last.cotangent_rms
            return f"The cotangent grows {fold:.0e}-fold from {last.layer} to {most.layer}: exploding."
        fold = max(sizes) / min(sizes)
        return f"Neither vanishing nor exploding: the cotangents of all layers are within {fold:.2g}-fold."

    def __str__(self) -> str:
        head = f"{'layer':<30}{'output':>9}{'max':>9}  {'cotangent':>10}{'max':>9}{'ratio':>9}"
        lines = [head]
        for row in self.rows:
            name = row.layer if len(row.layer) < 30 else "..." + row.layer[-26:]
            sizes = (row.output_rms, row.output_max, row.cotangent_rms, row.cotangent_max)
            a, b, c, d = (f"{size:.1e}" for size in sizes)
            ratio = "" if math.isnan(row.ratio) and row is self.rows[-1] else f"{row.ratio:.2g}"
            lines.append(f"{name:<30}{a:>9}{b:>9}  {c:>10}{d:>9}{ratio:>9}")
        return "\n".join([*lines, self.summary])

    def to_json(self) -> str:
        """The rows and the sentence as JSON; a number that JSON does not have is a string."""
        rows = [
            {k: v if isinstance(v, str) or math.isfinite(v) else str(v) for k, v in asdict(row).items()}
            for row in self.rows
        ]
        return json.dumps({"rows": rows, "summary": self.summary}, indent=2)


def flow(
    model: nnx.Module | Callable[..., PyTree],
    loss_fn: Callable[..., PyTree] | nnx.Module,
    x: PyTree,
    y: PyTree = None,
) -> Flow:
    """Lists how large each layer's output is, and the cotangent that comes back to it.

    In one of two forms, as `bpresearch.verify.model` and `bpresearch.verify.loss` take it:
    `flow(model, loss_fn, x, y)` or `flow(loss, model, batch)`. Of a layer that has no rule, the last
    operation in it is taken for its output; of one that is called several times, or in a loop, the largest.

    Args:
        model, loss_fn, x, y: an NNX model, `(outputs, targets) -> values`, its input and the targets; or the
            loss `(model, batch) -> value`, the model and the batch.

    Raises:
        NoPrimitiveRuleError: an operation in the model or the loss has no rule.
        TypeError: neither of the first two arguments is a model.

    >>> layers = [nnx.Linear(8, 8, rngs=nnx.Rngs(seed)) for seed in range(3)]
    >>> model = nnx.Sequential(layers[0], nnx.sigmoid, layers[1], nnx.sigmoid, layers[2])
    >>> flow = bp.verify.flow(model, optax.losses.squared_error, np.ones((4, 8)), np.zeros((4, 8)))
    >>> [row.layer for row in flow.rows]
    ['layers.0', 'layers.1', 'layers.2', 'layers.3', 'layers.4']
    >>> print(flow.summary)
    Neither vanishing nor exploding: the cotangents of all layers are within ...-fold.
    """
    if isinstance(loss_fn, nnx.Module):
        model, loss_fn, x, y = loss_fn, TrainingLoss(model), (), x
    if not isinstance(model, nnx.Module):
        raise TypeError(f"flow: neither {model!r} nor {loss_fn!r} is a flax.nnx.Module")
    graphdef, params, state = split(model)
    last: dict[tuple[str, int], Any] = {}
    order: dict[str, None] = {}

    def watch(e: Equation, bars: Sequence[PyTree], x_bars: PyTree) -> PyTree:
        if e.primitive.name == LAYER and e.params["call"].layer is loss_fn:
            return x_bars  # the loss is no layer of the model
        floating = [
            (y, bar) for y, bar in zip(e.outs, bars, strict=True) if bar is not None and is_floating(y)
        ]
        place, depth = e.layer or "model", WHOLE if e.primitive.name == LAYER else _depth(e)
        # Equations come from the last to the first: the first that is seen of a layer is what it ends with.
        ends = depth == WHOLE or last.setdefault((place, depth), e.source) is e.source
        if floating and ends:
            order[place] = order.pop(place, None)
            for kind, values in zip(("output", "cotangent"), zip(*floating, strict=True), strict=True):
                rms, largest = _size(values)
                note((place, depth, kind), largest, (rms, largest))
        return x_bars

    @jax.jit
    def sizes(params, state, batch):
        with chainrule.watching(watch), collecting() as notes:
            chainrule.gradient(graphdef, loss_fn)(params, state, batch)
        return {about: what for about, (_, what) in notes.items()}

    magnitudes = sizes(params, state, (x, y))
    rows: list[Flowing] = []
    layers = [place for place in order if place != "model"]
    for place in layers or order:  # from the last to the first
        depth = min(depth for name, depth, _ in magnitudes if name == place)
        output, cotangent = (map(float, magnitudes[place, depth, kind]) for kind in ("output", "cotangent"))
        row = Flowing(place, *output, *cotangent)
        if rows and rows[-1].cotangent_rms:
            row = replace(row, ratio=row.cotangent_rms / rows[-1].cotangent_rms)
        rows.append(row)
    return Flow(tuple(reversed(rows)))


def _depth(e: Equation) -> int:
    return 0 if e.enclosing is None else 1 + _depth(e.enclosing)


def _size(values: Sequence[PyTree]) -> tuple[jax.Array, jax.Array]:
    """The root mean square and the largest absolute value of all elements."""
    real = jnp.result_type(float)
    flat = jnp.concatenate([jnp.abs(value).astype(real).ravel() for value in values])
    largest = jnp.max(flat, initial=0.0)
    scale = jnp.where(largest > 0, largest, 1)  # squares of what is small or large leave the range
    return scale * jnp.sqrt(jnp.sum((flat / scale) ** 2) / max(flat.size, 1)), largest
