"""Why is the gradient of this weight what it is? Its paths, and their sum beside what `jax.grad` says."""

import io
import re
import sys
from collections.abc import Hashable, Iterator, Set
from dataclasses import dataclass
from textwrap import wrap

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bpresearch import verify
from bpresearch.functional import Loss, TrainingLoss
from bpresearch.paths import format_path
from bpresearch.theory.anatomy import Anatomy, Link, Path, gradient_by_jax, leaf_at, take_apart

KINDS_IN_WORDS = {
    "input": "what the weight is multiplied with",
    "one": "1, as a bias is multiplied with nothing",
    "activation": "the derivative of each activation",
    "pooling": "the derivative of the pooling",
    "block": "the derivative of each other step",
    "weight": "each weight on the way",
    "loss": "the derivative of the loss",
}
"""The kinds of factor, in words, in the order in which they are told."""

NAMES = {"activation": "f'", "loss": "c'", "one": "1"}
WIDTH = 80
"""Of the text, in characters."""


@dataclass(frozen=True)
class Explanation:
    """The gradient of one weight, path by path; `str` is a table of the largest paths.

    Attributes:
        weight: the element, as `layers.1.kernel[3,5]`.
        about: of what it is the gradient, in words.
        gradient: by `jax.grad`.
        anatomy: the gradient taken apart.
        rounding: what rounding does to gradients of the size of the model's largest.
        normalized: the paths of `nnx.BatchNorm` layers that took their running statistics.
    """

    weight: str
    about: str
    gradient: float
    anatomy: Anatomy
    rounding: float
    normalized: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """The sum over all paths."""
        return self.anatomy.total

    @property
    def paths(self) -> tuple[Path, ...]:
        """The largest paths, the largest first."""
        return self.anatomy.paths

    @property
    def links(self) -> tuple[Link, ...]:
        """The steps that these paths take."""
        return self.anatomy.links

    @property
    def number(self) -> int:
        """Of all paths."""
        return self.anatomy.number

    @property
    def difference(self) -> float:
        """Between the sum over all paths and what `jax.grad` says."""
        return abs(self.total - self.gradient)

    @property
    def agrees(self) -> bool:
        """Whether both are equal but for rounding: to 1e-12 of the sum of the paths' absolute values."""
        return bool(self.difference <= 1e-12 * self.anatomy.size + self.rounding)

    def sentences(self) -> list[str]:
        """The answer in words: is the derivative that of the activation or that of the loss?"""
        told = in_words(self.weight, self.anatomy.kinds, self.number)
        if self.normalized:
            told.append(
                f"nnx.BatchNorm at {', '.join(self.normalized)} takes its running statistics here, as in "
                "evaluation: with those of the batch no path would belong to one example."
            )
        return told

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
        console.print(self)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in text.splitlines())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        rest = written(self.number - len(self.paths))
        yield Text(f"dl/d {self.weight} of {self.about}")
        yield "\n".join(["", *(line for s in self.sentences() for line in [*wrap(s, WIDTH), ""])])
        yield f"Paths from the weight to the loss: {written(self.number)}. The largest:\n"
        if self.paths:
            yield self._table(console, options)
        yield f"\nsum of the other {rest} paths  {self.anatomy.rest: .15e}"
        yield f"sum of all paths{'':{len(rest) + 9}}{self.total: .15e}"
        yield f"jax.grad{'':{len(rest) + 17}}{self.gradient: .15e}"
        yield f"They {'agree' if self.agrees else 'DIFFER'}: difference {self.difference:.1e}"

    def _table(self, console: Console, options: ConsoleOptions) -> Table:
        """A column for each factor if all paths take the same steps and there is room; else a row."""
        wide = across(self.anatomy)
        alike = all(path.links == self.links for path in self.paths)
        fits = Measurement.get(console, options.update(max_width=10_000), wide).maximum <= options.max_width
        return wide if alike and fits else down(self.anatomy)


