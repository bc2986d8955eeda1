"""Is the hand-written gradient of a model right, and if not, which layer's rule is wrong?

The gradient that the chain-rule engine gives on the first examples of a data set is compared, for every
parameter and the model's input, with autodiff and with finite differences in float64, and in --dtype with
autodiff's own rounding error. Then each layer's rule is checked by itself. Exit code 0: all right, 1: a
gradient is wrong, 2: a flag is.

    bpresearch verify --model=cnn --dataset=digits
    bpresearch verify --activation=gelu_tanh --plant=gelu_constant
"""

from absl import flags

from bpresearch import files, platform, verify
from bpresearch.command.start import choose, output_file
from bpresearch.command.task import (
    define_task_flags,
    described,
    model_options,
    task_examples,
    task_from_flags,
    task_model,
)
from bpresearch.sweep.description import label

options = model_options


def define_flags() -> None:
    """The flags of `bpresearch verify`."""
    define_task_flags()
    flags.DEFINE_string(
        "dtype", "float32", f"the working precision whose rounding is checked: {', '.join(verify.DTYPES)}"
    )
    flags.DEFINE_integer("batch_size", 32, "number of examples")
    flags.DEFINE_integer("seed", 0, "of the initial weights and the random directions")
    flags.DEFINE_string(
        "plant", None, f"plant a fault, NAME or NAME@LAYER, to see it found: {', '.join(verify.FAULTS)}"
    )
    flags.DEFINE_integer(
        "every_coordinate",
        64,
        "parameters of at most so many elements get finite differences in each of them",
    )
    flags.DEFINE_enum("order", "1", ["1", "2"], "2 verifies the Hessian's product with a vector as well")
    flags.DEFINE_string("json", None, "file for the report")
    flags.DEFINE_string("html", None, "file for the report as a page")


def main() -> int:
    dtype = choose("dtype", flags.FLAGS.dtype, verify.DTYPES)
    if flags.FLAGS.plant is not None:
        choose("plant", flags.FLAGS.plant.partition("@")[0], verify.FAULTS)
    if flags.FLAGS.seed < 0:
        raise ValueError(f"--seed={flags.FLAGS.seed}: takes an integer of at least 0")
    if flags.FLAGS.every_coordinate < 0:
        raise ValueError(f"--every_coordinate={flags.FLAGS.every_coordinate}: takes an integer of at least 0")
    json_file, html_file = output_file("json"), output_file("html")
    platform.start(flags.FLAGS.platform)
    task = task_from_flags()
    model = task_model(task, flags.FLAGS.seed)
    count = flags.FLAGS.batch_size if flags.FLAGS["batch_size"].present else min(32, task.count)
    x, y = task_examples(task, "batch_size", count)
    try:
        report = verify.model(
            model, task.objective, x, y, dtype=dtype, order=int(flags.FLAGS.order), seed=flags.FLAGS.seed,
            plant=flags.FLAGS.plant,
            every_coordinate_up_to=flags.FLAGS.every_coordinate,
        )  # fmt: skip
    except verify.FaultError as error:
        raise ValueError(f"--plant={flags.FLAGS.plant}: {error}") from error
    name = task.name if flags.FLAGS.task else flags.FLAGS.model
    asked = f"{name} on {count} examples of {task.name}, {label(task.loss)}, {dtype}"
    print(f"{asked}\n{described(task)}\n")
    print(report)
    if json_file:
        files.write(json_file, report.to_json())
    if html_file:
        from bpresearch.report import gradients  # only now: the libraries that draw take a second to load

        files.write(html_file, gradients.page(report.to_dict(), asked))
    return 0 if report.passed else 1
