"""What does averaging over a mini-batch buy?

The variance of a mini-batch's gradient around that of all examples, measured over random batches, against
the batch size: sigma^2 / B for batches drawn with replacement (slope -1.00 +- 0.05 in the logarithms), and
times (N - B) / (N - 1) for batches without. Then what it means for training: the loss that many seeds reach
after as many steps, with each batch size; averaging makes it lower and more reliable.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import optax
import pandas as pd
from flax import nnx
from rich.table import Table

from bpresearch import chainrule, command, data, models, optim, report, sweep
from bpresearch.command import Flag, listed
from bpresearch.theory import minibatch, savings

CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels
WIDTHS = {"widths": (16,), "activation": nnx.tanh}


def page(
    *,
    batch_size: Annotated[
        tuple[int, ...],
        Flag("batch sizes of the trainings", low=1, high=2000),
    ] = listed("1,4,16,64,256", int),
    examples: Annotated[
        int, Flag("N, the examples of MNIST-1D's 4,000 that batches are drawn from", low=2, high=4001)
    ] = 1000,
    draws: Annotated[int, Flag("batches of each size that the variance is measured over", low=1)] = 2000,
    lr: Annotated[float, Flag("learning rate of the trainings, the same for every batch size")] = 0.1,
    steps: Annotated[int, Flag("updates of each training", low=1)] = 500,
    seed: Annotated[
        tuple[int, ...],
        Flag("seeds of the trainings", low=0, high=2**32, least=2, why="for a spread"),
    ] = listed("0:10", int),
    target: Annotated[float, Flag("test loss whose reaching is counted")] = 1.8,
    quick: bool = False,
    workdir: Path,
) -> report.Finding:
    """The variance of the gradient and the loss after training, by the batch size."""
    if lr <= 0:
        raise ValueError(f"lr={lr}: takes a positive number")
    if quick:
        seed, steps, draws, batch_size = seed[:5], min(steps, 300), min(draws, 500), batch_size[::2]
    dataset = data.load("mnist1d")
    variances = variance(initial_gradients(dataset, examples), draws)
    replaced = variances[variances.batches == "with replacement"]
    slope = savings.exponent(replaced["batch size"].tolist(), replaced.measured.tolist())
    experiment = sweep.Experiment(dataset, models.mlp, CROSS_ENTROPY, WIDTHS, steps=steps, eval_every=steps)
    final = final_losses(experiment, batch_size, lr, seed, workdir)

    partial = variances[variances.expected > 0]
    worst = float((partial.measured / partial.expected - 1).abs().max())
    spread = {size: float(np.std(values, ddof=1)) for size, values in final.items()}
    figures = {"slope": slope, "worst_ratio_error": worst}
    figures |= {f"final_loss.{size}.mean": float(values.mean()) for size, values in final.items()}
    figures |= {f"final_loss.{size}.deviation": spread[size] for size in batch_size}
    tables = [variance_table(variances, slope), reliability_table(final, target, len(seed))]
    few, many = batch_size[0], batch_size[-1]
    verdict = (
        f"The variance of the gradient goes with the batch size to the power {slope:.2f}; after {steps} "
        f"steps the test loss varies over seeds by {spread[few]:.3f} with batch {few}, and by "
        f"{spread[many]:.3f} with {many}."
    )
    return report.Finding(
        verdict,
        checks(variances, slope, worst, spread, 0.15 if quick else 0.1),
        figures,
        tables,
        {"minibatch_averaging": picture(variances)},
    )


def initial_gradients(dataset: data.Dataset, count: int) -> np.ndarray:
    """The gradients of the first examples before training, one in each row."""
    model = models.mlp(dataset.input_shape, 10, rngs=nnx.Rngs(0), **WIDTHS)
    examples = dataset.x[:count], dataset.y[:count]
    _, gradients = chainrule.per_example_gradients(model, CROSS_ENTROPY, *examples)
    return minibatch.in_rows(gradients)


def final_losses(
    experiment: sweep.Experiment, sizes: tuple[int, ...], lr: float, seeds: tuple[int, ...], workdir: Path
) -> dict[int, np.ndarray]:
    """The test losses after the last step, one for each seed, by the batch size."""
    axes = sweep.grid(
        optimizer=optim.sgd,
        schedule=optim.schedules.constant,
        lr=lr,
        batch_size=list(sizes),
        seed=list(seeds),
    )
    results = sweep.run(experiment, axes, workdir, quiet=True)
    return {
        size: results.test_loss.isel(eval_step=-1).where(results.batch_size == size, drop=True).values
        for size in sizes
    }


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


def checks(
    variances: pd.DataFrame, slope: float, worst: float, spread: dict[int, float], tolerance: float
) -> list[report.Check]:
    """The variances against their closed forms, and the spread with the last batch size below the first's."""
    sizes = list(spread)
    return [
        report.Check("with replacement: slope of log variance", slope, -1, 0.05),
        report.Check("worst ratio to the closed forms, off by", worst, 0, tolerance),
        report.Check("variance of the batch of all examples", variances.measured.iloc[-1], 0, 1e-20),
        report.Check(
            f"spread over seeds, batch {sizes[-1]} over batch {sizes[0]}",
            spread[sizes[-1]] / spread[sizes[0]],
            0,
            1,
        ),
    ]


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
    command.run_page(page)
