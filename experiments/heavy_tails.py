"""Why is Adam so much faster where classes are as unequal as words?

A linear softmax classifier whose classes have the frequencies 1 / k (Zipf), one orthogonal input for each
class (a setting of Kunstner et al. 2024). Gradient descent's loss of a class is a function of frequency times
time, so that the rarest class takes as many times longer as it is rarer; sign descent learns every class at
one exponential rate, and Adam, too, learns all classes alike. Checked: the losses of each class in training
against the closed forms of continuous time, the times to a loss against the frequencies, and Adam's rate of
each class against the others'.
"""

from typing import Annotated

import numpy as np
import optax
import pandas as pd

from bpresearch import command, report
from bpresearch.command import Flag
from bpresearch.theory import descent, heavy_tails

RECORDS = 600
METHODS = {
    "gradient descent": (optax.sgd, 0.5),
    "sign descent": (optax.sign_sgd, 0.01),
    "Adam": (optax.adam, 0.01),
}


def page(
    *,
    classes: Annotated[int, Flag("number of classes", low=3)] = 100,
    steps: Annotated[
        int, Flag("updates of gradient descent; of the other two a fortieth", low=RECORDS)
    ] = 24_000,
    target: Annotated[float, Flag("the loss of a class at which it counts as learned")] = 0.1,
    quick: bool = False,
) -> report.Finding:
    """The loss of each class in training, by three methods, beside the closed forms of continuous time."""
    if not 0 < target < np.log(classes):
        raise ValueError(
            f"target={target:g}: takes a loss between 0 and log(classes) = {np.log(classes):.3g}"
        )
    if quick:
        classes, steps = min(classes, 30), min(steps, 6000)
    frequency = heavy_tails.frequencies(classes)
    times, losses = trainings(frequency, steps // RECORDS * RECORDS)
    closed = {
        "gradient descent": heavy_tails.by_gradient_descent(
            frequency, times["gradient descent"][:, None], classes
        ),
        "sign descent": heavy_tails.by_sign_descent(times["sign descent"][:, None] + 0 * frequency, classes),
    }
    learned = {name: descent.time_to(target, losses[name], times[name]) for name in METHODS}

    shown = sorted({0, classes // 10, classes - 1})
    columns = ("class", "frequency", *METHODS)
    grid = report.grid(f"Time (steps times learning rate) until a class's loss is {target:g}", columns)
    for k in shown:
        grid.add_row(str(k + 1), f"{frequency[k]:.3g}", *(f"{learned[name][k]:.4g}" for name in METHODS))
    longer = {name: times[-1] / times[0] for name, times in learned.items()}
    verdict = (
        f"The rarest class is {classes} times as rare as the most frequent one: gradient descent takes "
        f"{longer['gradient descent']:.1f} times as long for it, Adam {longer['Adam']:.2f} times."
    )
    figures = {f"{name.replace(' ', '_')}.{k + 1}.time": learned[name][k] for name in METHODS for k in shown}
    figures |= {f"{name.replace(' ', '_')}.rarest_over_first": ratio for name, ratio in longer.items()}
    pictures = {"heavy_tails": picture(times, losses, closed, shown)}
    return report.Finding(
        verdict, checks(frequency, times, losses, closed, learned), figures, [grid], pictures
    )


def trainings(frequency: np.ndarray, steps: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The times and the losses of every class, recorded as often with each method."""
    times, losses = {}, {}
    for name, (method, rate) in METHODS.items():
        count = steps if name == "gradient descent" else max(steps // 40, RECORDS)
        every = count // RECORDS
        losses[name] = heavy_tails.trained(frequency, method(rate), every * RECORDS, every)
        times[name] = np.arange(RECORDS + 1) * every * rate
    return times, losses


def checks(
    frequency: np.ndarray,
    times: dict[str, np.ndarray],
    losses: dict[str, np.ndarray],
    closed: dict[str, np.ndarray],
    learned: dict[str, np.ndarray],
) -> list[report.Check]:
    """Against continuous time, the frequencies, and one rate for all classes."""
    comparisons = [
        report.Check(
            f"{name}: worst loss over closed form, off 1 by", np.abs(losses[name] / form - 1).max(), 0, 0.03
        )
        for name, form in closed.items()
    ]
    slowed = learned["gradient descent"] * frequency
    late = losses["Adam"][RECORDS // 2] / losses["Adam"][-1]
    rates = np.log(late) / (times["Adam"][-1] - times["Adam"][RECORDS // 2])
    return [
        *comparisons,
        report.Check("gradient descent: time x frequency, rarest / first", slowed[-1] / slowed[0], 1, 0.03),
        report.Check("Adam: time, rarest / first", learned["Adam"][-1] / learned["Adam"][0], 1, 0.03),
        report.Check("Adam: rate of the loss, rarest / first", rates[-1] / rates[0], 1, 0.03),
    ]


def picture(
    times: dict[str, np.ndarray],
    losses: dict[str, np.ndarray],
    closed: dict[str, np.ndarray],
    shown: list[int],
):
    def rows(of: dict[str, np.ndarray], every: int) -> pd.DataFrame:
        return pd.DataFrame(
            {"method": name, "class": f"class {k + 1}", "part": time / times[name][-1], "loss": loss}
            for name, values in of.items()
            for k in shown
            for time, loss in zip(times[name][::every], values[::every, k], strict=True)
        )

    return report.lines(
        rows(losses, 5),
        x=report.axis("part", "part of the training"),
        y=report.axis("loss", "loss of the class", log=True, domain=[1e-3, 10], clamp=True),
        line="class",
        panel="method",
        points=rows(closed, 100),
        title="How long does a rare class take?",
        subtitle="Classes of frequency 1 / k; lines: trained, circles: closed forms of continuous time",
    )


if __name__ == "__main__":
    command.run_page(page)
