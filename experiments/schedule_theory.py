"""Does the theory of convex functions know which learning-rate schedule is good, and at which peak?

The bound for the last iterate of subgradient descent (Schaipp et al. 2025, arXiv 2501.18965) is evaluated for
five schedules, without training anything: times sqrt(T) it stays (linear, cosine, stable-decay) or grows like
a logarithm (constant), and its best peak for stable-decay is about half of cosine's. Both are compared with
the paper's setting (D = G = 1), then with the measured distance to the minimum of a convex function, for
which the bound must hold, and with a network on MNIST-1D, for which nothing says that it must: the peak at
which each schedule ends with the lowest training loss.
"""

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd

from bpresearch import command, data, losses, models, optim, report, sweep
from bpresearch.command import Flag, listed
from bpresearch.optim import schedules as optax_schedules
from bpresearch.theory import descent, schedules

BATCH = 10  # small, so that noise and not curvature limits the learning rate, as in the bound
SCHEDULES = [
    optax_schedules.constant, optax_schedules.linear, optax_schedules.cosine, schedules.stable_decay,
    schedules.stable_sqrt,
]  # fmt: skip
NAMES = dict(
    zip(
        (f.__name__ for f in SCHEDULES),
        ("constant", "linear", "cosine", "stable, linear", "stable, sqrt"),
        strict=True,
    )
)
# The bound times sqrt(T) at T = 400 and at T = 6400, D = G = 1; and the best peak times sqrt(T).
KNOWN = {
    "constant": (2.75, 3.22), "linear": (2.01, 2.00), "cosine": (2.07, 2.06), "stable, linear": (2.18, 2.16),
    "stable, sqrt": (2.14, 2.13),
}  # fmt: skip
KNOWN_PEAKS = {"cosine": 0.97, "stable, linear": 0.51}


def page(
    *,
    horizon: Annotated[
        tuple[int, ...], Flag("numbers of steps for which the bound is evaluated", low=10)
    ] = listed("400,800,1600,3200,6400", int),
    steps: Annotated[int, Flag("updates of the network", low=1)] = 2000,
    width: Annotated[int, Flag("width of the network's two hidden layers", low=1)] = 50,
    lr: Annotated[
        tuple[float, ...],
        Flag(
            "peaks of the network's learning rate",
            low=1e-9,
            least=3,
            why="of which the best lies inside",
        ),
    ] = listed("logspace:0.0125:0.8:13"),
    seed: Annotated[tuple[int, ...], Flag("seeds of the network", low=0, high=2**32)] = listed("0:3", int),
    quick: bool = False,
    workdir: Path,
) -> report.Finding:
    """The bound of each schedule, and the peak that a network wants with it."""
    horizons, seeds = sorted(horizon), list(seed)
    if quick:
        horizons, steps, seeds = horizons[:: max(1, len(horizons) - 1)], min(steps, 1000), seeds[:2]
    theory = bounds(horizons)
    network = trained(steps, width, list(lr), seeds, workdir)
    best = {
        name: descent.lowest(part.peak.to_numpy(), part.loss.to_numpy())
        for name, part in network.groupby("schedule", sort=False)
    }
    verdict = (
        f"The bound says that constant is the worst schedule and that stable-decay wants "
        f"{predicted_ratio(theory):.2f} of cosine's peak; the network's best peaks are a factor "
        f"{measured_ratio(best):.2f} apart, and its worst schedule is {worst_of(best)}."
    )
    pictures = {"schedule_bounds": bound_picture(theory), "schedule_peaks": peak_picture(network)}
    return report.Finding(
        verdict, checks(theory, best), figures(theory, best), [table(theory, best)], pictures
    )


def bounds(horizons: list[int]) -> pd.DataFrame:
    """For each schedule and number of steps: the least bound, its peak, and what a convex function does."""
    rows = []
    for steps in horizons:
        for schedule in SCHEDULES:
            eta = optax_schedules.table(schedule(steps), steps)
            least = schedules.bound(eta)
            measured = schedules.AbsoluteErrors().final_excess(least.rate * eta)
            root = math.sqrt(steps)
            rows.append({
                "schedule": NAMES[schedule.__name__], "steps": steps, "bound": least.least * root,
                "peak": least.rate * root, "measured": measured * root,
            })  # fmt: skip
    return pd.DataFrame(rows)


