"""Does Adam, too, train at an edge of stability?

Full-batch gradient descent settles where the largest eigenvalue of the Hessian is 2 over the learning rate
(`step_fidelity.py`). Adam's step is one of gradient descent with momentum in coordinates that it stretches
itself, so its edge is one of the stretched Hessian P^-1 H: (2 + 2 b1) / ((1 - b1) lr), 38 / lr at b1 = 0.9
(Cohen et al. 2022). The closed form is compared with the roots of the update's own recursion, and a tanh
network on MNIST-1D, trained on all its examples at once, must settle there at every learning rate and b1.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from absl import flags
from flax import nnx
from rich.console import Console

from bpresearch import command as shared
from bpresearch import data, files, models, platform, report
from bpresearch.theory import sharpness

shared.define_experiment_flags()
flags.DEFINE_string("lr", "3e-3,6e-3", "learning rates of Adam")
flags.DEFINE_string("b1", "0.5,0.9", "b1 of Adam, below 1")
flags.DEFINE_integer("steps", 2000, "updates of the network")
flags.DEFINE_integer("examples", 500, "training examples of MNIST-1D")
flags.DEFINE_integer("width", 50, "width of the two hidden layers")
flags.DEFINE_integer("seed", 0, "of the initial weights")

EVERY = 25


def main() -> int:
    FLAGS = flags.FLAGS
    rates, betas = shared.listed("lr", low=1e-9), shared.listed("b1", low=0, high=1)
    steps, examples, width = (shared.positive(flag) for flag in ("steps", "examples", "width"))
    seed, json_file = shared.positive("seed", low=0), shared.output_file("json")
    if steps < 4 * EVERY:
        raise ValueError(
            f"--steps={steps}: takes at least {4 * EVERY}, of which the last quarter is looked at"
        )
    if FLAGS.quick:
        rates, steps, examples = rates[-1:], min(steps, 1000), min(examples, 300)
    platform.start(FLAGS.platform)
    workdir, console = shared.experiment_workdir("adaptive_edge"), Console()

    dataset = data.load("mnist1d")
    x, y = jnp.asarray(dataset.x[:examples]), jnp.asarray(np.eye(10, dtype=np.float32)[dataset.y[:examples]])
    rows, checks, figures = [], [], {}
    grid = report.grid(
        "Preconditioned sharpness of Adam", ("b1", "lr", "edge", "settles at", "over the edge")
    )
    for b1 in betas:
        checks.append(
            report.Check(
                f"b1 = {b1:g}: edge by roots / closed form",
                edge_by_roots(b1) / sharpness.adaptive_edge(1, b1),
                1,
                1e-6,
            )
        )
        for rate in rates:
            model = models.mlp(
                dataset.input_shape, 10, widths=(width, width), activation=nnx.tanh, rngs=nnx.Rngs(seed)
            )
            found = sharpness.full_batch(
                model, optax.losses.squared_error, x, y, optax.adam(rate, b1=b1),
                steps=steps // EVERY * EVERY, every=EVERY,
                preconditioner=partial(sharpness.adam_preconditioner, b1=b1),
            )  # fmt: skip
            edge = sharpness.adaptive_edge(rate, b1)
            over, name = found.settled / edge, f"b1 = {b1:g}, lr = {rate:g}"
            grid.add_row(f"{b1:g}", f"{rate:g}", f"{edge:.0f}", f"{found.settled:.0f}", f"{over:.3f}")
            checks.append(report.Check(f"{name}: settled / edge", over, 1, 0.08))
            figures[f"{b1:g}.{rate:g}.sharpness_over_edge"] = over
            rows += [
                {"setting": name, "step": float(step), "ratio": value / edge}
                for step, value in zip(found.steps, found.sharpness, strict=True)
            ]
    console.print(grid)
    console.print(
        "The stretched curvature rises until it is at the edge, and stays there: Adam's learning rate chooses"
        " how curved a place it trains at, as gradient descent's does."
    )
    files.write_figures(json_file, figures)
    console.print(f"Picture: {report.write_picture(picture(rows), workdir, 'adaptive_edge')}")
    return report.conclude(console, checks)


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
    shared.run(main)
