"""Why is the gradient of this weight what it is? Every factor of every path from the weight to the loss.

Your own small network, from a file (experiments/textbook.json shows the form) or from flags:

    bpresearch explain --file=experiments/textbook.json --weight=w5 --html=page.html
    bpresearch explain --sizes=2,2,1 --inputs=1,0 --targets=1 --weight=w1

answers in words, with every number, beside what jax.grad says; the page is one to think with: choose a
weight, drag a number, take steps. Any model on any data set, with the largest paths only:

    bpresearch explain --weight=layers.1.kernel[3,5]
    bpresearch explain --model=cnn --html=paths.html

In float64. Exit code 1 if the sum of the paths and jax.grad differ by more than rounding: 1e-12 of the sum of
the paths' absolute values.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console

from bpresearch import files, platform, report, theory
from bpresearch.command.axes import positive
from bpresearch.command.axes import sizes as sizes_of
from bpresearch.command.options import option_names
from bpresearch.command.start import output_file
from bpresearch.command.task import (
    define_task_flags,
    described,
    model_options,
    task_examples,
    task_from_flags,
    task_model,
)
from bpresearch.theory.network import Network, from_dict, read

options = partial(model_options, "float64")

OF_NETWORK = ("sizes", "inputs", "targets", "weights", "biases", "activations", "reduction", "learning_rate")
OF_TASK = ("task", "model", "dataset", "data_dir", "standardize", "examples")
"""And the options of models."""


def define_flags() -> None:
    """The flags of `bpresearch explain`."""
    define_task_flags()
    flags.DEFINE_string(
        "weight",
        None,
        "one element: layers.1.kernel[3,5], or w5 of a small network; by default the first kernel's with the "
        "largest gradient",
    )
    flags.DEFINE_integer("examples", 1, "the first examples of the training part, whose mean loss is taken")
    flags.DEFINE_integer("paths", 5, "how many of the largest paths to show; the page draws ten times more")
    flags.DEFINE_integer("seed", 0, "of the initial weights")
    flags.DEFINE_string("html", None, "file for a page: the network with every number, or the largest paths")
    flags.DEFINE_string("json", None, "file for the figures, as one flat object")
    flags.DEFINE_string("file", None, "a small network as JSON, see bpresearch/theory/network.py")
    flags.DEFINE_string("sizes", None, "a small network by flags: units of each layer, inputs first: 2,2,1")
    flags.DEFINE_string("inputs", None, "small network: one number for each input")
    flags.DEFINE_string("targets", None, "small network: one number for each output")
    flags.DEFINE_string("weights", None, "small network: layer by layer, unit by unit; else by --seed")
    flags.DEFINE_string("biases", None, "small network: layer by layer; else zeros")
    flags.DEFINE_string("activations", None, "small network: one for each layer but the inputs; else sigmoid")
    flags.DEFINE_string("reduction", None, "small network: sum (default) or mean over the outputs")
    flags.DEFINE_float("learning_rate", None, "small network: of the step; else 0.5")


def main() -> int:
    FLAGS = flags.FLAGS
    html, json_file = output_file("html"), output_file("json")
    if html and html.suffix != ".html":
        raise ValueError(f"--html={html}: takes the name of a file that ends in .html")
    paths, small = positive("paths"), FLAGS.file is not None or FLAGS.sizes is not None
    refused = [*OF_TASK, *option_names()] if small else [*OF_NETWORK]
    if FLAGS.file is not None:
        refused += [*OF_NETWORK, "loss", "seed"]
    for flag in refused:
        if FLAGS[flag].present:
            of = f"--{'sizes' if FLAGS.file is None else 'file'}" if small else f"--model={FLAGS.model}"
            raise ValueError(f"--{flag}={FLAGS[flag].value}: does not go with {of}")
    network = (read(FLAGS.file) if FLAGS.file is not None else network_from_flags()) if small else None
    platform.start(FLAGS.platform, "float64")
    return of_network(network, paths, html, json_file) if network else of_task(paths, html, json_file)


def of_network(network: Network, paths: int, html: Path | None, json_file: Path | None) -> int:
    """Every number of a small network."""
    derivation = named(theory.derive, network, flags.FLAGS.weight, paths=paths)
    print(derivation)
    if html:
        drawable = max(network.sizes) <= report.MOST_UNITS
        largest = replace(derivation.explanations[0], weight=derivation.name, about=network.title)
        files.write(
            html, report.learner(network, derivation.name) if drawable else report.paths_page(largest)
        )
        print(f"\nThe page: {html}")
    figures = {
        "gradient": derivation.gradient, "after_step": derivation.after_step, "loss": derivation.cost,
        "paths": derivation.number, "sum_of_paths": derivation.gradient, "autodiff": derivation.autodiff,
        "difference": abs(derivation.gradient - derivation.autodiff),
        "largest_path": derivation.paths[0][0] if derivation.paths else 0.0,
    }  # fmt: skip
    files.write_figures(json_file, figures)
    return 0 if derivation.agrees else 1


def of_task(paths: int, html: Path | None, json_file: Path | None) -> int:
    """The largest paths of any model."""
    count, seed = positive("examples"), positive("seed", low=0)
    task = task_from_flags()
    model = task_model(task, seed)
    x, y = task_examples(task, "examples", count)
    drawn = named(
        theory.explain, model, task.objective, x, y, flags.FLAGS.weight,
        paths=10 * paths if html else paths,
    )  # fmt: skip
    what = "example" if count == 1 else "examples"
    about = f"{task.name if flags.FLAGS.task else flags.FLAGS.model} on {count} {what} of {task.name}"
    explanation = replace(drawn, about=about, anatomy=drawn.anatomy.largest(paths))
    console = Console()
    console.print(explanation)
    console.print(described(task), markup=False)
    if html:
        files.write(html, report.paths_page(replace(drawn, about=about)))
    figures = {
        "gradient": explanation.total, "paths": explanation.number, "sum_of_paths": explanation.total,
        "autodiff": explanation.gradient, "difference": explanation.difference,
        "largest_path": explanation.paths[0].product if explanation.paths else 0.0,
    }  # fmt: skip
    files.write_figures(json_file, figures)
    return 0 if explanation.agrees else 1


def named(function: Callable[..., Any], *args: object, **options: Any) -> Any:
    """What a function returns; an error about `weight=` is one about the flag."""
    try:
        return function(*args, **options)
    except ValueError as error:
        raise ValueError(str(error).replace("weight=", "--weight=", 1)) from error


def network_from_flags() -> Network:
    """The small network that the flags describe: what a file would hold, with an entry for each flag."""
    FLAGS = flags.FLAGS
    sizes = sizes_of("sizes")
    if len(sizes) < 2:
        raise ValueError(f"--sizes={FLAGS.sizes}: takes at least two layers, such as 2,2,1")
    after = sizes[1:]
    shapes = list(zip(after, sizes, strict=False))
    random = np.random.default_rng(positive("seed", low=0))
    drawn = [random.normal(0, 1 / np.sqrt(m), (n, m)).round(2) for n, m in shapes]
    counts = [n * m for n, m in shapes]
    weights = numbers("weights", sum(counts)) or np.concatenate(drawn, axis=None).tolist()
    biases = numbers("biases", sum(after)) or [0.0] * sum(after)
    kinds = (FLAGS.activations or ",".join(["sigmoid"] * len(after))).split(",")
    given = {
        "title": f"A network of {', '.join(map(str, sizes))} units", "sizes": sizes, "activations": kinds,
        "weights": [part.reshape(s).tolist() for part, s in zip(cut(weights, counts), shapes, strict=True)],
        "biases": [part.tolist() for part in cut(biases, after)],
        "inputs": numbers("inputs", sizes[0]) or missing("inputs"),
        "targets": numbers("targets", sizes[-1]) or missing("targets"),
        "loss": FLAGS.loss or "half_squared_error", "reduction": FLAGS.reduction or "sum",
        "learning_rate": 0.5 if FLAGS.learning_rate is None else FLAGS.learning_rate,
    }  # fmt: skip
    try:
        return from_dict(given)
    except ValueError as error:
        raise ValueError(f"--{error}") from error


def numbers(flag: str, count: int) -> list[float]:
    """The numbers that a flag lists, as many as the sizes say; none where it is not given."""
    text = getattr(flags.FLAGS, flag)
    if text is None:
        return []
    try:
        listed = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--{flag}={text}: takes numbers, such as 0.05,0.1") from error
    if len(listed) != count:
        raise ValueError(f"--{flag}={text}: lists {len(listed)}, and by --sizes there are {count}")
    return listed


def missing(flag: str) -> list[float]:
    raise ValueError(f"--{flag} is missing: a small network takes --sizes, --inputs and --targets")


def cut(values: list[float], counts: list[int]) -> list[np.ndarray]:
    """A list as arrays of so many elements each."""
    return np.split(np.array(values), np.cumsum(counts)[:-1])
