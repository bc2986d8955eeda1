"""Is the derivative in back-propagation that of the activation function or that of the loss function?

Both: a weight's gradient is the product of both, and of the weights between them. Which of them can training
do without? A gradient is taken apart into its three kinds of factor: weights, activation derivatives, the
derivative of the loss. Each kind is then replaced, everywhere and throughout training, by ones, by a constant
with the same mean, or (weights) by fixed random numbers, and the result measured: the angle to the true
gradient at the start, and the accuracy after training with it at the best of several learning rates. Settings
differ from the first one in one thing each: the activation, the loss or the depth.

Checked: where the chain rule says that a replacement changes nothing, the angle is zero (no activation or
weight lies downstream of a linear model's parameters; the identity's derivative is one), and where it says
that nothing is left (the mean of softmax cross-entropy's derivatives is zero), the gradient is zero.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from absl import flags
from flax import nnx
from rich.console import Console
from rich.table import Table

from bpresearch import (
    chainrule,
    data,
    files,
    losses,
    models,
    optim,
    platform,
    report,
    statistics,
    sweep,
    theory,
)
from bpresearch import command as shared
from bpresearch.theory import ablation

shared.define_experiment_flags()
flags.DEFINE_integer("width", 50, "width of the hidden layers")
flags.DEFINE_integer("steps", 400, "updates of each run")
flags.DEFINE_string("lr", "logspace:0.01:100:9", "learning rates, of which each gradient takes its best")
flags.DEFINE_string("seed", "0:3", "seeds")


class Setting(NamedTuple):
    """What a network is made of: its hidden layers, their activation, and the loss."""

    depth: int = 2
    activation: str = "tanh"
    loss: str = "cross_entropy"

    def __str__(self) -> str:
        loss = "CE" if self.loss == "cross_entropy" else self.loss.upper()
        return f"{self.activation}, depth {self.depth}, {loss}" if self.depth else f"linear, {loss}"


PLAIN, LINEAR, IDENTITY = Setting(), Setting(depth=0), Setting(activation="identity")
SETTINGS = [
    PLAIN, IDENTITY, Setting(activation="relu"), Setting(activation="sigmoid"), Setting(loss="mse"),
    LINEAR, Setting(depth=1), Setting(depth=5),
]  # fmt: skip


def main() -> int:
    FLAGS = flags.FLAGS
    rates = shared.listed("lr", low=0)
    seeds = shared.listed("seed", int, low=0, high=2**32)
    steps, width = shared.positive("steps"), shared.positive("width")
    json_file = shared.output_file("json")
    platform.start(FLAGS.platform)
    workdir, console = shared.experiment_workdir("which_derivative"), Console()
    settings = SETTINGS
    if FLAGS.quick:
        settings, steps, rates, seeds = [PLAIN, IDENTITY, LINEAR], min(steps, 100), rates[1::3], seeds[:1]

    dataset = data.load("mnist1d")
    axes = sweep.grid(
        optimizer=optim.sgd, schedule=optim.schedules.constant, lr=rates, batch_size=100, seed=seeds
    )
    rows: list[dict[str, Any]] = []
    for setting in settings:
        task, folder = partial(experiment, setting, dataset, width, steps), str(setting).replace(", ", "-")
        true = task(chainrule.gradient)
        networks = [model_of(true, seed) for seed in seeds]
        part = true.examples()["train"]
        batch = (true.loss, part[0][:500], part[1][:500])
        if setting == PLAIN:
            console.print(factor_table(theory.factor_statistics(networks[0], *batch)))
        whole = trained(true, axes, workdir / folder / "nothing")
        rows.append({"setting": str(setting), "replaced": "nothing", "angle": 0.0, "length": 1.0, **whole})
        for name, at_start in ablation.deviations(networks, *batch, ablation.REPLACEMENTS).items():
            found = whole
            if at_start != (0, 1):  # otherwise it is the same gradient, and so the same training
                changed = task(ablation.REPLACEMENTS[name])
                found = trained(changed, axes, workdir / folder / name.replace(": ", "-"))
            rows.append({"setting": str(setting), "replaced": name, **at_start._asdict(), **found})
        console.print(f"{setting}: done", style="dim")
    frame = pd.DataFrame(rows)
    console.print(answer(frame), style="bold")
    console.print(result_table(frame))
    console.print(verdict(frame))
    chart = report.heatmap(
        frame.assign(**{"accuracy (%)": 100 * frame.accuracy, "text": [cell(r, ", ") for r in rows]}),
        row="setting",
        column="replaced",
        value="accuracy (%)",
        text="text",
        title="Which derivatives does back-propagation need?",
        subtitle="Test accuracy with one kind of factor replaced; angle to the true gradient at the start",
    )
    console.print(f"Picture: {report.write_picture(chart, workdir, 'which_derivative')}")
    files.write_figures(json_file, figures(frame))
    return report.conclude(console, checks(frame))


def experiment(
    setting: Setting, dataset: data.Dataset, width: int, steps: int, gradient: Callable[..., Any]
) -> sweep.Experiment:
    """Training a perceptron with a gradient function."""
    loss = losses.named(setting.loss)
    options = {"widths": (width,) * setting.depth, "activation": models.ACTIVATIONS[setting.activation]}
    return sweep.Experiment(
        dataset, models.mlp, loss, options, targets=partial(losses.targets, loss, dataset.classes),
        gradient=gradient, steps=steps, eval_every=steps,
    )  # fmt: skip


def model_of(experiment: sweep.Experiment, seed: int) -> nnx.Module:
    return experiment.build(experiment.model, experiment.model_options, nnx.Rngs(seed))


def trained(experiment: sweep.Experiment, axes: sweep.Axes, workdir: Path) -> dict[str, Any]:
    """Test accuracy at the learning rate that is best by validation; whether that is the range's last one."""
    results = sweep.run(experiment, axes, workdir, quiet=True)
    (best,) = statistics.best_settings(results).values()
    accuracy = statistics.mean_and_interval(best.test).mean
    return {"accuracy": accuracy, "at_end": bool(statistics.edges(results, best))}


