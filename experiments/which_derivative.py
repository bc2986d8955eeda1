"""Is the derivative in back-propagation that of the activation function or that of the loss function?

A gradient is taken apart into its three kinds of factor: weights, activation derivatives, the derivative of
the loss. Each kind is then replaced, everywhere and throughout training, by ones, by a constant with the
same mean, or (weights) by fixed random numbers, and the result measured: the angle to the true gradient at
the start, and the accuracy after training with it at the best of several learning rates. Settings differ
from the first one in one thing each: the activation, the loss or the depth.

Checked: where the chain rule says that a replacement changes nothing, the angle is zero (no activation or
weight lies downstream of a linear model's parameters; the identity's derivative is one), and where it says
that nothing is left (the mean of softmax cross-entropy's derivatives is zero), the gradient is zero.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pandas as pd
from absl import flags
from flax import nnx
from rich.console import Console
from rich.table import Table

from bpresearch import analysis, autodiff, chainrule, data, models, optim, platform, report, sweep
from bpresearch import flags as shared
from bpresearch.analysis import ablation
from bpresearch.functional import split

shared.define_experiment_flags()
flags.DEFINE_integer("width", 50, "width of the hidden layers")
flags.DEFINE_integer("steps", 400, "updates of each run")
flags.DEFINE_string("lr", "logspace:0.01:10:7", "learning rates, of which each gradient takes its best")
flags.DEFINE_string("seed", "0:3", "seeds")

CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels
REPLACED: dict[str, Callable[..., Any]] = {
    f"{kind}: {how.__name__}": ablation.ablated(kind, how)
    for kind, hows in (
        ("weight", (ablation.ones, ablation.mean, ablation.random)),
        ("activation", (ablation.ones, ablation.mean)),
        ("loss", (ablation.ones, ablation.mean)),
    )
    for how in hows
}


class Setting(NamedTuple):
    """What a network is made of: its hidden layers, their activation, and the loss."""

    depth: int = 2
    activation: str = "tanh"
    loss: str = "cross_entropy"

    def __str__(self) -> str:
        loss = "CE" if self.loss == "cross_entropy" else self.loss.upper()
        return f"{self.activation}, depth {self.depth}, {loss}" if self.depth else f"linear, {loss}"


SETTINGS = [
    Setting(), Setting(activation="identity"), Setting(activation="relu"), Setting(activation="sigmoid"),
    Setting(loss="mse"), Setting(depth=0), Setting(depth=1), Setting(depth=5),
]  # fmt: skip


def main() -> int:
    FLAGS = flags.FLAGS
    rates = shared.numbers("lr", FLAGS.lr, low=0)
    seeds = shared.numbers("seed", FLAGS.seed, int, low=0, high=2**32)
    steps, width = shared.positive("steps"), shared.positive("width")
    json_file = shared.output_file("json")
    platform.start(FLAGS.platform)
    workdir, console = shared.experiment_workdir("which_derivative"), Console()
    settings = [s for s in SETTINGS if s in (Setting(), Setting(activation="identity"), Setting(depth=0))]
    if FLAGS.quick:
        steps, rates, seeds = min(steps, 100), rates[1::2], seeds[:1]
    else:
        settings = SETTINGS

    dataset = data.load("mnist1d")
    console.print(factor_table(Setting(), dataset, width))
    rows = []
    for setting in settings:
        true = experiment(setting, dataset, width, steps, chainrule.gradient)
        angles, sizes = start_angles(true, seeds)
        axes = sweep.grid(
            optimizer=optim.sgd, schedule=optim.schedules.constant, lr=rates, batch_size=100, seed=seeds
        )
        score = partial(accuracy, axes=axes, workdir=workdir / str(setting).replace(", ", "-"))
        whole = score(true, "nothing")
        rows.append(row(setting, "nothing", 0.0, 1.0, whole))
        for name, gradient in REPLACED.items():
            same = angles[name] == 0 and sizes[name] == 1  # then so is the training
            changed = experiment(setting, dataset, width, steps, gradient)
            after = whole if same else score(changed, name.replace(": ", "-"))
            rows.append(row(setting, name, angles[name], sizes[name], after))
        console.print(f"{setting}: done", style="dim")
    frame = pd.DataFrame(rows)
    console.print(result_table(frame))
    console.print(verdict(frame))
    cells = frame.assign(**{"accuracy (%)": 100 * frame.accuracy, "text": [cell(r, ", ") for r in rows]})
    chart = report.heatmap(
        cells,
        row="setting",
        column="replaced",
        value="accuracy (%)",
        text="text",
        title="Which derivatives does back-propagation need?",
        subtitle="Test accuracy with one kind of factor replaced; angle to the true gradient at the start",
    )
    picture = report.write_picture(chart, workdir, "which_derivative")
    console.print(f"Picture: {picture}")
    report.write_figures(json_file, figures(frame))
    return report.conclude(console, checks(frame))


def experiment(
    setting: Setting, dataset: data.Dataset, width: int, steps: int, gradient: Callable[..., Any]
) -> sweep.Experiment:
    """Training a perceptron with a gradient function."""
    activation = shared.ACTIVATIONS[setting.activation]
    loss = shared.LOSSES[shared.LOSS_ALIASES[setting.loss]]
    return sweep.Experiment(
        dataset,
        models.mlp,
        loss,
        {"widths": (width,) * setting.depth, "activation": activation},
        targets=partial(shared.targets, dataset, loss),
        gradient=gradient,
        steps=steps,
        eval_every=steps,
    )


def start_angles(true: sweep.Experiment, seeds: list[int]) -> tuple[dict[str, float], dict[str, float]]:
    """Angle to the true gradient in degrees, and length over its length, at the start; means over seeds."""
    part = true.examples()["train"]
    batch = (part.x[:500], part.y[:500])
    functions = {"nothing": chainrule.gradient, "autodiff": autodiff.gradient} | REPLACED
    angles: dict[str, list[float]] = {name: [] for name in functions}
    sizes: dict[str, list[float]] = {name: [] for name in functions}
    program = None
    for seed in seeds:
        model = true.model(true.dataset.input_shape, 10, rngs=nnx.Rngs(seed), **true.model_options)
        graphdef, params, state = split(model)
        if program is None:
            engines = {name: function(graphdef, true.loss_fn) for name, function in functions.items()}
            program = jax.jit(
                lambda *args, engines=engines: {name: engine(*args)[1] for name, engine in engines.items()}
            )
        found = program(params, state, batch)
        length = optax.tree.norm(found["nothing"])
        for name, gradient in found.items():
            angles[name].append(ablation.angle(gradient, found["nothing"]))
            sizes[name].append(float(optax.tree.norm(gradient) / length))
    means = [{name: float(np.mean(v)) for name, v in values.items()} for values in (angles, sizes)]
    return means[0], means[1]


def accuracy(experiment: sweep.Experiment, name: str, *, axes: sweep.Axes, workdir: Any) -> float:
    """Mean test accuracy in [0, 1] after training, at the learning rate best on the validation part."""
    results = sweep.run(experiment, axes, workdir / name, quiet=True)
    (best,) = analysis.best_settings(results).values()
    return analysis.mean_and_interval(best.test).mean


def row(setting: Setting, replaced: str, angle: float, size: float, accuracy: float) -> dict[str, Any]:
    return {"setting": str(setting), "replaced": replaced, "angle": angle, "size": size, "accuracy": accuracy}


def cell(row: dict[str, Any], between: str = "\n") -> str:
    """Accuracy and angle: `61% 43°`; `none` where no gradient is left, `div.` if every run diverged."""
    angle = "none" if row["size"] < 1e-6 else f"{row['angle']:.0f}°"
    accuracy = "div." if np.isnan(row["accuracy"]) else f"{100 * row['accuracy']:.0f}"
    return f"{accuracy}{between}{angle}"


def factor_table(setting: Setting, dataset: data.Dataset, width: int) -> Table:
    """The factors of the gradient of the first setting's network, layer by layer, before training."""
    whole = experiment(setting, dataset, width, 1, chainrule.gradient)
    model = whole.model(dataset.input_shape, 10, rngs=nnx.Rngs(0), **whole.model_options)
    part = whole.examples()["train"]
    grid = Table(title="The factors of a gradient before training")
    for name in ("layer", "kind", "mean", "spread", "smallest", "largest"):
        grid.add_column(name, justify="left" if name in ("layer", "kind") else "right")
    for layer, kind, values in analysis.factor_statistics(model, whole.loss_fn, part.x[:500], part.y[:500]):
        numbers = (values.mean(), values.std(), values.min(), values.max())
        grid.add_row(layer, kind, *(f"{number:.3f}" for number in numbers))
    return grid


