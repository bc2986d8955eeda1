"""How fast do gradient descent, heavy ball and Nesterov converge, and where does noise stop them?

On quadratics of known spectrum the factor by which the error shrinks at each step is measured at each
method's optimal settings, and compared with its closed form for condition numbers from 10 to 10^4 (within
1 % of the number of steps that an accuracy takes). With noise in the gradients, the mean squared error of
many runs of SGD is compared with the noisy quadratic model E[w^2] <- (1 - lr h)^2 E[w^2] + lr^2 c / B
(Zhang et al. 2019), within 2 %.
"""

import math
from typing import Annotated

import numpy as np
import pandas as pd
from rich.table import Table

from bpresearch import command, report
from bpresearch.command import Flag, listed
from bpresearch.theory import quadratics

EIGENVALUES = np.array([0.02, 0.1, 0.5, 1.0])
NOISE, LEARNING_RATE, STEPS = EIGENVALUES, 0.3, 60  # the noise of deep networks is about the Hessian


def page(
    *,
    condition: Annotated[
        tuple[float, ...], Flag("condition numbers, one or many: 10,100", low=1.001)
    ] = listed("10,100,1000,10000"),
    batch_size: Annotated[tuple[int, ...], Flag("batch sizes of the noisy runs", low=1)] = listed(
        "1,4,16", int
    ),
    runs: Annotated[int, Flag("runs that the mean squared error is taken over", low=1)] = 200_000,
    quick: bool = False,
) -> report.Finding:
    """The factors by which errors shrink beside their closed forms, and noisy runs beside their model."""
    if quick:
        condition = tuple(k for k in condition if k <= 1000) or condition[:1]
        batch_size = batch_size[:1]
    rates, noisy = measured_rates(condition), noisy_runs(batch_size, runs)
    checks = [
        report.Check(
            f"{r['method']}, {r['condition']:g}: steps / theory",
            math.log(r["theory"]) / math.log(r["measured"]), 1, 0.01,
        )
        for r in rates.to_dict("records")
    ]  # fmt: skip
    off = (noisy.simulated / noisy.model - 1).abs()
    checks += [
        report.Check(f"noisy quadratic, batch {size}: worst error", off[noisy.batch == size].max(), 0, 0.02)
        for size in batch_size
    ]
    worst = float(off.max())
    steps_off = max(abs(check.measured - 1) for check in checks if check.expected == 1)
    figures = {f"{r['method']}.{r['condition']:g}": r["measured"] for r in rates.to_dict("records")}
    figures |= {"noisy_quadratic.worst_error": worst, "steps.worst_error": steps_off}
    verdict = (
        f"With noise, the mean of w^2 over {runs:,} runs of SGD is within {100 * worst:.1f} % of the noisy "
        "quadratic model."
    )
    pictures = {"convergence_rates": rate_picture(rates), "noisy_quadratic": noise_picture(noisy)}
    return report.Finding(verdict, checks, figures, [table(rates)], pictures)


def table(rates: pd.DataFrame) -> Table:
    columns = ("condition", "method", "measured", "closed form", "steps for a tenth")
    grid = report.grid("Factor by which the error shrinks at each step", columns, words=("method",))
    for r in rates.to_dict("records"):
        tenth = f"{math.log(10) / -math.log(r['measured']):.0f}"
        grid.add_row(f"{r['condition']:g}", r["method"], f"{r['measured']:.6f}", f"{r['theory']:.6f}", tenth)
    return grid


def measured_rates(conditions: tuple[float, ...]) -> pd.DataFrame:
    rows = []
    for condition in conditions:
        spectrum = np.geomspace(1.0, condition, 10)
        for method in quadratics.optimal_methods(1.0, condition):
            rate = quadratics.measured_rate(method, spectrum)
            rows.append(
                {"condition": condition, "method": method.name, "measured": rate, "theory": method.rate}
            )
    return pd.DataFrame(rows)


def noisy_runs(sizes: tuple[int, ...], runs: int) -> pd.DataFrame:
    """E[w^2] along each eigenvector after each step, by the model and over many runs."""
    rows, start = [], np.ones(len(EIGENVALUES))
    for size in sizes:
        sgd = quadratics.Noisy(EIGENVALUES, NOISE, LEARNING_RATE, size, start, STEPS)
        model = quadratics.expected_squares(sgd)
        simulated = quadratics.simulated_squares(sgd, runs=runs, seed=size)
        rows += [
            {"batch": size, "step": step + 1, "eigenvalue": f"{h:g}", "model": model[step, i], "simulated": s}
            for step in range(STEPS)
            for i, (h, s) in enumerate(zip(EIGENVALUES, simulated[step], strict=True))
        ]
    return pd.DataFrame(rows)


def rate_picture(rates: pd.DataFrame):
    """Steps for a tenth of the error: lines are closed forms, circles measured."""
    smooth = [
        {"condition": k, "method": method.name, "steps": math.log(10) / -math.log(method.rate)}
        for k in np.geomspace(rates.condition.min(), rates.condition.max(), 40)
        for method in quadratics.optimal_methods(1.0, float(k))
    ]
    return report.lines(
        pd.DataFrame(smooth),
        x=report.axis("condition", "condition number", log=True),
        y=report.axis("steps", "steps for a tenth of the error", log=True),
        line="method",
        points=rates.assign(steps=math.log(10) / -np.log(rates.measured))[["condition", "method", "steps"]],
        title="How many steps does a digit of accuracy take?",
        subtitle="Quadratics at each method's optimal settings; lines: closed forms, circles: measured",
    )


def noise_picture(noisy: pd.DataFrame):
    named = noisy.assign(batch=[f"batch size {size}" for size in noisy.batch])
    return report.lines(
        named.drop(columns="simulated").rename(columns={"model": "square"}),
        x=report.axis("step", "step"),
        y=report.axis("square", "mean of w²", log=True),
        line="eigenvalue",
        panel="batch",
        points=named[named.step % 10 == 0].drop(columns="model").rename(columns={"simulated": "square"}),
        title="Where does gradient noise stop SGD?",
        subtitle=f"Learning rate {LEARNING_RATE}; lines: the noisy quadratic model, circles: simulated",
    )


if __name__ == "__main__":
    command.run_page(page)