def cell(row: dict[str, Any], between: str = "\n") -> str:
    """Accuracy and angle: `61 43°`; `none` where no gradient is left, `div.` if every run diverged.

    With a star where the best learning rate is an end of the range.
    """
    angle = "none" if row["length"] < 1e-6 else f"{row['angle']:.0f}°"
    star = "*" if row["at_end"] and row["length"] >= 1e-6 else ""
    accuracy = "div." if np.isnan(row["accuracy"]) else f"{100 * row['accuracy']:.0f}{star}"
    return f"{accuracy}{between}{angle}"


def factor_table(statistics: list[tuple[str, str, np.ndarray]]) -> Table:
    """The factors of the gradient of the first setting's network, layer by layer, before training."""
    columns = ("layer", "kind", "mean", "spread", "smallest", "largest")
    grid = report.grid("The factors of a gradient before training", columns, words=("layer", "kind"))
    for layer, kind, values in statistics:
        numbers = (values.mean(), values.std(), values.min(), values.max())
        grid.add_row(layer, kind, *(f"{number:.3f}" for number in numbers))
    return grid


def result_table(frame: pd.DataFrame) -> Table:
    """Accuracy in per cent, and under it the angle at the start."""
    names = [name.replace(": ", "\n").replace("activation", "act.") for name in dict.fromkeys(frame.replaced)]
    title = "Test accuracy (%) and angle at the start, by what is replaced"
    grid = report.grid(title, ["setting", *names], words=("setting",))
    grid.padding, grid.columns[0].max_width = (0, 0), 17
    grid.caption = "* at an end of the learning rates: a better one may lie beyond"
    for name, part in frame.groupby("setting", sort=False):
        grid.add_row(name, *(cell(r) for r in part.to_dict("records")))
    return grid


def answer(frame: pd.DataFrame) -> str:
    """The answer in words first, at a student's level, from the first setting's numbers."""
    score = {(r.setting, r.replaced): 100 * r.accuracy for r in frame.itertuples()}
    first = frame.setting[0]
    whole, of = (
        score[first, "nothing"],
        {kind: score[first, f"{kind}: ones"] for kind in ("activation", "loss", "weight")},
    )
    return (
        "Is the derivative in back-propagation that of the activation or that of the loss? Both. A weight's "
        "gradient is a product: the derivative of the loss, times the derivative of each activation on the "
        "way, times each weight on the way. Leave one kind out (put ones in its place) and the network "
        f"learns less: {whole:.0f} % of the test examples are right with the whole product, "
        f"{of['activation']:.0f} % without the activation's derivative, {of['loss']:.0f} % without the "
        f"loss's, {of['weight']:.0f} % without the weights; guessing gets 10 %."
    )


def verdict(frame: pd.DataFrame) -> str:
    """Where a replacement did least, and what fixed random weights do."""
    score = {(r.setting, r.replaced): 100 * r.accuracy for r in frame.itertuples()}
    first = frame.setting[0]
    bent = [s for s in dict.fromkeys(frame.setting) if not s.startswith(("identity", "linear"))]
    tried = [(s, how) for s in bent for how in ("activation: ones", "activation: mean")]
    least, how = min(tried, key=lambda place: score[place[0], "nothing"] - score[place])
    whole, without = score[least, "nothing"], score[least, how]
    angle = float(frame[(frame.setting == least) & (frame.replaced == how)].angle.iloc[0])
    return (
        f"The activation's derivative is missed least with {least} ({how}: {whole:.0f} to {without:.0f} %, "
        f"{angle:.0f}° at the start), and not at all where it is one (identity) or nothing lies downstream "
        f"(linear). Fixed random weights reach {score[first, 'weight: random']:.0f} %: the weights align "
        "with them."
    )


def figures(frame: pd.DataFrame) -> dict[str, float]:
    flat: dict[str, float] = {}
    for r in frame.itertuples():
        name = f"{r.setting}.{r.replaced}".replace(", ", "-").replace(": ", "-").replace(" ", "_")
        flat |= {f"{name}.accuracy": r.accuracy, f"{name}.length": r.length, f"{name}.angle": r.angle}
    return flat


def checks(frame: pd.DataFrame) -> list[report.Check]:
    """What the chain rule says of the replacements without training."""
    at = {(r.setting, r.replaced): r for r in frame.itertuples()}
    linear, identity, first = (str(setting) for setting in (LINEAR, IDENTITY, PLAIN))
    return [
        report.Check("linear model, weights: angle", at[linear, "weight: ones"].angle, 0, 0),
        report.Check("linear model, activations: angle", at[linear, "activation: ones"].angle, 0, 0),
        report.Check("identity, activations: angle", at[identity, "activation: ones"].angle, 0, 0),
        report.Check("cross-entropy, mean of the loss': length", at[first, "loss: mean"].length, 0, 1e-5),
        report.Check("chance, without the loss'", at[first, "loss: mean"].accuracy, 0.1, 0.05),
    ]


if __name__ == "__main__":
    shared.run(main)
