"""How large a batch is worth its examples, and can one batch size tell?

With twice the batch a target is reached in half the steps, until the critical batch; beyond it examples are
wasted: steps against examples is a hyperbola (McCandlish et al. 2018). On the noisy quadratic (Zhang et al.
2019) the steps of the best constant learning rate are exact, and the decrease of one best step is compared
with simulated ones. A network on MNIST-1D is trained to a loss with many batch sizes, each at its best
learning rate, and its hyperbola's critical batch compared with the gradient noise scale tr(S) / |G|^2,
measured at one batch size on the way.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx

from bpresearch import command, data, losses, models, report
from bpresearch.command import Flag, listed
from bpresearch.theory import batches, descent

EIGENVALUES, GOAL = 1 / np.arange(1, 101), 0.3
EVERY, WIDTH, LOOKED_AT = 10, 50, 1000
MOST_EXAMPLES, FEWEST_UPDATES = 40_000, 400


def page(
    *,
    batch_size: Annotated[
        tuple[int, ...],
        Flag("batch sizes", low=1, least=3, why="for a hyperbola"),
    ] = listed("4,8,16,32,64,128,256,512", int),
    lr: Annotated[
        tuple[float, ...], Flag("learning rates, of which each batch size takes its best", low=1e-9)
    ] = listed("logspace:0.0125:1.6:15"),
    seed: Annotated[tuple[int, ...], Flag("seeds of the network", low=0, high=2**32)] = listed("0:3", int),
    target: Annotated[float, Flag("training loss to be reached")] = 1.2,
    updates: Annotated[
        int, Flag("the most updates of a run; beyond 400, 40,000 examples are too", low=EVERY)
    ] = 3000,
    measured_at: Annotated[int, Flag("batch size at which the noise scale is measured", low=4)] = 64,
    quick: bool = False,
) -> report.Finding:
    """Steps to a target by batch size, and the gradient noise scale beside the critical batch."""
    if quick:
        batch_size, lr, seed = batch_size[::2], lr[1::2], seed[:1]
    batch, problem = np.array(sorted(batch_size), float), Problem(seed)
    quadratic, network = quadratic_steps(batch), network_steps(problem, batch, lr, updates, target)
    steps, there = {"noisy quadratic": quadratic, "MNIST-1D": network}, ~np.isnan(network)
    fits = {
        "noisy quadratic": batches.fit(batch, quadratic),
        "MNIST-1D": batches.fit(batch[there], network[there]),
    }
    noise = problem.noise_scale(measured_at, lr, updates, target)

    grid = report.grid("Steps to the target, each at its best learning rate", ("batch", *fits))
    for size, *counts in zip(batch, quadratic, network, strict=True):
        grid.add_row(f"{size:.0f}", *(f"{count:.0f}" for count in counts))
    critical = fits["MNIST-1D"].critical_batch
    verdict = (
        f"MNIST-1D: well below a batch of {critical:.0f} examples twice the batch saves half of the steps, "
        f"well above it nothing. The gradient noise scale, measured at {measured_at}, says {noise:.0f}: a "
        f"factor {noise / critical:.1f}."
    )
    figures = {f"network.{size:.0f}.steps": count for size, count in zip(batch, network, strict=True)}
    figures |= {f"{name.replace(' ', '_')}.critical_batch": fit.critical_batch for name, fit in fits.items()}
    figures |= {"network.noise_scale": noise}
    pictures = {"critical_batch": picture(batch, steps, fits)}
    return report.Finding(verdict, checks(batch, steps, fits, noise), figures, [grid], pictures)


def quadratic_steps(batch: np.ndarray) -> np.ndarray:
    """Steps of the noisy quadratic to the goal at each batch size, at the best constant learning rate."""
    rates = np.geomspace(1e-4, 1.9, 400)
    return np.array([
        batches.steps_to(GOAL, EIGENVALUES, 30 * EIGENVALUES, size, rates) for size in batch
    ])  # fmt: skip


def network_steps(
    problem: "Problem", batch: np.ndarray, rates: tuple[float, ...], updates: int, target: float
) -> np.ndarray:
    """Steps of the network to the target at each batch size; NaN where it does not get there.

    Raises:
        ValueError: it gets there at fewer than three batch sizes.
    """
    steps = np.array([steps_of(problem, int(size), rates, updates, target) for size in batch])
    if np.isnan(steps).sum() > len(steps) - 3:
        raise ValueError(
            f"target={target:g}: is not reached at three batch sizes within {updates} updates and, "
            f"beyond {FEWEST_UPDATES}, {MOST_EXAMPLES:,} examples: take a higher loss"
        )
    return steps


class Problem:
    """A network on MNIST-1D, with the initial weights and the key of the batches of each seed."""

    def __init__(self, seeds: tuple[int, ...]):
        dataset = data.load("mnist1d")
        self.x, self.y = jnp.asarray(dataset.x), jnp.asarray(dataset.y)
        landscapes = [
            descent.landscape(
                models.mlp(dataset.input_shape, 10, widths=(WIDTH, WIDTH), rngs=nnx.Rngs(seed)),
                losses.named("cross_entropy"),
            )
            for seed in seeds
        ]
        self.starts = jnp.stack([landscape.start for landscape in landscapes])
        self.keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
        self.of_batch = landscapes[0].slope

    def slope(self, w: jax.Array, chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Gradient and loss on some examples."""
        return self.of_batch(w, (self.x[chosen], self.y[chosen]))

    def train(
        self, rate: jax.Array, start: jax.Array, key: jax.Array, size: int, updates: int
    ) -> tuple[jax.Array, jax.Array]:
        """The loss on some training examples, and the weights, before training and after every ten steps."""

        def step(w: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            chosen = jax.random.randint(key, (size,), 0, len(self.x))
            return w - rate * self.slope(w, chosen)[0], None

        def record(w: jax.Array, keys: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            return jax.lax.scan(step, w, keys)[0], (self.slope(w, jnp.arange(LOOKED_AT))[1], w)

        keys = jax.random.split(key, (updates // EVERY, EVERY))
        return jax.lax.scan(record, start, keys)[1]

    def noise_scale(self, size: int, rates: tuple[float, ...], updates: int, target: float) -> float:
        """tr(S) / |G|^2 on the first seed's way to the target at this batch size and its best rate.

        Both are estimated without bias at each record, from the gradients of a batch and of its halves, and
        their means over the steps divided.

        Raises:
            ValueError: no learning rate gets to the target.
        """
        key, half = jax.random.key(1), size // 2

        def estimates(w: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            chosen = jax.random.randint(key, (2 * half,), 0, len(self.x))
            first, second = (self.slope(w, part)[0] for part in (chosen[:half], chosen[half:]))
            trace = half * jnp.sum((first - second) ** 2) / 2
            return trace, jnp.vdot(first, second)

        run = jax.jit(jax.vmap(lambda rate: self.train(rate, self.starts[0], key, size, updates)))
        recorded, weights = run(jnp.asarray(rates))
        times = np.arange(recorded.shape[1]) * EVERY
        first = descent.time_to(target, np.asarray(recorded, np.float64).T, times.astype(float))
        if not np.isfinite(first).any():
            raise ValueError(
                f"measured_at={size}: does not reach the target of {target:g} within {updates} updates: take "
                "another batch size or a higher loss"
            )
        best = int(np.nanargmin(first))
        on_the_way = weights[best][times <= first[best]]
        keys = jax.random.split(jax.random.key(2), len(on_the_way))
        traces, squares = jax.jit(jax.vmap(estimates))(on_the_way, keys)
        return float(jnp.mean(traces) / jnp.mean(squares))


def steps_of(problem: Problem, size: int, rates: tuple[float, ...], updates: int, target: float) -> float:
    """Steps to the target at the learning rate that takes fewest, mean over seeds; NaN if none gets there."""
    count = min(updates, max(FEWEST_UPDATES, MOST_EXAMPLES // size))
    over_seeds = jax.vmap(
        lambda rate, start, key: problem.train(rate, start, key, size, count)[0], (None, 0, 0)
    )
    over_rates = jax.jit(jax.vmap(over_seeds, (0, None, None)))
    recorded = np.asarray(over_rates(jnp.asarray(rates), problem.starts, problem.keys), np.float64)
    times = np.arange(recorded.shape[-1], dtype=float) * EVERY
    first = descent.time_to(target, recorded.reshape(-1, len(times)).T, times)
    means = first.reshape(len(rates), -1).mean(axis=1)  # NaN where a seed does not get there
    return float(np.nanmin(means)) if np.isfinite(means).any() else float("nan")


def checks(
    batch: np.ndarray, steps: dict[str, np.ndarray], fits: dict[str, batches.Hyperbola], noise: float
) -> list[report.Check]:
    """One best step against simulated ones, both hyperbolas, and the noise scale within a factor."""
    random = np.random.default_rng(0)
    h, g, size = EIGENVALUES, EIGENVALUES * random.normal(size=100), 8.0
    predicted = batches.best_decrease(g, h, 2 * h, size)
    noisy = g + np.sqrt(2 * h / size) * random.normal(size=(40_000, 100))
    slope, curved = float(np.mean(noisy @ g)), float(np.mean(noisy**2 @ h))
    comparisons = [
        report.Check(
            "best step: simulated decrease / formula", float(slope**2 / (2 * curved) / predicted), 1, 0.05
        )
    ]
    for name, hyperbola in fits.items():
        there = ~np.isnan(steps[name])
        off = np.abs(hyperbola.steps(batch[there]) / steps[name][there] - 1).max()
        comparisons.append(report.Check(f"{name}: hyperbola / steps, off 1 by", off, 0, 0.2))
    ratio = float(np.log10(noise / fits["MNIST-1D"].critical_batch))
    return [*comparisons, report.Check("log10 of noise scale / critical batch", ratio, 0, 0.3)]


def picture(batch: np.ndarray, steps: dict[str, np.ndarray], fits: dict[str, batches.Hyperbola]):
    smooth = np.geomspace(batch.min(), batch.max(), 60)
    rows, points = [], []
    for name, hyperbola in fits.items():
        of = {"steps": hyperbola.steps(smooth), "examples": smooth * hyperbola.steps(smooth)}
        seen = {"steps": steps[name], "examples": batch * steps[name]}
        for kind in of:
            rows += [
                {"task": name, "of": kind, "batch": b, "count": c}
                for b, c in zip(smooth, of[kind], strict=True)
            ]
            points += [
                {"task": name, "of": kind, "batch": b, "count": c}
                for b, c in zip(batch, seen[kind], strict=True)
                if np.isfinite(c)
            ]
    return report.lines(
        pd.DataFrame(rows),
        x=report.axis("batch", "batch size", log=True),
        y=report.axis("count", "to the target", log=True),
        line="of",
        panel="task",
        points=pd.DataFrame(points),
        title="How large a batch is worth its examples?",
        subtitle="Steps and examples to a target at the best learning rates; lines: hyperbolas",
    )


if __name__ == "__main__":
    command.run_page(page)
