"""Does Adam, too, train at an edge of stability?

Full-batch gradient descent settles where the largest eigenvalue of the Hessian is 2 over the learning rate
(`step_fidelity.py`). Adam's step is one of gradient descent with momentum in coordinates that it stretches
itself, so its edge is one of the stretched Hessian P^-1 H: (2 + 2 b1) / ((1 - b1) lr), 38 / lr at b1 = 0.9
(Cohen et al. 2022). The closed form is compared with the roots of the update's own recursion, and a tanh
network on MNIST-1D, trained on all its examples at once, must settle there at every learning rate and b1.
"""

from functools import partial
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from flax import nnx

from bpresearch import command, data, models, report
from bpresearch.command import Flag, listed
from bpresearch.theory import sharpness

EVERY = 25


def page(
    *,
    lr: Annotated[tuple[float, ...], Flag("learning rates of Adam", low=1e-9)] = listed("3e-3,6e-3"),
    b1: Annotated[tuple[float, ...], Flag("b1 of Adam, below 1", low=0, high=1)] = listed("0.5,0.9"),
    steps: Annotated[int, Flag("updates of the network", low=4 * EVERY)] = 2000,
    examples: Annotated[int, Flag("training examples of MNIST-1D, of 4,000", low=1, high=4001)] = 500,
    width: Annotated[int, Flag("width of the two hidden layers", low=1)] = 50,
    seed: Annotated[int, Flag("of the initial weights", low=0)] = 0,
    quick: bool = False,
) -> report.Finding:
    """The preconditioned sharpness at which Adam settles, over that of the edge."""
    if quick:
        lr, steps, examples = lr[-1:], min(steps, 1000), min(examples, 300)
    rows, checks, figures = [], [], {}
    grid = report.grid(
        "Preconditioned sharpness of Adam", ("b1", "lr", "edge", "settles at", "over the edge")
    )
    for beta in b1:
        quotient = edge_by_roots(beta) / sharpness.adaptive_edge(1, beta)
        checks.append(report.Check(f"b1 = {beta:g}: edge by roots / closed form", quotient, 1, 1e-6))
        for rate in lr:
            path = trajectory(rate, beta, steps, examples, width, seed)
            edge = sharpness.adaptive_edge(rate, beta)
            over, name = path.settled / edge, f"b1 = {beta:g}, lr = {rate:g}"
            grid.add_row(f"{beta:g}", f"{rate:g}", f"{edge:.0f}", f"{path.settled:.0f}", f"{over:.3f}")
            checks.append(report.Check(f"{name}: settled / edge", over, 1, 0.08))
            figures[f"{beta:g}.{rate:g}.sharpness_over_edge"] = over
            rows += [
                {"setting": name, "step": float(step), "ratio": value / edge}
                for step, value in zip(path.steps, path.sharpness, strict=True)
            ]
    verdict = (
        "The stretched curvature rises until it is at the edge, and stays there: Adam's learning rate chooses"
        " how curved a place it trains at, as gradient descent's does."
    )
    return report.Finding(verdict, checks, figures, [grid], {"adaptive_edge": picture(rows)})


def trajectory(
    rate: float, b1: float, steps: int, examples: int, width: int, seed: int
) -> sharpness.Trajectory:
    """Adam's training of a tanh network on the first examples of MNIST-1D."""
    dataset = data.load("mnist1d")
    x, y = jnp.asarray(dataset.x[:examples]), jnp.asarray(np.eye(10, dtype=np.float32)[dataset.y[:examples]])
    model = models.mlp(
        dataset.input_shape, 10, widths=(width, width), activation=nnx.tanh, rngs=nnx.Rngs(seed)
    )
    return sharpness.full_batch(
        model, optax.losses.squared_error, x, y, optax.adam(rate, b1=b1),
        steps=steps // EVERY * EVERY, every=EVERY,
        preconditioner=partial(sharpness.adam_preconditioner, b1=b1),
    )  # fmt: skip


def edge_by_roots(b1: float) -> float:
    """The largest curvature at which no mode of Adam's recursion grows, at a learning rate of one.

    With P held fixed w' = (1 + b1 - (1 - b1) c) w - b1 w_before, whose roots must lie in the unit circle.
    """
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        grows = np.abs(np.roots([1, (1 - b1) * middle - 1 - b1, b1])).max() > 1 + 1e-9
        low, high = (low, middle) if grows else (middle, high)
    return low


def picture(rows: list[dict]):
    frame = pd.DataFrame(rows)
    line = pd.DataFrame({"setting": "the edge", "step": [0.0, frame.step.max()], "ratio": [1.0, 1.0]})
    return report.lines(
        pd.concat([frame, line]),
        x=report.axis("step", "step"),
        y=report.axis("ratio", "preconditioned sharpness over the edge", zero=True),
        line="setting",
        title="Where does Adam's curvature settle?",
        subtitle="A tanh network on MNIST-1D, full batch; the edge is (2 + 2 b1) / ((1 - b1) lr)",
    )


if __name__ == "__main__":
    command.run_page(page)
