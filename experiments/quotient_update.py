"""What if a parameter were changed by the cost over its derivative?

The chain rule's quotient, delta w = -alpha c / g, taken literally as an update: for each element, and in the
least-norm sense for each layer and for all parameters together. In one dimension it is Newton's root-finding
on the cost: for c = w^2 and alpha = 1 the parameter halves at every step (checked). It fails where g is near
zero and c is not, as at a minimum above zero; mini-batches add noise to both. Compared on MNIST-1D with SGD,
momentum and `optax.polyak_sgd`, each at its best learning rate, with small batches and with large ones.
"""

from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from flax import nnx
from rich.table import Table

from bpresearch import command, data, models, optim, report, statistics, sweep
from bpresearch.command import Flag, listed

CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels
COSTS = {
    "w²: halves": (lambda w: w**2, 3.0),
    "e^w - 1: root at 0": (lambda w: jnp.exp(w) - 1, 2.0),
    "w² + 1: no root": (lambda w: w**2 + 1, 3.0),
    "|w|^0.4: overshoots": (lambda w: jnp.abs(w) ** 0.4, 0.01),
}


def polyak_sgd(learning_rate):
    """w <- w - min(c / ||g||^2, lr) g (Loizou et al. 2021)."""
    return optax.polyak_sgd(max_learning_rate=learning_rate)


OPTIMIZERS: list[optim.Optimizer] = [optim.sgd, optim.momentum, polyak_sgd]
OPTIMIZERS += [optim.quotient_global, optim.quotient_layer, optim.quotient_element]


def page(
    *,
    lr: Annotated[
        tuple[float, ...], Flag("learning rates (alpha) of which each optimizer takes its best", low=0)
    ] = listed("logspace:1e-3:10:9"),
    damping: Annotated[
        tuple[float, ...], Flag("added to the squared norm of the quotient updates", low=0)
    ] = listed("0,0.1,10"),
    batch_size: Annotated[
        tuple[int, ...], Flag("batch sizes: with much noise and with little", low=1, high=3601)
    ] = listed("10,500", int),
    steps: Annotated[int, Flag("updates of each training", low=1)] = 400,
    seed: Annotated[tuple[int, ...], Flag("seeds", low=0, high=2**32)] = listed("0:3", int),
    width: Annotated[int, Flag("width of the hidden layer", low=1)] = 50,
    quick: bool = False,
    workdir: Path,
) -> report.Finding:
    """The paths in one dimension, and every optimizer at its best learning rate on MNIST-1D."""
    if quick:
        batch_size = batch_size[:1]
        lr, damping, seed, steps = lr[::2], damping[:2], seed[:1], min(steps, 100)
    lines = pd.DataFrame(
        row for name, (cost, start) in COSTS.items() for row in one_dimension(name, cost, start)
    )
    options = {"widths": (width,), "activation": nnx.tanh}
    experiment = sweep.Experiment(
        data.load("mnist1d"), models.mlp, CROSS_ENTROPY, options, steps=steps, eval_every=steps
    )
    rows, figures = [], {}
    for size in batch_size:
        for optimizer in OPTIMIZERS:
            folder = workdir / f"{optimizer.__name__}-{size}"
            axes = {"lr": list(lr), "batch_size": size, "seed": list(seed)}
            values, final, diverged = best_setting(experiment, optimizer, axes, damping, folder)
            rows.append((size, optimizer.__name__, values, final, diverged))
            figures[f"{optimizer.__name__}.{size}.accuracy"] = final.mean
            figures[f"{optimizer.__name__}.{size}.diverged"] = diverged
    verdict = (
        "One step at alpha = 1 goes to the tangent's zero: right where the cost has a zero and bends little, "
        "too far where g is small and c is not. Element by element, each parameter would remove the whole "
        "cost alone: alpha must be small, and many runs diverge."
    )
    return report.Finding(verdict, checks(lines), figures, [table(rows)], {"quotient_update": picture(lines)})


