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

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
from flax import nnx
from rich.table import Table

from bpresearch import chainrule, command, data, losses, models, optim, report, statistics, sweep, theory
from bpresearch.command import Flag, listed
from bpresearch.theory import ablation


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


def page(
    *,
    width: Annotated[int, Flag("width of the hidden layers", low=1)] = 50,
    steps: Annotated[int, Flag("updates of each run", low=1)] = 400,
    lr: Annotated[
        tuple[float, ...], Flag("learning rates, of which each gradient takes its best", low=0)
    ] = listed("logspace:0.01:100:9"),
    seed: Annotated[tuple[int, ...], Flag("seeds", low=0, high=2**32)] = listed("0:3", int),
    quick: bool = False,
    workdir: Path,
) -> report.Finding:
    """Each kind of factor replaced in each setting: the angle at the start, the accuracy after training."""
    settings, rates, seeds = SETTINGS, list(lr), list(seed)
    if quick:
        settings, steps, rates, seeds = [PLAIN, IDENTITY, LINEAR], min(steps, 100), rates[1::3], seeds[:1]
    dataset = data.load("mnist1d")
    axes = sweep.grid(
        optimizer=optim.sgd, schedule=optim.schedules.constant, lr=rates, batch_size=100, seed=seeds
    )
    tasks = {setting: partial(experiment, setting, dataset, width, steps) for setting in settings}
    plain = tasks[PLAIN](chainrule.gradient)
    factors = theory.factor_statistics(model_of(plain, seeds[0]), *batch_of(plain))
    rows: list[dict[str, Any]] = []
    for setting, task in tasks.items():
        folder = workdir / str(setting).replace(", ", "-")
        rows += [{"setting": str(setting), **row} for row in replacements(task, axes, seeds, folder)]
        print(f"{setting}: done", file=sys.stderr)
    frame = pd.DataFrame(rows)
    return report.Finding(
        verdict(frame),
        checks(frame),
        figures(frame),
        [f"[bold]{answer(frame)}[/]", factor_table(factors), result_table(frame)],
        {"which_derivative": picture(frame)},
    )


def replacements(
    task: Callable[..., sweep.Experiment], axes: sweep.Axes, seeds: list[int], workdir: Path
) -> list[dict[str, Any]]:
    """A row for the gradient itself and one for each replacement, in one setting."""
    true = task(chainrule.gradient)
    networks = [model_of(true, seed) for seed in seeds]
    whole = trained(true, axes, workdir / "nothing")
    rows = [{"replaced": "nothing", "angle": 0.0, "length": 1.0, **whole}]
    for name, at_start in ablation.deviations(networks, *batch_of(true), ablation.REPLACEMENTS).items():
        ended = whole
        if at_start != (0, 1):  # otherwise it is the same gradient, and so the same training
            ended = trained(task(ablation.REPLACEMENTS[name]), axes, workdir / name.replace(": ", "-"))
        rows.append({"replaced": name, **at_start._asdict(), **ended})
    return rows


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


def batch_of(experiment: sweep.Experiment) -> tuple[Any, Any, Any]:
    """The loss, and the first examples of the training part."""
    x, y = experiment.examples()["train"]
    return experiment.loss, x[:500], y[:500]


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


def picture(frame: pd.DataFrame):
    rows = frame.to_dict("records")
    return report.heatmap(
        frame.assign(**{"accuracy (%)": 100 * frame.accuracy, "text": [cell(row, ", ") for row in rows]}),
        row="setting",
        column="replaced",
        value="accuracy (%)",
        text="text",
        title="Which derivatives does back-propagation need?",
        subtitle="Test accuracy with one kind of factor replaced; angle to the true gradient at the start",
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
    command.run_page(page)
