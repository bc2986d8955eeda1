"""Does a network that is wider than it must be to learn wrong labels by heart predict better again?

The notebook on deep double descent of MNIST-1D's authors (Greydanus and Kobak 2024; notebooks/
deep-double-descent.ipynb at commit 9129ceb of github.com/greydanus/mnist1d) trains networks with two hidden
layers of equal width (its comment says one) on 4,000 signals and tests them on 12,000: PyTorch's initial
weights, cross-entropy, SGD at 0.01 with momentum 0.9, batches of 100, 500 epochs. Of the training labels
none, or 15 %, are drawn anew from all ten classes. It trains each width once. Here each is trained with
several seeds, which differ in initial weights, batches and wrong labels; checked is whether the notebook's
numbers could be one more seed's, and whether the error falls after its peak, seed by seed.
"""

from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx
from rich.table import Table

from bpresearch import command, data, models, optim, report, statistics, sweep
from bpresearch.command import Flag, listed
from bpresearch.optim import schedules
from bpresearch.theory import taught

TRAINING, TEST, BATCH, NOISE = 4000, 12_000, 100, 0.15
KINDS = {"no label noise": 0.0, "15 % label noise": NOISE}
PUBLISHED = {
    "no label noise": {
        5: (57.23, 61.37), 9: (41.28, 49.33), 16: (28.80, 44.55), 27: (12.05, 41.02), 36: (1.35, 41.66),
        47: (0.0, 41.01), 61: (0.0, 41.24), 104: (0.0, 38.61), 177: (0.0, 38.09), 300: (0.0, 37.25),
    },
    "15 % label noise": {
        5: (57.95, 57.45), 9: (47.45, 48.97), 16: (39.70, 47.24), 27: (29.55, 50.69), 36: (19.02, 52.80),
        47: (5.47, 54.05), 61: (0.0, 54.02), 104: (0.0, 50.23), 177: (0.0, 47.88), 300: (0.0, 45.47),
    },
}  # fmt: skip
"""The notebook's errors in per cent, training and test, by width: one run each."""
COMPARED = {"no label noise": (36, 300), "15 % label noise": (16, 47, 300)}
"""Widths at which the notebook's test error is compared: before the peak, at it, and the widest."""
FALLS = (("no label noise", 36, 300), ("15 % label noise", 47, 16), ("15 % label noise", 47, 300))
"""Of which widths the first has the larger test error than the second."""


def page(
    *,
    width: Annotated[tuple[int, ...], Flag("widths of both hidden layers", low=1)] = listed(
        "5,9,16,27,36,47,61,104,177,300", int
    ),
    seed: Annotated[
        tuple[int, ...],
        Flag("seeds", low=0, high=2**32, least=2, why="for an interval"),
    ] = listed("0:5", int),
    epochs: Annotated[
        int, Flag("times that a training meets its examples; 500 in the notebook", low=1)
    ] = 500,
    quick: bool = False,
    workdir: Path,
) -> report.Finding:
    """Errors by width, of each kind of labels, beside the notebook's."""
    widths, seeds = sorted(width), list(seed)
    if quick:
        widths, seeds, epochs = widths[2::3], seeds[:2], min(epochs, 20)
    parts = signals()
    errors = pd.concat(
        trained(parts, kind, width, seeds, epochs, workdir) for kind in KINDS for width in widths
    )
    sentences = [
        f"With {kind} the test error {course(own.groupby('width').test.mean())}."
        for kind, own in errors.groupby("kind", sort=False)
    ]
    checks = [labels_drawn(errors)]
    if epochs < 500:
        sentences.append("The notebook's numbers are compared where there are 500 epochs.")
    else:
        checks += [*compared(errors), *falls(errors)]
    pictures = {"double_descent": picture(errors)}
    return report.Finding("\n".join(sentences), checks, means(errors), [table(errors)], pictures)


def means(errors: pd.DataFrame) -> dict[str, float]:
    """Mean errors by labels and width, with the half width of the test's interval."""
    figures: dict[str, float] = {}
    for (kind, width), group in errors.groupby(["kind", "width"], sort=False):
        key = f"{'noise' if KINDS[kind] else 'clean'}.{width}"
        interval = statistics.mean_and_interval(group.test.to_numpy())
        figures |= {f"{key}.test_error": interval.mean, f"{key}.half_width": interval.half_width}
        figures |= {f"{key}.train_error": float(group.train.mean())}
    return figures


def signals() -> dict[str, dict[str, np.ndarray]]:
    """The notebook's signals, not standardised, with their numbers: the test part's come after."""
    made = data.published_mnist1d(TRAINING, TEST)
    numbers = np.arange(TRAINING + TEST, dtype=np.int32)
    return {
        part: {"signal": x.astype(np.float32), "label": y.astype(np.int32), "example": number}
        for part, x, y, number in (
            ("train", made["x"], made["y"], numbers[:TRAINING]),
            ("test", made["x_test"], made["y_test"], numbers[TRAINING:]),
        )
    }


