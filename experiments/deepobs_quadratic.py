"""Do DeepOBS's published runs of its problem quadratic_deep come out again?

The problem is made from the same random numbers (numpy's RandomState), and SGD, momentum and Adam are run at
the published settings over several shuffles of the data, since the published one is not known. Checked: the
loss before the first step to all its digits, the final losses within three standard deviations over
shuffles, and the factor by which SGD diverges above 2 / lambda_max.
"""

from typing import Annotated

import numpy as np
import pandas as pd

from bpresearch import command, report
from bpresearch.command import Flag
from bpresearch.theory import deepobs


def page(
    *,
    shuffles: Annotated[int, Flag("orders of the training data, at least 3", low=3)] = 20,
    quick: bool = False,
) -> report.Finding:
    """The published runs at the published settings, over several orders of the data."""
    shuffles = min(shuffles, 5) if quick else shuffles
    problem = deepobs.quadratic_deep()
    batches = np.stack([deepobs.repeated_batches(seed) for seed in range(shuffles)])
    runs = {run.name: deepobs.train(problem, run.optimizer, batches) for run in deepobs.PUBLISHED}
    initial = float(runs["SGD 10^-3"][0, 0])
    checks = [check("loss before the first step", initial, deepobs.INITIAL_LOSS)]
    figures = {"initial_loss": initial}
    columns = ("optimizer", "published", "here: mean", "standard deviation", "range")
    grid = report.grid("Final test loss of quadratic_deep", columns, words=("optimizer",))
    for name, _, losses in deepobs.PUBLISHED:
        final = runs[name][:, -1]
        mean, spread = float(final.mean()), float(final.std(ddof=1))
        figures |= {f"{name}.mean": mean, f"{name}.deviation": spread}
        span = f"{final.min():.2f} to {final.max():.2f}"
        grid.add_row(name, ", ".join(losses), f"{mean:.3f}", f"{spread:.3f}", span)
        checks += [check(f"{name}: {loss}", mean, loss, 3 * spread) for loss in losses]

    factor, theory = deepobs.growth(problem, deepobs.DIVERGING_RATE)
    checks.append(report.Check("growth of the loss at 10^-1.4", factor, theory, 0.01 * theory))
    checks.append(check("the same, as published", factor, deepobs.DIVERGING_FACTOR))
    figures |= {"divergence_factor": factor, "divergence_theory": theory}
    verdict = (
        f"SGD at 10^-1.4 is above 2 / lambda_max = {2 / problem.eigenvalues.max():.4f}: the loss grows by a "
        f"factor {factor:.3f} a step, (lr lambda_max - 1)^2 = {theory:.3f}."
    )
    return report.Finding(verdict, checks, figures, [grid], {"deepobs_quadratic": picture(runs)})


def check(what: str, measured: float, published: str, spread: float = 0.0) -> report.Check:
    """A number against a published one, which is rounded."""
    return report.Check(what, measured, float(published), spread + deepobs.half_a_digit(published))


def picture(runs: dict[str, np.ndarray]):
    frame = pd.DataFrame(
        {"epoch": epoch, "test loss": loss, "optimizer": name}
        for name, losses in runs.items()
        for epoch, loss in enumerate(losses.mean(axis=0))
    )
    points = pd.DataFrame(
        {"epoch": deepobs.EPOCHS, "test loss": float(loss), "optimizer": name}
        for name, _, losses in deepobs.PUBLISHED
        for loss in losses
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
    command.run_page(page)
