"""Data sets that are computed, not stored: MNIST-1D and spirals."""

import functools
import random

import numpy as np
from jaxtyping import Float, Int

from bpresearch.data.dataset import Dataset, dataset
from bpresearch.imports import extra


@functools.cache
def published_mnist1d(training: int = 4000, test: int = 1000) -> dict[str, np.ndarray]:
    """MNIST-1D as its authors publish it (Greydanus and Kobak 2024), in float64.

    Signals of 40 points in ten classes: templates of the digits, padded, scaled, shifted, sheared and with
    noise. The authors' package generates them with a fixed seed and gives, of this many, what is in their
    published file to rounding. Of other numbers it generates other signals of the same kind.

    Args:
        training, test: numbers of signals.

    Returns:
        `x` (training, 40), `y` (training,), `x_test` (test, 40), `y_test` (test,).

    >>> made = bp.data.published_mnist1d()
    >>> made["x"].shape, made["x_test"].shape
    ((4000, 40), (1000, 40))
    """
    package = extra("mnist1d.data", "--dataset=mnist1d")  # slow: it brings plotting along
    arguments = package.get_dataset_args()
    arguments.num_samples, arguments.train_split = training + test, training / (training + test)
    before = np.random.get_state(), random.getstate()  # the generator seeds both
    try:
        made = package.make_dataset(arguments)
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])
    return {name: made[name] for name in ("x", "y", "x_test", "y_test")}


def mnist1d(*, standardize: str = "features") -> Dataset:
    """MNIST-1D with its published split, as signals with one channel.

    >>> bp.data.mnist1d().input_shape
    (40, 1)
    """
    made = published_mnist1d()
    return dataset(
        "mnist1d",
        made["x"][..., None],
        made["y"],
        made["x_test"][..., None],
        made["y_test"],
        "MNIST-1D (Greydanus and Kobak 2024): signals of 40 points, 4,000 for training and 1,000 for test",
        classes=10,
        standardize=standardize,
    )


def spirals(*, standardize: str = "features") -> Dataset:
    """Two interleaved spirals with noise (after Lang and Witbrock 1988): 1,000 points each part.

    >>> bp.data.spirals().x.std(axis=0).round(3).tolist()  # standardised
    [1.0, 1.0]
    """
    (x, y), (x_test, y_test) = (_spirals(np.random.default_rng(seed), 1000) for seed in (0, 1))
    text = (
        "two interleaved spirals with noise (Lang and Witbrock 1988): 1,000 points for training and for test"
    )
    return dataset("spirals", x, y, x_test, y_test, text, classes=2, standardize=standardize)


def _spirals(
    generator: np.random.Generator, count: int
) -> tuple[Float[np.ndarray, "count 2"], Int[np.ndarray, " count"]]:
    """Points r (cos a, sin a) with a = 3 pi r + pi label, r in [0.1, 1], and noise N(0, 0.03^2)."""
    label = np.arange(count) % 2
    r = np.sqrt(generator.uniform(0.01, 1, count))  # evenly along the curve, roughly
    angle = 3 * np.pi * r + np.pi * label
    points = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)
    return points + generator.normal(0, 0.03, (count, 2)), label
