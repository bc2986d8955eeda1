"""Why is the gradient of this weight what it is? Every factor of every path from the weight to the loss.

Prints the largest paths, each factor with its live number and its kind (input, weight, activation
derivative, loss derivative), and the sum over all paths beside what jax.grad says. In float64. Exit code 1
if the two differ by more than 1e-12 of the sum of the paths' absolute values.

    scripts/run scripts/explain_gradient.py --weight=layers.1.kernel[3,5]
    scripts/run scripts/explain_gradient.py --model=cnn --html=paths.html
"""

import re
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bpresearch import analysis, autodiff, files, platform, report, verify
from bpresearch import flags as shared
from bpresearch.functional import format_path, split

shared.define_task_flags()
flags.DEFINE_string(
    "weight",
    None,
    "one element: layers.1.kernel[3,5]; by default the first kernel's with the largest gradient",
)
flags.DEFINE_integer("examples", 1, "the first examples of the training part, whose mean loss is taken")
flags.DEFINE_integer("paths", 5, "how many of the largest paths to show; the page draws ten times as many")
flags.DEFINE_integer("seed", 0, "of the initial weights")
flags.DEFINE_string("html", None, "file for a page with the network drawn and the factors on hover")
flags.DEFINE_string("json", None, "file for the figures, as one flat object")

NAMES = {"activation": "f'", "loss": "c'", "one": "1"}


def main() -> int:
    count, paths, seed = shared.positive("examples"), shared.positive("paths"), shared.positive("seed", low=0)
    html, json_file = shared.output_file("html"), shared.output_file("json")
    if html and html.suffix != ".html":
        raise ValueError(f"--html={html}: takes the name of a file that ends in .html")
    platform.start(flags.FLAGS.platform, "float64")
    build, options = shared.model_from_flags()
    dataset = shared.dataset_from_flags()
    loss = shared.loss_from_flags(dataset)
    if count > len(dataset.x):
        raise ValueError(f"--examples={count}: --dataset={dataset.name} has {len(dataset.x)}")
    model = build(dataset.input_shape, dataset.outputs, rngs=nnx.Rngs(seed), **options)
    model = verify.cast_model(model, "float64")
    targets = shared.targets(dataset, loss, dataset.y[:count])
    x, y = verify.cast((dataset.x[:count], targets), "float64")

    _, grads = autodiff.value_and_grad(model, loss, x, y)
    weight, index = weight_from_flags(split(model)[1], grads)
    gradient = float(leaf_at(grads, weight)[index])
    found = analysis.take_apart(model, loss, x, y, weight, index, paths=paths)
    name = f"{format_path(weight)}[{','.join(map(str, index))}]"
    console = Console()
    what = "example" if count == 1 else "examples"
    console.print(f"dl/d {name} of {flags.FLAGS.model} on {count} {what} of {dataset.name}", markup=False)
    console.print(f"Paths from the weight to the loss: {found.number:,}. The largest:\n")
    console.print(table(found))
    error = abs(found.total - gradient)
    rest = found.number - len(found.paths)
    console.print(f"\nsum of the other {rest:,} paths  {found.rest: .15e}")
    console.print(f"sum of all paths{'':{len(f'{rest:,}') + 8}}{found.total: .15e}")
    console.print(f"jax.grad{'':{len(f'{rest:,}') + 16}}{gradient: .15e}")
    right = error <= 1e-12 * found.size
    console.print(f"They {'agree' if right else 'DIFFER'}: difference {error:.1e}")
    if html:
        drawn = analysis.take_apart(model, loss, x, y, weight, index, paths=10 * paths)
        report.save(report.network(drawn, f"The gradient of {name}, path by path"), html)
    figures = {
        "paths": found.number, "sum_of_paths": found.total, "autodiff": gradient, "difference": error,
        "largest_path": found.paths[0].product if found.paths else 0.0,
    }  # fmt: skip
    files.write_figures(json_file, figures)
    return 0 if right else 1


def leaf_at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def weight_from_flags(params: Any, grads: Any) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """The parameter's path and the element's index that --weight names."""
    leaves = {tuple(k.key for k in path): leaf for path, leaf in jax.tree.leaves_with_path(grads)}
    if flags.FLAGS.weight is None:
        weight = next(path for path in leaves if path[-1] == "kernel")
        largest = np.unravel_index(np.argmax(np.abs(leaves[weight])), leaves[weight].shape)
        return weight, tuple(int(i) for i in largest)
    named = {format_path(path): path for path in leaves}
    match = re.fullmatch(r"(.+?)\[(\d+(?:,\s*\d+)*)\]", flags.FLAGS.weight.strip())
    given = f"--weight={flags.FLAGS.weight}"
    if not match or match[1] not in named:
        shapes = ", ".join(f"{n}[{','.join(map(str, leaves[p].shape))}]" for n, p in named.items())
        raise ValueError(f"{given}: takes an element, such as layers.1.kernel[3,5], of one of {shapes}")
    weight, index = named[match[1]], tuple(int(part) for part in match[2].split(","))
    shape = leaves[weight].shape
    if len(index) != len(shape) or any(i >= n for i, n in zip(index, shape, strict=True)):
        raise ValueError(f"{given}: {match[1]} has the shape {shape}, and indices start from 0")
    return weight, index


def table(found: analysis.Anatomy) -> Table:
    """A column for each factor: its kind, its layer, its number, and the unit that it leads to."""
    grid = Table(padding=(0, 1, 0, 0), box=None, header_style="bold")
    many = len({path.example for path in found.paths}) > 1
    for link in found.links:
        layer = "loss" if link.kind == "loss" else link.layer.removeprefix("layers.")
        grid.add_column(f"{NAMES.get(link.kind, link.kind)}\n{layer}")
    grid.add_column("product\n" + ("example" if many else ""), justify="right")
    for path in found.paths:
        cells = [
            escape(f"{factor:.4g}\n{report.unit_name(link, unit)}")
            for link, factor, unit in zip(found.links, path.factors, path.units, strict=True)
        ]
        grid.add_row(*cells, f"{path.product:.2e}\n{path.example if many else ''}")
    grid.caption = (
        "f': derivative of the activation, c': of the loss; below each number: the unit it leads to"
    )
    return grid


if __name__ == "__main__":
    shared.run(main)