def explain(
    model: nnx.Module,
    loss: Loss,
    x: PyTree,
    y: PyTree = None,
    weight: str | None = None,
    *,
    paths: int = 5,
) -> Explanation:
    """Every factor of every path from one weight to the loss, in float64.

    The gradient of a weight is a sum over paths and, for each path, a product of factors: what the weight
    was multiplied with (input), weights and derivatives of activations on the way, the derivative of the
    loss. The sum over all paths stands beside what `jax.grad` says. `nnx.BatchNorm` takes its running
    statistics, as in evaluation, and the answer says so.

    Args:
        model: any NNX model; it is not changed.
        loss: `(outputs, targets) -> values`, whose mean is differentiated; without `y`, a training loss
            `(model, batch) -> value`.
        x, y: inputs and targets, tuples where there are several; for a training loss x is the batch.
        weight: the element; by default that of the first kernel with the largest gradient.
        paths: how many of the largest paths to list.

    Raises:
        ValueError: there is no such element, or the model has no paths (see `take_apart`).

    >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    >>> found = bp.explain(model, optax.l2_loss, jnp.ones((3, 2)), jnp.zeros((3, 1)), "kernel[1,0]")
    >>> print(found.number, found.agrees)
    3 True
    """
    loss_fn, inputs, targets = (TrainingLoss(loss), (), x) if y is None else (loss, x, y)
    with jax.enable_x64(True):
        wide = verify.cast_model(model, "float64")
        normalized = _taking_running_statistics(wide)
        inputs, targets = verify.cast((inputs, targets), "float64")
        _, grads = gradient_by_jax(wide, loss_fn)(inputs, targets)
        path, index = element(grads, weight)
        anatomy = take_apart(wide, loss_fn, inputs, targets, path, index, paths=paths)
        gradient = float(leaf_at(grads, path)[index])
        largest = max(float(np.max(np.abs(leaf), initial=0)) for leaf in jax.tree.leaves(grads))
    name, rounding = element_name(path, index), largest * sys.float_info.epsilon
    return Explanation(name, type(model).__name__, gradient, anatomy, rounding, normalized)


def _taking_running_statistics(model: nnx.Module) -> tuple[str, ...]:
    """Has each `nnx.BatchNorm` that would take those of the batch do so; their paths."""
    layers = [
        (format_path(path), layer)
        for path, layer in nnx.iter_modules(model)
        if isinstance(layer, nnx.BatchNorm) and not layer.use_running_average
    ]
    for _, layer in layers:
        layer.use_running_average = True
    return tuple(path for path, _ in layers)


def element_name(path: tuple[Hashable, ...], index: tuple[int, ...]) -> str:
    """An element of a parameter in one word: the inverse of `element`."""
    return f"{format_path(path)}[{','.join(map(str, index))}]"


def element(grads: PyTree, weight: str | None) -> tuple[tuple[Hashable, ...], tuple[int, ...]]:
    """The parameter's path and the element's index that `weight` names.

    Args:
        grads: the gradient.
        weight: such as `layers.1.kernel[3,5]`; None is the first kernel's with the largest gradient.
    """
    leaves = {tuple(k.key for k in path): leaf for path, leaf in jax.tree.leaves_with_path(grads)}
    if weight is None:
        path = next((path for path in leaves if path[-1] == "kernel"), next(iter(leaves)))
        largest = np.unravel_index(np.argmax(np.abs(leaves[path])), leaves[path].shape)
        return path, tuple(int(i) for i in largest)
    named = {format_path(path): path for path in leaves}
    match = re.fullmatch(r"(.+?)\[(\d+(?:,\s*\d+)*)?\]", weight.strip())
    if not match or match[1] not in named:
        shapes = ", ".join(f"{n}[{','.join(map(str, leaves[p].shape))}]" for n, p in named.items())
        raise ValueError(
            f"weight={weight}: takes an element, such as layers.1.kernel[3,5], of one of {shapes}"
        )
    path, index = named[match[1]], tuple(int(part) for part in (match[2] or "").split(",") if part)
    shape = leaves[path].shape
    if len(index) != len(shape) or any(i >= n for i, n in zip(index, shape, strict=True)):
        raise ValueError(f"weight={weight}: {match[1]} has the shape {shape}, and indices start from 0")
    return path, index


