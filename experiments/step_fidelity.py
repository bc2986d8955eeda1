"""How far does the slope tell what a step will do?

The slope g predicts that a step of gradient descent lowers the loss by lr ||g||^2. Measured beside it is
what the step does, for learning rates from small to too large: the ratio is 1 - lr k / 2 with the curvature
k along the gradient, exactly on a quadratic (a linear model with squared error), to first order on a network.
Too large begins at the edge of stability: 2 / lambda_max for gradient descent, 2 (1 + beta) / lambda_max
for heavy ball and 2 (1 + beta) / ((1 + 2 beta) lambda_max) for Nesterov. Found by bisection on quadratics
within 1 %; and a network trained with the full batch comes to that edge by itself: its sharpness settles
where the edge is at the learning rate (1.00 +- 0.03 of it, Cohen et al. 2021). At a tenth of the learning
rate it stays below.
"""

from typing import Annotated

import jax
import numpy as np
import optax
import pandas as pd
from flax import nnx
from rich.table import Table

from bpresearch import command, data, models, optim, report, verify
from bpresearch.command import Flag
from bpresearch.theory import quadratics, sharpness

METHODS: dict[str, optim.Optimizer] = {
    "gradient descent": optim.sgd,
    "heavy ball": optim.momentum,
    "Nesterov": optim.nesterov,
}
EVERY = 50  # steps between two measurements of the sharpness


def page(
    *,
    momentum: Annotated[float, Flag("of heavy ball and Nesterov", low=0, high=1)] = 0.9,
    threshold: Annotated[
        float, Flag("sharpness that is the edge of stability at the learning rates taken")
    ] = 2.5,
    steps: Annotated[int, Flag("updates of each training", low=4 * EVERY)] = 8000,
    examples: Annotated[int, Flag("of MNIST-1D's 4,000 that the full batch holds", low=1, high=4001)] = 500,
    width: Annotated[int, Flag("of the two hidden layers", low=1)] = 50,
    seed: Annotated[int, Flag("of the initial weights", low=0)] = 0,
    quick: bool = False,
) -> report.Finding:
    """Steps against what the slope predicts, and where the steps become too large."""
    if not threshold > 0:
        raise ValueError(f"threshold={threshold}: takes a positive sharpness")
    steps = min(steps, 4000) if quick else steps
    dataset = data.load("mnist1d")
    x, y = dataset.x[:examples], np.eye(10, dtype=np.float32)[dataset.y[:examples]]
    network = models.mlp((40, 1), 10, widths=(width, width), activation=nnx.tanh, rngs=nnx.Rngs(seed))
    linear = models.linear((40, 1), 10, rngs=nnx.Rngs(seed))
    fidelity, slopes = predictions({"quadratic": linear, "network": network}, x, y)
    edges = bisected(momentum)
    trained, settled = training(network, x, y, momentum, threshold, steps)
    figures = {f"{name}.{part}.sharpness_over_edge": value for (name, part), value in settled.items()}
    figures |= {
        f"{r['method']}.bisection_over_edge": r["measured"] / r["theory"] for r in edges.to_dict("records")
    }
    ends = ", ".join(f"{settled[name, 'at the edge']:.3f} ({name})" for name in METHODS)
    return report.Finding(
        f"At the edge's learning rate a network's sharpness settles at {ends} of the edge.",
        checks(fidelity, slopes, edges, settled),
        figures,
        [edge_table(edges, settled)],
        {"step_fidelity": fidelity_picture(fidelity), "edge_of_stability": edge_picture(trained)},
    )


def checks(
    fidelity: pd.DataFrame,
    slopes: dict[str, float],
    edges: pd.DataFrame,
    settled: dict[tuple[str, str], float],
) -> list[report.Check]:
    """The decrease on a quadratic and on a network; the edges on quadratics, and where training settles."""
    parts = fidelity[fidelity.curvature < 1]
    exact = parts[parts.model == "quadratic"]
    return [
        report.Check(
            "quadratic: observed / predicted, off by", (exact.ratio - exact.theory).abs().max(), 0, 1e-9
        ),
        report.Check("network: 1 - slope of the ratio, over k / 2", slopes["network"], 1, 0.05),
        *(
            report.Check(
                f"{r['method']}: edge by bisection / closed form", r["measured"] / r["theory"], 1, 0.01
            )
            for r in edges.to_dict("records")
        ),
        *(
            report.Check(f"{name}: sharpness settled / edge", value, 1, 0.03)
            if part == "at the edge"
            else report.Check(f"{name}, a tenth of it: below 0.5", value, 0.25, 0.25)
            for (name, part), value in settled.items()
        ),
    ]


