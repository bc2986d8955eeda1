"""Does the best learning rate of a narrow network hold for a wide one?

Adam on MNIST-1D, networks with two hidden layers of 64 to 2,048 units, in the standard scaling and in muP
(Yang et al. 2022, arXiv 2203.03466), which takes the narrowest as it is. The paper's table 3 says that the
rate of a wide layer goes like 1 / width: with one rate for all layers the best should go like width^-1, and
in muP like width^0. Whether it does is measured: the exponent of the rate at which the training loss, its
mean over seeds, is lowest, and between which values it lies when each seed in turn is left out. A single
seed says little: at width 2,048 in the standard scaling the loss has two valleys, at rates of 5e-4 and 4e-3,
which differ by less than seeds do (1.20 and 1.24): of six seeds two have the second one deeper, and each
one's own exponent lies between -0.4 and -0.95. (With warm-up and linear decay the second is the deeper one,
1.08 at 8e-3.) Checked to first order, too: what Adam's first step on each layer does to the outputs grows
like width^1/2 (input), ^3/2 (hidden) and ^1 (output), in muP not at all (`theory/widths.py`).
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx
from rich.table import Table

from bpresearch import command, data, functional, losses, models, optim, report, sweep
from bpresearch.command import Flag, listed
from bpresearch.optim import mup, schedules
from bpresearch.theory import descent, widths

# Of -1, -1/2 and 0, what a rate could plausibly do, a measured exponent within 0.25 is nearest to its own.
EXPONENTS, NEAR = {"standard": -1.0, "muP": 0.0}, 0.25
LAYERS = {"input": (1, 0.5), "hidden": (3, 1.5), "output": (5, 1.0)}
"""Each kernel's place in the model, and the exponent of its first step in the standard scaling."""


def page(
    *,
    width: Annotated[
        tuple[int, ...],
        Flag(
            "widths of both hidden layers",
            low=1,
            least=3,
            why="for an exponent",
        ),
    ] = listed("64,128,256,512,1024,2048", int),
    lr: Annotated[
        tuple[float, ...],
        Flag("learning rates", low=1e-9, least=3, why="of which the best lies inside"),
    ] = listed("logspace:1.220703125e-4:0.0625:10"),
    seed: Annotated[
        tuple[int, ...],
        Flag("seeds", low=0, high=2**32, least=2, why="of which one is left out in turn"),
    ] = listed("0:6", int),
    steps: Annotated[int, Flag("updates", low=1)] = 80,
    batch_size: Annotated[int, Flag("examples of each update", low=1)] = 64,
    quick: bool = False,
    workdir: Path,
) -> report.Finding:
    """The best learning rate of each width in both scalings, and what theory says of its exponent."""
    sizes, rates, seeds = sorted(width), sorted(lr), list(seed)
    if quick:
        sizes, seeds = sizes[1::2], seeds[:2]  # narrow networks are not in the wide limit yet
    axes = sweep.grid(
        optimizer=optim.adam, schedule=schedules.constant, lr=rates, b1=0.9, b2=0.999, eps=1e-8,
        batch_size=batch_size, seed=seeds,
    )  # fmt: skip
    trained = {
        (scaling, n): final_losses(scaling, n, sizes[0], axes, steps, workdir)
        for scaling in EXPONENTS
        for n in sizes
    }
    every = np.arange(len(seeds))
    best = {scaling: lowest_of(trained, scaling, sizes, rates, every) for scaling in EXPONENTS}
    others = {scaling: exponents(trained, scaling, sizes, rates, every) for scaling in EXPONENTS}
    losses_there = transferred(trained, sizes)
    transfer = {f"{scaling}.transferred": taken for scaling, (taken, _) in losses_there.items()}
    transfer |= {f"{scaling}.own_best": own for scaling, (_, own) in losses_there.items()}
    steps_of = {(scaling, n): first(scaling, n, sizes[0]) for scaling in EXPONENTS for n in sizes}
    return report.Finding(
        finding(losses_there, sizes),
        checks(steps_of, best, rates, sizes),
        figures(best, others, sizes) | transfer,
        [table(best, others, sizes)],
        {"width_transfer": picture(trained, rates)},
    )


@cache
def signals() -> data.Dataset:
    return data.load("mnist1d")


def network(*, rngs: nnx.Rngs, width: int) -> nnx.Module:
    """A network with two hidden layers."""
    return models.mlp(signals().input_shape, 10, widths=(width, width), rngs=rngs)


@cache
def shapes(width: int) -> functional.Params:
    """The shapes of the parameters of the network of this width."""
    return functional.split(nnx.eval_shape(lambda: network(rngs=nnx.Rngs(0), width=width)))[1]