def in_words(weight: str, kinds: Set[str], number: int) -> list[str]:
    """What kinds of factor a gradient is made of, as a student asks: activation's derivative or loss's?

    Args:
        weight: its name.
        kinds: of factor that occur on its paths; none where all products are zero.
        number: of paths.
    """
    if not kinds:
        return [
            f"Every path from {weight} to the loss has a factor that is zero, and so the gradient is zero."
        ]
    words = [text for kind, text in KINDS_IN_WORDS.items() if kind in kinds]
    listed = ", ".join(words[:-1]) + f" and {words[-1]}" if words[1:] else words[-1]
    between = ", and the weights between them" if "weight" in kinds else ""
    reply = f"Both{between}" if "activation" in kinds else f"That of the loss{between}"
    paths = "one path leads" if number == 1 else f"{written(number)} paths lead"
    return [
        f"Is the derivative that of the activation or that of the loss? {reply}.",
        f"From {weight} to the loss {paths}. Along a path the gradient is the product of {listed}."
        + (" The products of all paths add up." if number > 1 else ""),
    ]


def written(number: int) -> str:
    """A number of paths; a large one is known to 53 bits."""
    return f"{number:,}" if number < 2**53 else f"{number:.4g}"


CAPTION = "f': derivative of the activation, c': of the loss; below each number: the unit it leads to"


def heading(link: Link) -> str:
    """Kind and layer of a link."""
    layer = "loss" if link.kind == "loss" else link.layer.removeprefix("layers.")
    return f"{NAMES.get(link.kind, link.kind)}\n{layer}"


def across(anatomy: Anatomy) -> Table:
    """A row for each path; a column for each factor: kind, layer, number, and the unit it leads to."""
    grid = Table(padding=(0, 1, 0, 0), box=None, header_style="bold", caption=CAPTION)
    many = len({path.example for path in anatomy.paths}) > 1
    for link in anatomy.links:
        grid.add_column(escape(heading(link)))
    grid.add_column("product\n" + ("example" if many else ""), justify="right")
    for path in anatomy.paths:
        cells = [
            escape(f"{factor:.4g}\n{link.unit_name(unit)}")
            for link, factor, unit in zip(path.links, path.factors, path.units, strict=True)
        ]
        grid.add_row(*cells, f"{path.product:.2e}\n{path.example if many else ''}")
    return grid


def down(anatomy: Anatomy) -> Table:
    """A column for each path; a row for each factor, empty where the path takes another way."""
    grid = Table(padding=(0, 1, 0, 0), box=None, header_style="bold", caption=CAPTION)
    many = len({path.example for path in anatomy.paths}) > 1
    grid.add_column("kind")
    grid.add_column("layer", overflow="fold")
    for path in anatomy.paths:
        grid.add_column(f"example {path.example}" if many else "", justify="right", no_wrap=True)
    for link in anatomy.links:
        kind, layer = heading(link).split("\n")
        grid.add_row(kind, escape(layer), *[escape(factor_at(path, link)) for path in anatomy.paths])
    grid.add_row("product", "", *[f"{path.product:.2e}" for path in anatomy.paths])
    return grid


def factor_at(path: Path, link: Link) -> str:
    """A path's factor at a link and the unit that it leads to; nothing where the path does not pass it."""
    if link not in path.links:
        return ""
    place = path.links.index(link)
    return f"{path.factors[place]:.4g}\n{link.unit_name(path.units[place])}"