def best_setting(
    experiment: sweep.Experiment,
    optimizer: optim.Optimizer,
    axes: dict,
    damping: tuple[float, ...],
    folder: Path,
) -> tuple[dict, statistics.Interval, float]:
    """The values with the best held-out accuracy, what they reach, and the part of the runs that diverged."""
    takes = optim.hyperparameters(optimizer)
    own = {"momentum": [0.9], "damping": list(damping)}
    own = {name: values for name, values in own.items() if name in takes}
    grid = sweep.grid(optimizer=optimizer, schedule=optim.schedules.constant, **axes, **own)
    results = sweep.run(experiment, grid, folder, quiet=True)
    (best,) = statistics.best_settings(results).values()
    diverged = float((results.diverged_at > 0).mean())
    return best.values, statistics.mean_and_interval(best.test), diverged


def one_dimension(name: str, cost, start: float, steps: int = 20) -> list[dict]:
    """|w| along the quotient update with alpha = 1."""
    quotient = optim.quotient_update()
    with jax.enable_x64(True):
        w, rows = jnp.float64(start), []
        for step in range(steps + 1):
            rows.append({"cost": name, "step": float(step), "distance": float(jnp.abs(w)), "w": float(w)})
            value, g = jax.value_and_grad(cost)(w)
            w = w + quotient.update(g, quotient.init(w), value=value)[0]
    return rows


def table(rows: list) -> Table:
    columns, words = ("batch", "optimizer", "lr", "damping", "accuracy", "diverged"), ("batch", "optimizer")
    grid = report.grid("At the best learning rate: test accuracy (%)", columns, words=words)
    for size, optimizer, values, final, diverged in rows:
        half = "" if np.isnan(final.half_width) else f" ± {100 * final.half_width:.1f}"
        damping = f"{values['damping']:g}" if "damping" in values else "-"
        grid.add_row(
            str(size),
            optimizer,
            f"{values['lr']:g}",
            damping,
            f"{100 * final.mean:.1f}{half}",
            f"{diverged:.0%}",
        )
    return grid


def picture(lines: pd.DataFrame):
    return report.lines(
        lines,
        x=report.axis("step", "step"),
        y=report.axis("distance", "|w|", log=True, domain=[1e-6, 1e4], clamp=True),
        line="cost",
        title="Where does changing w by -c / g lead?",
        subtitle="alpha = 1; where c has no zero, or rises like a root, the steps do not shrink",
    )


def checks(lines: pd.DataFrame) -> list[report.Check]:
    """Each path against its closed form, or Newton's own iterates.

    On w² + 1, which has no root, w = cot(t) becomes (w - 1 / w) / 2 = cot(2t): it wanders for ever.
    """
    paths = {name: part.w.to_numpy() for name, part in lines.groupby("cost", sort=False)}
    square, root, none, steep = (paths[name] for name in COSTS)
    newton = [2.0]
    for _ in range(len(root) - 1):
        newton.append(newton[-1] - (np.exp(newton[-1]) - 1) / np.exp(newton[-1]))
    turned = np.arctan2(1, none[1:]) - 2 * np.arctan2(1, none[:-1])  # a multiple of pi
    comparisons = {
        "w²: each w over the one before, off 1/2 by": (np.abs(square[1:] / square[:-1] - 0.5).max(), 0, 0),
        "e^w - 1: distance to Newton's iterates": (np.abs(root - newton).max(), 0, 1e-12),
        "|w|^0.4: each w over the one before": (np.median(steep[1:] / steep[:-1]), 1 - 1 / 0.4, 1e-9),
        "w² + 1: angle, off twice the one before by": (np.abs(np.sin(turned)).max(), 0, 1e-12),
    }
    return [report.Check(f"c = {name}", *numbers) for name, numbers in comparisons.items()]


if __name__ == "__main__":
    command.run_page(page)