def final_losses(
    scaling: str, width: int, base: int, axes: sweep.Axes, steps: int, workdir: Path
) -> np.ndarray:
    """The training loss over the last tenth of the steps, a row for each seed, a column for each rate."""
    experiment = sweep.Experiment(
        signals(), network, losses.named("cross_entropy"), {"width": width},
        steps=steps, eval_every=steps, validation=0.0, mup={"width": base} if scaling == "muP" else None,
    )  # fmt: skip
    results = sweep.run(experiment, axes, workdir / f"{scaling}-{width}", quiet=True)
    final = results.train_loss[:, -max(1, steps // 10) :].mean("step", skipna=False)
    frame = pd.DataFrame({"lr": results.lr.values, "seed": results.seed.values, "loss": final.values})
    return frame.pivot(index="seed", columns="lr", values="loss").to_numpy(np.float64)


def first(scaling: str, width: int, base: int) -> list[float]:
    """What Adam's first step on each kernel does to the right classes' outputs, over the learning rate."""
    build: Callable[..., nnx.Module] = partial(network, width=width)
    rates: dict[str, float] = {}
    if scaling == "muP":
        build = mup.widened(lambda rngs: network(rngs=rngs, width=width), shapes(base))
        rates = mup.rates_of("adam", shapes(width), mup.shapes_of(shapes(base)))
    model = build(rngs=nnx.Rngs(0))
    x, y = jnp.asarray(signals().x[:512]), jnp.asarray(signals().y[:512])
    moves = widths.first_steps(model, widths.own_output, x, y, rates)
    return [moves[f"layers.{place}.kernel"] for place, _ in LAYERS.values()]


def exponent(sizes: list[int], values: list[float]) -> float:
    """a in values = c width^a."""
    return widths.exponent(np.array(sizes, float), np.array(values))


def lowest_of(
    trained: dict, scaling: str, sizes: list[int], rates: list[float], seeds: np.ndarray
) -> list[float]:
    """For each width the rate at which the loss, its mean over these seeds, is lowest."""
    means = [trained[scaling, n][seeds].mean(axis=0) for n in sizes]
    return [descent.lowest(np.array(rates), mean)[0] for mean in means]


def exponents(
    trained: dict, scaling: str, sizes: list[int], rates: list[float], seeds: np.ndarray
) -> list[float]:
    """Of the best rates, when each of these seeds in turn is left out."""
    return [
        exponent(sizes, lowest_of(trained, scaling, sizes, rates, seeds[seeds != left_out]))
        for left_out in seeds
    ]


def table(best: dict, others: dict, sizes: list[int]) -> Table:
    """The best rates, and their exponents, between the lowest and highest without one of the seeds."""
    grid = report.grid("Learning rate at which the mean loss is lowest", ("width", *EXPONENTS))
    for place, n in enumerate(sizes):
        grid.add_row(str(n), *(f"{best[key][place]:.2e}" for key in EXPONENTS))
    fits = (f"{exponent(sizes, best[key]):.2f} ({min(o):.2f} to {max(o):.2f})" for key, o in others.items())
    grid.add_row("exponent (without one seed)", *fits)
    return grid


def transferred(trained: dict, sizes: list[int]) -> dict[str, tuple[float, float]]:
    """The widest network's loss at the narrowest one's best rate, and at its own best, in each scaling."""
    losses = {}
    for scaling in EXPONENTS:
        narrow, wide = (np.mean(trained[scaling, n], axis=0) for n in (sizes[0], sizes[-1]))
        losses[scaling] = float(wide[int(np.nanargmin(narrow))]), float(np.nanmin(wide))
    return losses


def finding(losses: dict[str, tuple[float, float]], sizes: list[int]) -> str:
    """What it costs the widest network to take the narrowest one's best rate."""
    parts = [
        f"{taken:.3f} in {scaling} scaling (at its own best {own:.3f})"
        for scaling, (taken, own) in losses.items()
    ]
    return (
        f"With the rate that is best at width {sizes[0]} a network of width {sizes[-1]} ends at a training "
        f"loss of {' and '.join(parts)}."
    )


def figures(
    best: dict[str, list[float]], others: dict[str, list[float]], sizes: list[int]
) -> dict[str, float]:
    """The best rates, their exponents, and the lowest and highest of these without one of the seeds."""
    flat = {
        f"{scaling}.{n}.lr": rate
        for scaling, rates in best.items()
        for n, rate in zip(sizes, rates, strict=True)
    }
    flat |= {f"{scaling}.exponent": exponent(sizes, rates) for scaling, rates in best.items()}
    flat |= {f"{scaling}.lowest_exponent": min(exponents) for scaling, exponents in others.items()}
    flat |= {f"{scaling}.highest_exponent": max(exponents) for scaling, exponents in others.items()}
    return flat


def checks(steps_of: dict, best: dict, rates: list[float], sizes: list[int]) -> list[report.Check]:
    """Exponents of what the first step does and of the best rates, of which none may be at an end."""
    comparisons = []
    for scaling in EXPONENTS:
        for place, (layer, (_, power)) in enumerate(LAYERS.items()):
            measured = exponent(sizes, [steps_of[scaling, n][place] for n in sizes])
            expected = power if scaling == "standard" else 0.0
            comparisons.append(report.Check(f"{scaling}, first step: {layer}", measured, expected, 0.1))
    ends = sum(int(np.isin(rate, (rates[0], rates[-1])).sum()) for rate in best.values())
    comparisons.append(report.Check("best rates at an end", ends, 0, 0))
    for scaling, expected in EXPONENTS.items():
        measured = exponent(sizes, best[scaling])
        comparisons.append(report.Check(f"{scaling}: exponent of the best rate", measured, expected, NEAR))
    return comparisons


def picture(trained: dict, rates: list[float]):
    rows, lowest = [], []
    for (scaling, n), final in trained.items():
        place, losses = {"width": str(n), "panel": f"{scaling} scaling"}, np.mean(final, axis=0)
        rows += [place | {"lr": rate, "loss": loss} for rate, loss in zip(rates, losses, strict=True)]
        lowest.append(place | dict(zip(("lr", "loss"), descent.lowest(np.array(rates), losses), strict=True)))
    frame = pd.DataFrame(rows).dropna()
    return report.lines(
        frame,
        x=report.axis("lr", "learning rate", log=True),
        y=report.axis("loss", "training loss", domain=[0.95 * frame["loss"].min(), 2.3], clamp=True),
        line="width",
        panel="panel",
        points=pd.DataFrame(lowest),
        title="Does the best learning rate of a narrow network hold for a wide one?",
        subtitle="Adam on MNIST-1D; circles: each width's lowest loss, which in muP stays at one rate",
    )


if __name__ == "__main__":
    command.run_page(page)