def trained(
    parts: dict[str, dict[str, np.ndarray]], kind: str, width: int, seeds: list[int], epochs: int, workdir
) -> pd.DataFrame:
    """Errors of the last weights in per cent, training and test, and the part of wrong labels, by seed."""
    labels = jnp.asarray(np.concatenate([part["label"] for part in parts.values()]))

    def network(*, rngs: nnx.Rngs, width: int, noise: float) -> taught.Taught:
        shape = parts["train"]["signal"].shape[1:]
        layers = models.mlp(shape, 10, widths=(width, width), initialization="torch", rngs=rngs)
        return taught.Taught(layers, labels, TRAINING, noise, 10, rngs)

    steps = epochs * TRAINING // BATCH
    experiment = sweep.Experiment(
        parts, network, taught.loss, {"width": width, "noise": KINDS[kind]}, name="mnist1d",
        steps=steps, eval_every=steps, validation=0.0,
    )  # fmt: skip
    axes = sweep.grid(
        optimizer=optim.momentum, schedule=schedules.constant, lr=0.01, momentum=0.9, batch_size=BATCH,
        seed=seeds,
    )  # fmt: skip
    folder = workdir / f"{'noise' if KINDS[kind] else 'clean'}-{width}"
    last = sweep.run(experiment, axes, folder, quiet=True).isel(eval_step=-1)
    return pd.DataFrame({
        "kind": kind, "width": width, "seed": last.seed.values, "train": 100 * last.train_eval_error.values,
        "test": 100 * last.test_error.values, "wrong": 100 * last.train_eval_wrong.values,
    })  # fmt: skip


def table(errors: pd.DataFrame) -> Table:
    columns = ("labels", "width", "training", "test", "notebook's test")
    grid = report.grid(
        "Errors (%): means over seeds, of the test's with a 95 % interval", columns, words=columns[:1]
    )
    for (kind, width), own in errors.groupby(["kind", "width"], sort=False):
        interval = statistics.mean_and_interval(own.test.to_numpy())
        published = PUBLISHED[kind].get(int(width))
        grid.add_row(
            kind, str(width), f"{own.train.mean():.1f}", f"{interval.mean:.1f} ± {interval.half_width:.1f}",
            "" if published is None else f"{published[1]:.1f}",
        )  # fmt: skip
    return grid


def course(means: pd.Series) -> str:
    """Where the mean error, by width, falls, rises and falls again, in words."""

    def at(place: int) -> str:
        return f"{means.iloc[place]:.1f} % (width {means.index[place]})"

    rises = np.flatnonzero(np.diff(means) > 0)
    if not len(rises):
        return f"falls with every width, from {at(0)} to {at(-1)}"
    lowest = int(rises[0])
    peak = lowest + int(np.argmax(means.iloc[lowest:]))
    return f"falls from {at(0)} to {at(lowest)}, rises to {at(peak)} and ends at {at(-1)}"


def labels_drawn(errors: pd.DataFrame) -> report.Check:
    """Of the labels drawn anew a tenth is right by chance; within four standard deviations."""
    part = NOISE * 9 / 10
    own = errors[errors.kind == "15 % label noise"]
    deviation = 100 * np.sqrt(part * (1 - part) / (TRAINING * own.seed.nunique()))
    return report.Check("wrong labels (%)", float(own.wrong.mean()), 100 * part, 4 * deviation)


def tests_at(errors: pd.DataFrame, kind: str, width: int) -> np.ndarray:
    """Test errors at a width, one for each seed; none if it was not trained."""
    return errors[(errors.kind == kind) & (errors.width == width)].test.to_numpy()


def compared(errors: pd.DataFrame) -> list[report.Check]:
    """The notebook's single runs against what one more seed would give: all are in it in 95 of 100 cases."""
    places = [(kind, width) for kind, widths in COMPARED.items() for width in widths]
    comparisons = []
    for kind, width in places:
        runs = tests_at(errors, kind, width)
        if len(runs):
            more = statistics.prediction(runs, 1 - 0.05 / len(places))
            published = PUBLISHED[kind][width][1]
            comparisons.append(
                report.Check(f"{kind}, width {width}: notebook's", more.mean, published, more.half_width)
            )
    return comparisons


def falls(errors: pd.DataFrame) -> list[report.Check]:
    """By how much the error is lower away from the peak, in points: the whole 95 % interval over seeds."""
    comparisons = []
    for kind, peak, other in FALLS:
        high, low = tests_at(errors, kind, peak), tests_at(errors, kind, other)
        if len(high) and len(low):
            _, most = statistics.paired_difference(low, high).bounds
            comparisons.append(report.Check.below(f"{kind}: error at {other} less that at {peak}", most, 0))
    return comparisons


def picture(errors: pd.DataFrame):
    titles = {"test": "test error", "train": "training error, on the labels taught"}
    rows, points = [], []
    for (kind, width), group in errors.groupby(["kind", "width"], sort=False):
        for number, (part, panel) in enumerate(reversed(titles.items())):
            interval = statistics.mean_and_interval(group[part].to_numpy())
            place = {"labels": kind, "width": float(width), "panel": panel}
            low, high = interval.bounds
            rows.append(place | {"error": interval.mean, "low": low, "high": high})
            if int(width) in PUBLISHED[kind]:
                points.append(place | {"error": PUBLISHED[kind][int(width)][number]})
    return report.lines(
        pd.DataFrame(rows),
        x=report.axis("width", "width of both hidden layers", log=True),
        y=report.axis("error", "error (%)", domain=[0, 75], clamp=True),
        line="labels",
        panel="panel",
        points=pd.DataFrame(points),
        title="Does a network wide enough to learn wrong labels by heart predict better again?",
        subtitle="MNIST-1D; bands: 95 % intervals over seeds; circles: single runs of the published notebook",
    )


if __name__ == "__main__":
    command.run_page(page)