def result_table(frame: pd.DataFrame) -> Table:
    """Accuracy in per cent, and under it the angle at the start."""
    grid = Table(title="Test accuracy (%) and angle at the start, by what is replaced", padding=(0, 0))
    grid.add_column("setting", max_width=17)
    for name in dict.fromkeys(frame.replaced):
        grid.add_column(name.replace(": ", "\n").replace("activation", "act."), justify="right")
    for name, part in frame.groupby("setting", sort=False):
        grid.add_row(name, *(cell(r) for r in part.to_dict("records")))
    return grid


def verdict(frame: pd.DataFrame) -> str:
    """The answer, from the first setting, and where a replacement did least."""
    score = {(r.setting, r.replaced): 100 * r.accuracy for r in frame.itertuples()}
    first = frame.setting[0]
    without = [
        f"{name} {score[first, name]:.0f}" for name in ("weight: ones", "activation: ones", "loss: ones")
    ]
    bent = [s for s in dict.fromkeys(frame.setting) if not s.startswith(("identity", "linear"))]
    tried = [(s, how) for s in bent for how in ("activation: ones", "activation: mean")]
    least, how = min(tried, key=lambda one: score[one[0], "nothing"] - score[one])
    here, there = score[least, "nothing"], score[least, how]
    angle = float(frame[(frame.setting == least) & (frame.replaced == how)].angle.iloc[0])
    return (
        f"Both, and the weights. {first}: {score[first, 'nothing']:.0f} % with the whole product; with "
        f"one kind replaced: {', '.join(without)} %. The activation's derivative is missed least with "
        f"{least} ({how}: {here:.0f} to {there:.0f} %, {angle:.0f}° at the start), and not at all where "
        f"it is one (identity) or nothing lies downstream (linear). Fixed random weights reach "
        f"{score[first, 'weight: random']:.0f} %: the weights align with them."
    )


