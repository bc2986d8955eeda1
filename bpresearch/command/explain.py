"""Why is the gradient of this weight what it is? Every factor of every path from the weight to the loss.

Prints the largest paths, each factor with its live number and its kind (input, weight, activation
derivative, loss derivative), and the sum over all paths beside what jax.grad says. In float64. Exit code 1
if the two differ by more than rounding: 1e-12 of the sum of the paths' absolute values.

    bpresearch explain --weight=layers.1.kernel[3,5]
    bpresearch explain --model=cnn --html=paths.html
"""

from dataclasses import replace

from absl import flags
from flax import nnx
from rich.console import Console

from bpresearch import files, platform, report
from bpresearch.analysis.explain import explain
from bpresearch.command.axes import positive
from bpresearch.command.start import output_file
from bpresearch.command.task import (
    dataset_from_flags,
    define_task_flags,
    loss_from_flags,
    model_from_flags,
    targets,
)


def define_flags() -> None:
    """The flags of `bpresearch explain`."""
    define_task_flags()
    flags.DEFINE_string(
        "weight",
        None,
        "one element: layers.1.kernel[3,5]; by default the first kernel's with the largest gradient",
    )
    flags.DEFINE_integer("examples", 1, "the first examples of the training part, whose mean loss is taken")
    flags.DEFINE_integer(
        "paths", 5, "how many of the largest paths to show; the page draws ten times as many"
    )
    flags.DEFINE_integer("seed", 0, "of the initial weights")
    flags.DEFINE_string("html", None, "file for a page with the network drawn and the factors on hover")
    flags.DEFINE_string("json", None, "file for the figures, as one flat object")


def main() -> int:
    count, paths, seed = positive("examples"), positive("paths"), positive("seed", low=0)
    html, json_file = output_file("html"), output_file("json")
    if html and html.suffix != ".html":
        raise ValueError(f"--html={html}: takes the name of a file that ends in .html")
    platform.start(flags.FLAGS.platform, "float64")
    build, options = model_from_flags()
    dataset = dataset_from_flags()
    loss = loss_from_flags(dataset)
    if count > len(dataset.x):
        raise ValueError(f"--examples={count}: --dataset={dataset.name} has {len(dataset.x)}")
    model = build(dataset.input_shape, dataset.outputs, rngs=nnx.Rngs(seed), **options)
    y = targets(dataset, loss, dataset.y[:count])
    try:
        drawn = explain(
            model, loss, dataset.x[:count], y, flags.FLAGS.weight, paths=10 * paths if html else paths
        )
    except ValueError as error:
        raise ValueError(str(error).replace("weight=", "--weight=", 1)) from error
    what = "example" if count == 1 else "examples"
    about = f"{flags.FLAGS.model} on {count} {what} of {dataset.name}"
    found = replace(drawn, about=about, anatomy=drawn.anatomy.largest(paths))
    Console().print(found)
    if html:
        title = f"The gradient of {found.weight}, path by path"
        report.save(report.network(drawn.anatomy, title), html)
    figures = {
        "paths": found.number, "sum_of_paths": found.total, "autodiff": found.gradient,
        "difference": found.difference, "largest_path": found.paths[0].product if found.paths else 0.0,
    }  # fmt: skip
    files.write_figures(json_file, figures)
    return 0 if found.agrees else 1
