"""What happens at learning rates above 2 over the curvature, where the loss must grow?

Between 2 and 4 over the curvature at the start the loss is thrown up and comes back, at a flatter place: the
catapult (Lewkowycz et al. 2020). On a linear network of one hidden layer gradient descent is compared, weight
by weight, with the two closed equations for output and curvature; its learning rates below 2, between 2 and 4
and above 4 over the curvature must fall at once, be thrown and return below 2, and diverge. A network on
MNIST-1D, trained on all examples at once with the squared error, is looked at in the same way.
"""

from typing import Annotated

import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from flax import nnx
from rich.table import Table

from bpresearch import command, data, models, report
from bpresearch.command import Flag, listed
from bpresearch.theory import catapult, sharpness

LINEAR_STEPS, HIDDEN = 300, 200
COLUMNS = ("lr x curvature", "loss rises to", "ends at", "lr x curvature there")
PHASES = {"falls at once": (0, 2), "is thrown and returns": (2, 4), "diverges": (4, np.inf)}


def page(
    *,
    multiple: Annotated[
        tuple[float, ...], Flag("learning rates, times the curvature at the start", low=0.01)
    ] = listed("0.5,1.5,2.5,3,3.5,4.5"),
    width: Annotated[int, Flag("hidden units of the linear network", low=1)] = 1000,
    examples: Annotated[int, Flag("training examples of MNIST-1D, of 4,000", low=1, high=4001)] = 1000,
    steps: Annotated[int, Flag("updates of the network on MNIST-1D", low=1)] = 400,
    seed: Annotated[int, Flag("of the weights", low=0)] = 0,
    quick: bool = False,
) -> report.Finding:
    """What the loss and the curvature do, at each learning rate."""
    if min(multiple) >= 4:
        rates = ",".join(f"{m:g}" for m in multiple)
        raise ValueError(f"multiple={rates}: takes at least one below 4, where the loss comes back")
    if quick:
        examples, steps = min(examples, 300), min(steps, 100)
    u, v = catapult.initial(width, seed)
    start = float(u @ v) / np.sqrt(width), float(u @ u + v @ v) / width
    paths = {m: catapult.descend(u, v, m / start[1], LINEAR_STEPS) for m in multiple}
    closed = {m: catapult.predicted(*start, m / start[1], width, LINEAR_STEPS) for m in multiple}
    network = on_mnist1d(multiple, examples, steps, seed)

    thrown = [m for m in multiple if 2 < m < 4]
    verdict = (
        "Between 2 and 4 over the curvature the loss is thrown up and comes back where lr x curvature is "
        "below 2: too large a learning rate finds a flatter place by itself."
    )
    figures = {f"linear.{m:g}.final_curvature": paths[m].curvature[-1] for m in multiple}
    figures |= {f"linear.{m:g}.highest": paths[m].loss.max() / paths[m].loss[0] for m in multiple}
    figures |= {f"linear.{m:g}.settled": m * paths[m].curvature[-1] / paths[m].curvature[0] for m in multiple}
    figures |= {f"network.{m:g}.highest": np.nanmax(losses) / losses[0] for m, (losses, _) in network.items()}
    figures |= {f"network.{m:g}.final": curvature[-1] for m, (_, curvature) in network.items()}
    return report.Finding(
        verdict, checks(paths, closed, network, thrown), figures,
        [linear_table(paths), network_table(network)], {"catapult": picture(paths)},
    )  # fmt: skip


def linear_table(paths: dict[float, catapult.Path]) -> Table:
    columns = (*COLUMNS, "the loss")
    grid = report.grid("A linear network: loss over that before training", columns, words=columns[-1:])
    for m, path in paths.items():
        grid.add_row(f"{m:g}", *row(path.loss, m * path.curvature / path.curvature[0]), phase(path))
    return grid


def network_table(network: dict[float, tuple[np.ndarray, np.ndarray]]) -> Table:
    grid = report.grid("A network on MNIST-1D, the full batch", COLUMNS)
    for m, (losses, curvature) in network.items():
        grid.add_row(f"{m:g}", *row(losses, curvature))
    return grid


