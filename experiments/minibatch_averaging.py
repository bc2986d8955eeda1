"""What does averaging over a mini-batch buy?

The variance of a mini-batch's gradient around that of all examples, measured over random batches, against
the batch size: sigma^2 / B for batches drawn with replacement (slope -1.00 +- 0.05 in the logarithms), and
times (N - B) / (N - 1) for batches without. Then what it means for training: the loss that many seeds reach
after as many steps, with each batch size; averaging makes it lower and more reliable.
"""

import numpy as np
import optax
import pandas as pd
from absl import flags
from flax import nnx
from rich.console import Console
from rich.table import Table

from bpresearch import chainrule, data, files, models, optim, platform, report, sweep
from bpresearch import command as shared
from bpresearch.theory import minibatch, savings

shared.define_experiment_flags()
flags.DEFINE_string("batch_size", "1,4,16,64,256", "batch sizes of the trainings")
flags.DEFINE_integer("examples", 1000, "N, the examples that batches are drawn from")
flags.DEFINE_integer("draws", 2000, "batches of each size that the variance is measured over")
flags.DEFINE_float("lr", 0.1, "learning rate of the trainings, the same for every batch size")
flags.DEFINE_integer("steps", 500, "updates of each training")
flags.DEFINE_string("seed", "0:10", "seeds of the trainings")
flags.DEFINE_float("target", 1.8, "test loss whose reaching is counted")

CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels
WIDTHS = {"widths": (16,), "activation": nnx.tanh}


def main() -> int:
    FLAGS = flags.FLAGS
    sizes = shared.listed("batch_size", int, low=1, high=2000)
    seeds = shared.listed("seed", int, low=0, high=2**32)
    count, draws, steps = (
        shared.positive("examples", low=2),
        shared.positive("draws"),
        shared.positive("steps"),
    )
    if len(seeds) < 2:
        raise ValueError(f"--seed={FLAGS.seed}: takes at least two seeds, or there is no spread")
    if not 0 < FLAGS.lr < np.inf:
        raise ValueError(f"--lr={FLAGS.lr}: takes a positive number")
    if FLAGS.quick:
        seeds, steps, draws, sizes = seeds[:5], min(steps, 300), min(draws, 500), sizes[::2]
    json_file = shared.output_file("json")
    platform.start(FLAGS.platform)
    workdir, console = shared.experiment_workdir("minibatch_averaging"), Console()

    dataset = data.load("mnist1d")
    if count > len(dataset.x):
        raise ValueError(f"--examples={count}: mnist1d has {len(dataset.x)}")
    model = models.mlp(dataset.input_shape, 10, rngs=nnx.Rngs(0), **WIDTHS)
    examples = dataset.x[:count], dataset.y[:count]
    _, gradients = chainrule.per_example_gradients(model, CROSS_ENTROPY, *examples)
    variances = variance(minibatch.in_rows(gradients), draws)
    replaced = variances[variances.batches == "with replacement"]
    slope = savings.exponent(replaced["batch size"].tolist(), replaced.measured.tolist())
    console.print(variance_table(variances, slope))

    experiment = sweep.Experiment(dataset, models.mlp, CROSS_ENTROPY, WIDTHS, steps=steps, eval_every=steps)
    axes = sweep.grid(
        optimizer=optim.sgd, schedule=optim.schedules.constant, lr=FLAGS.lr, batch_size=sizes, seed=seeds
    )
    results = sweep.run(experiment, axes, workdir, quiet=True)
    final = {
        size: results.test_loss.isel(eval_step=-1).where(results.batch_size == size, drop=True).values
        for size in sizes
    }
    console.print(reliability_table(final, FLAGS.target, len(seeds)))

    partial = variances[variances.expected > 0]
    worst = float((partial.measured / partial.expected - 1).abs().max())
    spread = {size: float(np.std(values, ddof=1)) for size, values in final.items()}
    checks = [
        report.Check("with replacement: slope of log variance", slope, -1, 0.05),
        report.Check("worst ratio to the closed forms, off by", worst, 0, 0.15 if FLAGS.quick else 0.1),
        report.Check("variance of the batch of all examples", variances.measured.iloc[-1], 0, 1e-20),
        report.Check(
            f"spread over seeds, batch {sizes[-1]} over batch {sizes[0]}",
            spread[sizes[-1]] / spread[sizes[0]],
            0,
            1,
        ),
    ]
    figures = {"slope": slope, "worst_ratio_error": worst}
    figures |= {f"final_loss.{size}.mean": float(values.mean()) for size, values in final.items()}
    figures |= {f"final_loss.{size}.deviation": spread[size] for size in sizes}
    files.write_figures(json_file, figures)
    console.print(f"Picture: {report.write_picture(picture(variances), workdir, 'minibatch_averaging')}")
    return report.conclude(console, checks)


def variance(gradients: np.ndarray, draws: int) -> pd.DataFrame:
    """Measured and expected variance of the batch's gradient, with and without replacement."""
    count = len(gradients)
    sizes = sorted({1, *(2**k for k in range(1, 20) if 2**k < count), count // 2, count * 9 // 10, count})
    return pd.DataFrame(
        {
            "batches": f"{'with' if replacement else 'without'} replacement",
            "batch size": float(size),
            "measured": minibatch.measured_variance(gradients, size, replacement=replacement, draws=draws),
            "expected": minibatch.expected_variance(gradients, size, replacement=replacement),
        }
        for replacement in (True, False)
        for size in sizes
    )


def variance_table(variances: pd.DataFrame, slope: float) -> Table:
    columns = ("batch size", "with: measured", "sigma²/B", "without: measured", "(N-B)/(N-1) of it")
    grid = report.grid(f"Variance of the gradient (slope with replacement: {slope:.3f})", columns)
    for size, part in variances.groupby("batch size", sort=True):
        numbers = [value for r in part.itertuples() for value in (r.measured, r.expected)]
        grid.add_row(f"{size:.0f}", *(f"{number:.4g}" for number in numbers))
    return grid


def reliability_table(final: dict[int, np.ndarray], target: float, seeds: int) -> Table:
    columns = ("batch size", "mean", "deviation over seeds", "worst", f"below {target:g}")
    grid = report.grid("Test loss after the same number of steps", columns)
    for size, values in final.items():
        reached = f"{int((values < target).sum())} of {seeds}"
        grid.add_row(
            str(size), f"{values.mean():.3f}", f"{values.std(ddof=1):.3f}", f"{values.max():.3f}", reached
        )
    return grid


def picture(variances: pd.DataFrame):
    shown = variances[variances.expected > 1e-12]
    return report.lines(
        shown[["batches", "batch size", "expected"]].rename(columns={"expected": "variance"}),
        x=report.axis("batch size", "batch size", log=True),
        y=report.axis("variance", "variance of the gradient", log=True),
        line="batches",
        points=shown[["batches", "batch size", "measured"]].rename(columns={"measured": "variance"}),
        title="What does averaging over a mini-batch buy?",
        subtitle="Lines: closed forms, circles: measured; summed over all parameters",
    )


if __name__ == "__main__":
    shared.run(main)
