"""Is the hand-written gradient of a model right, and if not, which layer's rule is wrong?

The gradient that the chain-rule engine gives on the first examples of a data set is compared, for every
parameter and the model's input, with autodiff and with finite differences in float64, and in --dtype with
autodiff's own rounding error. Then each layer's rule is checked by itself. Exit code 0: all right, 1: a
gradient is wrong, 2: a flag is.

    bpresearch verify --model=cnn --dataset=digits
    bpresearch verify --activation=gelu_tanh --plant=gelu_constant
"""

from absl import flags
from flax import nnx

from bpresearch import files, platform, verify
from bpresearch.command.start import choose, output_file
from bpresearch.command.task import (
    dataset_from_flags,
    define_task_flags,
    loss_from_flags,
    model_from_flags,
    targets,
)


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
    build, options = model_from_flags()
    dataset = dataset_from_flags()
    loss = loss_from_flags(dataset)
    count = flags.FLAGS.batch_size
    if not 1 <= count <= len(dataset.x):
        raise ValueError(
            f"--batch_size={count}: takes 1 to {len(dataset.x)}, the examples of --dataset={dataset.name}"
        )
    model = build(dataset.input_shape, dataset.outputs, rngs=nnx.Rngs(flags.FLAGS.seed), **options)
    x, y = dataset.x[:count], targets(dataset, loss, dataset.y[:count])
    try:
        report = verify.model(
            model, loss, x, y, dtype=dtype, order=int(flags.FLAGS.order), seed=flags.FLAGS.seed,
            plant=flags.FLAGS.plant,
            every_coordinate_up_to=flags.FLAGS.every_coordinate,
        )  # fmt: skip
    except verify.FaultError as error:
        raise ValueError(f"--plant={flags.FLAGS.plant}: {error}") from error
    asked = f"{flags.FLAGS.model} on {count} examples of {dataset.name}, {loss.__name__}, {dtype}"
    print(f"{asked}\n{dataset.description}\n")
    print(report)
    if json_file:
        files.write(json_file, report.to_json())
    if html_file:
        from bpresearch.report import gradients  # only now: the libraries that draw take a second to load

        files.write(html_file, gradients.page(report.to_dict(), asked))
    return 0 if report.passed else 1
