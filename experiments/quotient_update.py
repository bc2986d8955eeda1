"""What if a parameter were changed by the cost over its derivative?

The chain rule's quotient, delta w = -alpha c / g, taken literally as an update: for each element, and in the
least-norm sense for each layer and for all parameters together. In one dimension it is Newton's root-finding
on the cost: for c = w^2 and alpha = 1 the parameter halves at every step (checked). It fails where g is near
zero and c is not, as at a minimum above zero; mini-batches add noise to both. Compared on MNIST-1D with SGD,
momentum and `optax.polyak_sgd`, each at its best learning rate, with small batches and with large ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from absl import flags
from flax import nnx
from rich.console import Console
from rich.table import Table

from bpresearch import command as shared
from bpresearch import data, files, models, optim, platform, report, statistics, sweep

shared.define_experiment_flags()
flags.DEFINE_string(
    "lr", "logspace:1e-3:10:9", "learning rates (alpha) of which each optimizer takes its best"
)
flags.DEFINE_string("damping", "0,0.1,10", "added to the squared norm of the quotient updates")
flags.DEFINE_string("batch_size", "10,500", "batch sizes: with much noise and with little")
flags.DEFINE_integer("steps", 400, "updates of each training")
flags.DEFINE_string("seed", "0:3", "seeds")
flags.DEFINE_integer("width", 50, "width of the hidden layer")

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


def main() -> int:
    FLAGS = flags.FLAGS
    rates, damping = shared.listed("lr", low=0), shared.listed("damping", low=0)
    seeds = shared.listed("seed", int, low=0, high=2**32)
    sizes = shared.listed("batch_size", int, low=1, high=3601)
    steps, width = shared.positive("steps"), shared.positive("width")
    json_file = shared.output_file("json")
    if FLAGS.quick:
        sizes = sizes[:1]
        rates, damping, seeds, steps = rates[::2], damping[:2], seeds[:1], min(steps, 100)
    platform.start(FLAGS.platform)
    workdir, console = shared.experiment_workdir("quotient_update"), Console()

    lines = pd.DataFrame(
        row for name, (cost, start) in COSTS.items() for row in one_dimension(name, cost, start)
    )
    dataset = data.load("mnist1d")
    experiment = sweep.Experiment(
        dataset,
        models.mlp,
        CROSS_ENTROPY,
        {"widths": (width,), "activation": nnx.tanh},
        steps=steps,
        eval_every=steps,
    )
    rows, figures = [], {}
    for size in sizes:
        for optimizer in OPTIMIZERS:
            takes = optim.hyperparameters(optimizer)
            own = {"momentum": [0.9], "damping": damping}
            axes = sweep.grid(
                optimizer=optimizer, schedule=optim.schedules.constant, lr=rates, batch_size=size,
                seed=seeds,
                **{name: values for name, values in own.items() if name in takes},
            )  # fmt: skip
            results = sweep.run(experiment, axes, workdir / f"{optimizer.__name__}-{size}", quiet=True)
            (best,) = statistics.best_settings(results).values()
            diverged = float((results.diverged_at > 0).mean())
            final = statistics.mean_and_interval(best.test)
            rows.append((size, optimizer.__name__, best.values, final, diverged))
            figures[f"{optimizer.__name__}.{size}.accuracy"] = final.mean
            figures[f"{optimizer.__name__}.{size}.diverged"] = diverged
    console.print(table(rows))
    console.print(
        "One step at alpha = 1 goes to the tangent's zero: right where the cost has a zero and bends little, "
        "too far where g is small and c is not. Element by element, each parameter would remove the whole "
        "cost alone: alpha must be small, and many runs diverge."
    )
    picture = report.lines(
        lines,
        x=report.axis("step", "step"),
        y=report.axis("distance", "|w|", log=True, domain=[1e-6, 1e4], clamp=True),
        line="cost",
        title="Where does changing w by -c / g lead?",
        subtitle="alpha = 1; where c has no zero, or rises like a root, the steps do not shrink",
    )
    console.print(f"Picture: {report.write_picture(picture, workdir, 'quotient_update')}")
    files.write_figures(json_file, figures)
    return report.conclude(console, checks(lines))


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
    found = {
        "w²: each w over the one before, off 1/2 by": (np.abs(square[1:] / square[:-1] - 0.5).max(), 0, 0),
        "e^w - 1: distance to Newton's iterates": (np.abs(root - newton).max(), 0, 1e-12),
        "|w|^0.4: each w over the one before": (np.median(steep[1:] / steep[:-1]), 1 - 1 / 0.4, 1e-9),
        "w² + 1: angle, off twice the one before by": (np.abs(np.sin(turned)).max(), 0, 1e-12),
    }
    return [report.Check(f"c = {name}", *numbers) for name, numbers in found.items()]


if __name__ == "__main__":
    shared.run(main)
