"""Can an average of the weights do what a falling learning rate does?

The exponential average (EMA), the average over the last half of the steps and schedule-free SGD (Defazio et
al. 2024), each at a constant learning rate, beside the last iterate of a constant and of a cosine schedule.
All are one recursion (`theory/averages.py`), whose expected loss on the noisy quadratic (Zhang et al. 2019)
is exact. Checked: the recursion against the closed forms of the long run and against simulated runs; then a
network on MNIST-1D, each method at the learning rate that is best on a held-out part.
"""

from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx
from rich.table import Table

from bpresearch import command, data, losses, models, report, statistics
from bpresearch.command import Flag, listed
from bpresearch.optim import schedules
from bpresearch.theory import averages, descent

METHODS = {
    "constant, last": ("constant", averages.last()),
    "constant, EMA": ("constant", averages.exponential(0.99)),
    "constant, tail": ("constant", averages.tail(0.5)),
    "constant, schedule-free": ("constant", averages.schedule_free()),
    "cosine, last": ("cosine", averages.last()),
}
EIGENVALUES = 1 / np.arange(1, 101)  # and the gradient noise of deep networks is about the Hessian
RATES = np.geomspace(0.02, 1.8, 25)
BATCH, WIDTH, HELD_OUT = 20, 50, 400


def page(
    *,
    steps: Annotated[int, Flag("updates on the noisy quadratic", low=1)] = 1000,
    runs: Annotated[int, Flag("simulated runs of the check", low=1)] = 20_000,
    updates: Annotated[int, Flag("updates of the network", low=1)] = 2000,
    lr: Annotated[tuple[float, ...], Flag("learning rates of the network", low=1e-9)] = listed(
        "logspace:0.0125:1.6:8"
    ),
    seed: Annotated[
        tuple[int, ...],
        Flag(
            "seeds of the network",
            low=0,
            high=2**32,
            least=2,
            why="for an interval",
        ),
    ] = listed("0:5", int),
    quick: bool = False,
) -> report.Finding:
    """Each average at its best learning rate, on the noisy quadratic and on a network."""
    rates, seeds = list(lr), list(seed)
    if quick:
        steps, updates, rates, seeds = min(steps, 300), min(updates, 500), rates[2::2], seeds[:2]
    quadratic = noisy_quadratic(steps)
    best = quadratic.loc[quadratic.groupby("method", sort=False).excess.idxmin()].set_index("method")
    network = {name: on_mnist1d(*METHODS[name], updates, rates, seeds) for name in METHODS}
    averaged = [best.excess[f"constant, {name}"] for name in ("EMA", "tail", "schedule-free")]
    verdict = (
        f"On the noisy quadratic the best average at a constant learning rate ends at {min(averaged):.4f}, "
        f"the last iterate at {best.excess['constant, last']:.4f}, and with a cosine schedule at "
        f"{best.excess['cosine, last']:.4f}: averaging does what a falling learning rate does."
    )
    figures = {f"quadratic.{name}": best.excess[name] for name in METHODS}
    figures |= {f"network.{name}": accuracy.mean for name, (_, accuracy) in network.items()}
    return report.Finding(
        verdict,
        [*long_run(), *simulated(runs), *compared(best, network)],
        {key.replace(", ", "-"): value for key, value in figures.items()},
        [result_table(best, network)],
        {"weight_averages": picture(quadratic)},
    )


def result_table(best: pd.DataFrame, network: dict[str, tuple[float, statistics.Interval]]) -> Table:
    columns = ("method", "quadratic: loss", "at lr", "MNIST-1D: accuracy (%)", "at lr")
    grid = report.grid("At each method's best learning rate", columns, words=("method",))
    for name, (rate, accuracy) in network.items():
        interval = f"{100 * accuracy.mean:.1f} ± {100 * accuracy.half_width:.1f}"
        grid.add_row(name, f"{best.excess[name]:.4f}", f"{best.lr[name]:.2f}", interval, f"{rate:.3g}")
    return grid


def noisy_quadratic(steps: int) -> pd.DataFrame:
    """The expected loss after so many steps, for each method and learning rate."""
    rows = []
    for name, (schedule, average) in METHODS.items():
        table = schedules.table(getattr(schedules, schedule)(steps), steps)
        for rate in RATES:
            squares = averages.expected_squares(EIGENVALUES, EIGENVALUES, 1.0, rate * table, average)
            rows.append({"method": name, "lr": rate, "excess": float(EIGENVALUES @ squares) / 2})
    return pd.DataFrame(rows)


