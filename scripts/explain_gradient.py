"""Why is the gradient of this weight what it is? Every factor of every path from the weight to the loss.

Prints the largest paths, each factor with its live number and its kind (input, weight, activation
derivative, loss derivative), and the sum over all paths beside what jax.grad says. In float64. Exit code 1
if the two differ by more than rounding: 1e-12 of the sum of the paths' absolute values.

    scripts/run scripts/explain_gradient.py --weight=layers.1.kernel[3,5]
    scripts/run scripts/explain_gradient.py --model=cnn --html=paths.html
"""

from dataclasses import replace

from absl import flags
from rich.console import Console

from bpresearch import command as shared
from bpresearch import files, platform, report
from bpresearch.analysis.explain import explain

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


def main() -> int:
    count, paths, seed = shared.positive("examples"), shared.positive("paths"), shared.positive("seed", low=0)
    html, json_file = shared.output_file("html"), shared.output_file("json")
    if html and html.suffix != ".html":
        raise ValueError(f"--html={html}: takes the name of a file that ends in .html")
    platform.start(flags.FLAGS.platform, "float64")
    task = shared.task_from_flags()
    model = shared.task_model(task, seed)
    x, y = shared.task_examples(task, "examples", count)
    try:
        drawn = explain(model, task.objective, x, y, flags.FLAGS.weight, paths=10 * paths if html else paths)
    except ValueError as error:
        raise ValueError(str(error).replace("weight=", "--weight=", 1)) from error
    what = "example" if count == 1 else "examples"
    about = f"{task.name if flags.FLAGS.task else flags.FLAGS.model} on {count} {what} of {task.name}"
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


def options() -> list[str]:
    """Defines the flags of the models' options."""
    return shared.define_options(lambda: platform.start(flags.FLAGS.platform, "float64"))


if __name__ == "__main__":
    shared.run(main, options)
