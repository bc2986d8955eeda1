"""Do DeepOBS's published runs of its problem quadratic_deep come out again?

The problem is made from the same random numbers (numpy's RandomState), and SGD, momentum and Adam are run at
the published settings over several shuffles of the data, since the published one is not known. Checked: the
loss before the first step to all its digits, the final losses within three standard deviations over
shuffles, and the factor by which SGD diverges above 2 / lambda_max.
"""

import numpy as np
import optax
import pandas as pd
from absl import flags
from rich.console import Console
from rich.table import Table

from bpresearch import flags as shared
from bpresearch import platform, report
from bpresearch.analysis import deepobs

shared.define_experiment_flags()
flags.DEFINE_integer("shuffles", 20, "orders of the training data, at least 3")

INITIAL = 353.4468
DIVERGING = 10**-1.4


def main() -> int:
    shuffles = shared.positive("shuffles", low=3)
    shuffles = min(shuffles, 5) if flags.FLAGS.quick else shuffles
    json_file = shared.output_file("json")
    platform.start(flags.FLAGS.platform)
    workdir, console = shared.experiment_workdir("deepobs_quadratic"), Console()

    problem = deepobs.quadratic_deep()
    batches = np.stack([deepobs.repeated_batches(seed) for seed in range(shuffles)])
    runs = {name: deepobs.train(problem, make(), batches) for name, make, _ in deepobs.PUBLISHED[1:]}
    checks = [report.Check("loss before the first step", runs["SGD 10^-3"][0, 0], INITIAL, 5e-5)]
    grid = Table(title="Final test loss of quadratic_deep")
    for name in ("optimizer", "published", "here: mean", "standard deviation", "range"):
        grid.add_column(name, justify="left" if name == "optimizer" else "right")
    figures = {"initial_loss": float(runs["SGD 10^-3"][0, 0])}
    for name, _, published in deepobs.PUBLISHED:
        final = runs[name][:, -1]
        spread, digits = float(final.std(ddof=1)), 5 * 10.0 ** -(len(f"{published:g}") - 2)
        figures |= {f"{name}.mean": float(final.mean()), f"{name}.deviation": spread}
        span = f"{final.min():.2f} to {final.max():.2f}"
        grid.add_row(name, f"{published:g}", f"{final.mean():.3f}", f"{spread:.3f}", span)
        checks.append(report.Check(f"{name}: {published:g}", final.mean(), published, 3 * spread + digits))
    console.print(grid)

    factor, theory = divergence(problem)
    console.print(
        f"SGD at 10^-1.4 is above 2 / lambda_max = {2 / problem.eigenvalues.max():.4f}: the loss grows by a "
        f"factor {factor:.3f} a step, (lr lambda_max - 1)^2 = {theory:.3f}."
    )
    checks.append(report.Check("growth of the loss at 10^-1.4", factor, theory, 0.01 * theory))
    checks.append(report.Check("the same, as published", factor, 1.24, 0.005))
    report.write_figures(json_file, figures | {"divergence_factor": factor, "divergence_theory": theory})
    console.print(f"Picture: {report.write_picture(picture(runs), workdir, 'deepobs_quadratic')}")
    return report.conclude(console, checks)


def divergence(problem: deepobs.QuadraticDeep) -> tuple[float, float]:
    """The factor by which the loss grows at each step in the long run, and the largest eigenvalue's."""
    batches = deepobs.repeated_batches(0, epochs=150)[None]
    (loss,) = deepobs.train(problem, optax.sgd(DIVERGING), batches)
    steps = deepobs.STEPS_IN_AN_EPOCH * 10
    return float((loss[-1] / loss[-11]) ** (1 / steps)), (DIVERGING * problem.eigenvalues.max() - 1) ** 2


def picture(runs: dict[str, np.ndarray]):
    frame = pd.DataFrame(
        {"epoch": epoch, "test loss": loss, "optimizer": name}
        for name, losses in runs.items()
        for epoch, loss in enumerate(losses.mean(axis=0))
    )
    points = pd.DataFrame(
        {"epoch": deepobs.EPOCHS, "test loss": loss, "optimizer": name} for name, _, loss in deepobs.PUBLISHED
    )
    return report.lines(
        frame,
        x=report.axis("epoch", "epoch"),
        y=report.axis("test loss", "test loss", log=True, domain=[85, 360], clamp=True),
        line="optimizer",
        points=points,
        title="Do DeepOBS's published runs come out again?",
        subtitle="Mean over shuffles of the data; circles: the published final losses",
    )


if __name__ == "__main__":
    shared.run(main)