def figures(frame: pd.DataFrame) -> dict[str, float]:
    flat: dict[str, float] = {}
    for r in frame.itertuples():
        name = f"{r.setting}.{r.replaced}".replace(", ", "-").replace(": ", "-").replace(" ", "_")
        flat |= {f"{name}.accuracy": r.accuracy, f"{name}.size": r.size, f"{name}.angle": r.angle}
    return {name: value for name, value in flat.items() if np.isfinite(value)}


def checks(frame: pd.DataFrame) -> list[report.Check]:
    """What the chain rule says of the replacements without training."""
    at = {(r.setting, r.replaced): r for r in frame.itertuples()}
    linear, identity, first = (str(s) for s in (Setting(depth=0), Setting(activation="identity"), Setting()))
    return [
        report.Check("linear model, weights: angle", at[linear, "weight: ones"].angle, 0, 0),
        report.Check("linear model, activations: angle", at[linear, "activation: ones"].angle, 0, 0),
        report.Check("identity, activations: angle", at[identity, "activation: ones"].angle, 0, 0),
        report.Check("cross-entropy, mean of the loss': length", at[first, "loss: mean"].size, 0, 1e-5),
        report.Check("chance, without the loss'", at[first, "loss: mean"].accuracy, 0.1, 0.05),
    ]


if __name__ == "__main__":
    shared.run(main)