def on_mnist1d(
    multiples: tuple[float, ...], examples: int, steps: int, seed: int
) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Losses before each step, and lr x curvature ten times on the way, for each learning rate below 4."""
    dataset = data.load("mnist1d")
    x, y = dataset.x[:examples], np.eye(10, dtype=np.float32)[dataset.y[:examples]]

    def trained(rate: float, steps: int, every: int, iterations: int) -> sharpness.Trajectory:
        model = models.mlp(
            dataset.input_shape, 10, widths=(HIDDEN,), activation=nnx.relu, rngs=nnx.Rngs(seed)
        )
        return sharpness.full_batch(
            model, optax.losses.squared_error, jnp.asarray(x), jnp.asarray(y), optax.sgd(rate),
            steps=steps, every=every, iterations=iterations,
        )  # fmt: skip

    curvature = float(trained(0.0, 1, 1, 100).sharpness[0])
    courses = {}
    for m in multiples:
        if m < 4:
            run = trained(m / curvature, steps, max(1, steps // 10), 30)
            courses[m] = run.loss, m * run.sharpness / curvature
    return courses


def row(losses: np.ndarray, curvature: np.ndarray) -> tuple[str, str, str]:
    """Highest and last loss over the first, and the last lr x curvature."""
    with np.errstate(invalid="ignore", over="ignore"):
        highest, last = np.nanmax(losses) / losses[0], losses[-1] / losses[0]
    return f"{highest:.3g}", f"{last:.2g}", f"{curvature[-1]:.2f}"


def phase(path: catapult.Path) -> str:
    """What the loss does."""
    losses = path.loss
    if not losses[-1] < losses[0]:
        return "diverges"
    return "is thrown and returns" if losses.max() > 1.01 * losses[0] else "falls at once"


def checks(
    paths: dict[float, catapult.Path],
    closed: dict[float, catapult.Path],
    network: dict[float, tuple[np.ndarray, np.ndarray]],
    thrown: list[float],
) -> list[report.Check]:
    """The closed equations, the three phases, and the network's return."""
    comparisons = []
    for m, path in paths.items():
        expected = next(name for name, (low, high) in PHASES.items() if low < m <= high)
        comparisons.append(
            report.Check(f"lr x curvature {m:g}: {expected}", float(phase(path) == expected), 1, 0)
        )
    finite = [m for m in paths if m < 4]
    off = max(float(np.max(np.abs(paths[m].curvature / closed[m].curvature - 1))) for m in finite)
    comparisons.append(report.Check("curvature against its closed equation", off, 0, 1e-9))
    for m in thrown:
        last = m * paths[m].curvature[-1] / paths[m].curvature[0]
        losses, curvature = network[m]
        comparisons += [
            report.Check.below(f"{m:g}: lr x curvature at the end", last, 2),
            report.Check.below(f"MNIST-1D, {m:g}: last loss over first", losses[-1] / losses[0], 1),
            report.Check.below(f"MNIST-1D, {m:g}: lr x curvature at the end", curvature[-1], 2),
        ]
    return comparisons


def picture(paths: dict[float, catapult.Path]):
    rows = [
        {"lr x curvature": f"{m:g}", "step": float(step), "value": value, "panel": panel}
        for m, path in paths.items()
        for panel, values in (
            ("loss over that before training", path.loss / path.loss[0]),
            ("lr x curvature", m * path.curvature / path.curvature[0]),
        )
        for step, value in enumerate(values[:61])
        if np.isfinite(value) and 1e-6 < value < 1e6
    ]
    return report.lines(
        pd.DataFrame(rows),
        x=report.axis("step", "step"),
        y=report.axis("value", "", log=True, domain=[1e-2, 1e4], clamp=True),
        line="lr x curvature",
        panel="panel",
        title="What does a learning rate above 2 over the curvature do?",
        subtitle="A linear network: between 2 and 4 it throws the loss up, and comes back below 2",
    )


if __name__ == "__main__":
    command.run_page(page)