def on_mnist1d(
    schedule: str, average: averages.Average, updates: int, rates: list[float], seeds: list[int]
) -> tuple[float, statistics.Interval]:
    """The learning rate with the best mean accuracy on the held-out part, and the test accuracy there."""
    dataset = data.load("mnist1d")
    x, y = jnp.asarray(dataset.x[:-HELD_OUT]), jnp.asarray(dataset.y[:-HELD_OUT])
    landscapes = [
        descent.landscape(
            models.mlp(dataset.input_shape, 10, widths=(WIDTH, WIDTH), rngs=nnx.Rngs(seed)),
            losses.named("cross_entropy"),
        )
        for seed in seeds
    ]
    starts, network = jnp.stack([landscape.start for landscape in landscapes]), landscapes[0]

    def slope(w: jax.Array, key: jax.Array) -> jax.Array:
        chosen = jax.random.randint(key, (BATCH,), 0, len(x))
        return network.slope(w, (x[chosen], y[chosen]))[0]

    def accuracies(rate: jax.Array, start: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = network.model(averages.descend(slope, start, rate * table, average, key))

        def of(x: np.ndarray, y: np.ndarray) -> jax.Array:
            return jnp.mean(jnp.argmax(model(jnp.asarray(x)), axis=-1) == jnp.asarray(y))

        return of(dataset.x[-HELD_OUT:], dataset.y[-HELD_OUT:]), of(dataset.x_test, dataset.y_test)

    table = jnp.asarray(schedules.table(getattr(schedules, schedule)(updates), updates))
    over_seeds = jax.vmap(accuracies, (None, 0, 0))
    run = jax.jit(jax.vmap(over_seeds, (0, None, None)))
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    valid, test = (np.asarray(part, np.float64) for part in run(jnp.asarray(rates), starts, keys))
    chosen = int(np.argmax(valid.mean(axis=1)))
    return rates[chosen], statistics.mean_and_interval(test[chosen])


def long_run() -> list[report.Check]:
    """The recursion after many steps against the closed forms, with noise alone."""
    h, rate, steps, decay = np.array([1.0]), 0.1, 8000, 0.99
    after = partial(averages.expected_squares, h, h, 0.0, np.full(steps, rate))
    forms = {
        "last": (averages.last(), averages.settled_square(1, 1, rate)),
        "EMA": (averages.exponential(decay), averages.settled_ema(1, 1, rate, decay)),
        "tail": (averages.tail(0.5), averages.settled_mean(1, 1, rate, steps // 2)),
    }
    return [
        report.Check(
            f"{name}: recursion / closed form in the long run", float(after(average)[0]) / form, 1, 1e-9
        )
        for name, (average, form) in forms.items()
    ]


def simulated(runs: int) -> list[report.Check]:
    """The recursion against many runs, after fifty steps along two eigenvectors."""
    h, rates, comparisons = np.array([1.0, 0.1]), np.full(50, 0.3), []
    for name, (_, average) in METHODS.items():
        if name == "cosine, last":
            continue

        def slope(w: jax.Array, key: jax.Array) -> jax.Array:
            return h * w + np.sqrt(h) * jax.random.normal(key, w.shape, w.dtype)

        with jax.enable_x64(True):
            run = jax.jit(partial(averages.descend, slope, average=average))
            ends = run(jnp.ones((runs, 2)), rates=jnp.asarray(rates), key=jax.random.key(0))
        expected = averages.expected_squares(h, h, 1.0, rates, average)
        off = np.abs(np.mean(np.asarray(ends) ** 2, axis=0) / expected - 1).max()
        comparisons.append(
            report.Check(f"{name}: simulated / recursion, off 1 by", off, 0, 8 / np.sqrt(runs))
        )
    return comparisons


def compared(best: pd.DataFrame, network: dict[str, tuple[float, statistics.Interval]]) -> list[report.Check]:
    """Averaging against the last iterate, and on the network against cosine."""
    constant, cosine = network["constant, last"][1].mean, network["cosine, last"][1].mean
    averaged = [network[name][1].mean for name in ("constant, EMA", "constant, tail")]
    ratio = best.excess["constant, tail"] / best.excess["constant, last"]
    return [
        report.Check.below("quadratic: tail / last iterate", ratio, 1),
        report.Check.below(
            "MNIST-1D: last iterate less EMA or tail, in points", 100 * (constant - min(averaged)), 0
        ),
        report.Check.below("MNIST-1D: cosine less tail, in points", 100 * (cosine - averaged[1]), 2),
    ]


def picture(quadratic: pd.DataFrame):
    return report.lines(
        quadratic[quadratic.excess < 1],
        x=report.axis("lr", "learning rate (peak)", log=True),
        y=report.axis("excess", "expected loss at the end", log=True),
        line="method",
        title="Can an average of the weights do what a falling learning rate does?",
        subtitle="The noisy quadratic, exactly: averages at constant rates reach what cosine reaches",
    )


if __name__ == "__main__":
    command.run_page(page)