def trained(steps: int, width: int, rates: list[float], seeds: list[int], workdir) -> pd.DataFrame:
    """The training loss over the last fortieth of the steps, for each schedule and peak: mean over seeds."""
    experiment = sweep.Experiment(
        data.load("mnist1d"), models.mlp, losses.named("cross_entropy"),
        {"widths": (width, width)}, steps=steps, eval_every=steps,
    )  # fmt: skip
    axes = sweep.grid(optimizer=optim.sgd, schedule=SCHEDULES, lr=rates, batch_size=BATCH, seed=seeds)
    results = sweep.run(experiment, axes, workdir / "network", quiet=True)
    final = results.train_loss[:, -max(1, steps // 40) :].mean("step", skipna=False)
    frame = pd.DataFrame({
        "schedule": [NAMES[name] for name in results.schedule.values], "peak": results.lr.values,
        "loss": final.values,
    })  # fmt: skip
    means = frame.groupby(["schedule", "peak"], sort=False).loss.agg(
        lambda losses: np.mean(losses.to_numpy())
    )
    return means.reset_index()


def table(theory: pd.DataFrame, best: dict[str, tuple[float, float]]):
    longest = theory[theory.steps == theory.steps.max()].set_index("schedule")
    columns = ("schedule", "bound", "best peak", "convex function", "network's peak", "its loss")
    grid = report.grid(
        f"Times sqrt(T), T = {theory.steps.max()}; and on MNIST-1D", columns, words=("schedule",)
    )
    for name, row in longest.iterrows():
        peak, loss = best[str(name)]
        grid.add_row(
            str(name),
            f"{row.bound:.2f}",
            f"{row.peak:.2f}",
            f"{row.measured:.2f}",
            f"{peak:.3f}",
            f"{loss:.4f}",
        )
    return grid


def predicted_ratio(theory: pd.DataFrame) -> float:
    """Of the best peaks of warm-up-stable-decay and cosine, by the bound."""
    longest = theory[theory.steps == theory.steps.max()].set_index("schedule")
    return float(longest.peak["stable, linear"] / longest.peak["cosine"])


def measured_ratio(best: dict[str, tuple[float, float]]) -> float:
    """Of the same two, by the network."""
    return best["stable, linear"][0] / best["cosine"][0]


def worst_of(best: dict[str, tuple[float, float]]) -> str:
    """The schedule whose lowest loss is the highest."""
    return max(best, key=lambda name: best[name][1])


def figures(theory: pd.DataFrame, best: dict[str, tuple[float, float]]) -> dict[str, float]:
    """The bounds and what the convex function does; the network's best peaks and their losses."""
    flat = {f"{r.schedule}.{r.steps}.bound": r.bound for r in theory.itertuples()}
    flat |= {f"{r.schedule}.{r.steps}.measured": r.measured for r in theory.itertuples()}
    flat |= {f"network.{name}.peak": peak for name, (peak, _) in best.items()}
    flat |= {f"network.{name}.loss": loss for name, (_, loss) in best.items()}
    flat["network.ratio"] = measured_ratio(best)
    return {name.replace(", ", "-"): value for name, value in flat.items()}


def checks(theory: pd.DataFrame, best: dict[str, tuple[float, float]]) -> list[report.Check]:
    """The paper's figures to their last digit; the bound where it must hold; the network's peaks."""
    at = {(r.schedule, r.steps): r for r in theory.itertuples()}
    comparisons = [
        report.Check(f"{name}, T = {steps}: bound", at[name, steps].bound, known, 0.0051)
        for name, ends in KNOWN.items()
        for steps, known in zip((400, 6400), ends, strict=True)
        if (name, steps) in at
    ]
    comparisons += [
        report.Check(f"{name}: best peak", at[name, 6400].peak, known, 0.0051)
        for name, known in KNOWN_PEAKS.items()
        if (name, 6400) in at
    ]
    worst = float((theory.measured / theory.bound).max())
    return [
        *comparisons,
        report.Check.below("convex function: measured / bound", worst, 1),
        report.Check(
            "network: stable's best peak / cosine's", measured_ratio(best), predicted_ratio(theory), 0.25
        ),
        report.Check("network: is constant the worst", float(worst_of(best) == "constant"), 1, 0),
    ]


def bound_picture(theory: pd.DataFrame):
    return report.lines(
        theory.drop(columns=["measured", "peak"]),
        x=report.axis("steps", "steps T", log=True),
        y=report.axis("bound", "bound times sqrt(T)"),
        line="schedule",
        title="What does theory promise each schedule?",
        subtitle="Bound on the last iterate at its best peak; only for the constant one does it grow",
    )


def peak_picture(network: pd.DataFrame):
    return report.lines(
        network.dropna(),
        x=report.axis("peak", "peak of the learning rate", log=True),
        y=report.axis("loss", "final training loss", log=True),
        line="schedule",
        title="Which peak does each schedule want?",
        subtitle="An MLP on MNIST-1D: stable schedules want a lower one than cosine, and constant the lowest",
    )


if __name__ == "__main__":
    command.run_page(page)