def predictions(networks: dict[str, nnx.Module], x, y) -> tuple[pd.DataFrame, dict[str, float]]:
    """Observed over predicted decrease against lr k / 2; and minus that ratio's slope at small rates: one."""
    rows, slopes = [], {}
    relative = np.concatenate([[0.01, 0.02], np.linspace(0.05, 1.5, 30)])
    with jax.enable_x64(True):
        x, y = verify.cast((x, y), "float64")
        for name, model in networks.items():
            inputs = (verify.cast_model(model, "float64"), optax.losses.squared_error, x, y)
            curvature = sharpness.decrease(*inputs, np.zeros(1))[2]
            predicted, observed, _ = sharpness.decrease(*inputs, 2 * relative / curvature)
            ratio = observed / predicted
            rows += [
                {"model": name, "curvature": c, "ratio": r, "theory": 1 - c}
                for c, r in zip(relative, ratio, strict=True)
            ]
            slopes[name] = float((1 - ratio[0]) / relative[0])
    return pd.DataFrame(rows), slopes


def bisected(momentum: float) -> pd.DataFrame:
    spectrum = np.geomspace(0.1, 10.0, 10)
    return pd.DataFrame(
        {
            "method": name,
            "measured": quadratics.edge_by_bisection(optimizer, spectrum, momentum),
            "theory": quadratics.edge(optimizer, 10.0, momentum),
        }
        for name, optimizer in METHODS.items()
    )


def training(
    model: nnx.Module, x, y, momentum: float, threshold: float, steps: int
) -> tuple[pd.DataFrame, dict[tuple[str, str], float]]:
    """Sharpness over the edge's, in training at the edge's learning rate and at a tenth of it; its end."""
    rows, settled = [], {}
    for name, method in METHODS.items():
        for label, factor in (("at the edge", 1.0), ("a tenth", 0.1)):
            options = {} if method is optim.sgd else {"momentum": momentum}
            optimizer = method(factor * quadratics.edge(method, threshold, momentum), **options)
            path = sharpness.full_batch(
                model, optax.losses.squared_error, x, y, optimizer, steps=steps // EVERY * EVERY, every=EVERY
            )
            settled[name, label] = path.settled * factor / threshold
            rows += [
                {
                    "method": name,
                    "learning rate": label,
                    "step": float(step),
                    "ratio": value * factor / threshold,
                }
                for step, value in zip(path.steps, path.sharpness, strict=True)
            ]
    return pd.DataFrame(rows), settled


def edge_table(edges: pd.DataFrame, settled: dict[tuple[str, str], float]) -> Table:
    columns = ("method", "bisection", "closed form", "a network's sharpness / edge", "a tenth of the rate")
    grid = report.grid("The edge of stability", columns, words=("method",))
    for r in edges.to_dict("records"):
        at, below = (settled[r["method"], part] for part in ("at the edge", "a tenth"))
        grid.add_row(r["method"], f"{r['measured']:.4f}", f"{r['theory']:.4f}", f"{at:.3f}", f"{below:.3f}")
    return grid


def fidelity_picture(fidelity: pd.DataFrame):
    line = fidelity[fidelity.model == "quadratic"].assign(model="1 - lr k / 2", ratio=lambda f: f.theory)
    return report.lines(
        line[["curvature", "ratio", "model"]],
        x=report.axis("curvature", "learning rate times curvature along the gradient / 2"),
        y=report.axis("ratio", "decrease observed / predicted by the slope"),
        line="model",
        points=fidelity[["curvature", "ratio", "model"]],
        title="How far does the slope tell what a step will do?",
        subtitle="Beyond 1 the loss rises: the step is longer than twice the best one",
    )


def edge_picture(trained: pd.DataFrame):
    return report.lines(
        trained,
        x=report.axis("step", "step"),
        y=report.axis("ratio", "sharpness / edge of stability", zero=True),
        line="learning rate",
        panel="method",
        title="Where does full-batch training settle?",
        subtitle="Largest eigenvalue of the Hessian over the one above which the learning rate diverges",
    )


if __name__ == "__main__":
    command.run_page(page)
