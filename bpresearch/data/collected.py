"""Data sets that scikit-learn carries: handwritten digits and the progress of diabetes."""

import numpy as np
from sklearn import datasets

from bpresearch.data.dataset import Dataset, dataset


def digits() -> Dataset:
    """Handwritten digits of 8 x 8 pixels: 1,437 for training, 360 for test (Alpaydin and Kaynak 1998)."""
    found = datasets.load_digits()
    train, test = split(len(found.target), 360)
    x = found.images[..., None]
    text = "handwritten digits, 8 x 8 pixels (Alpaydin and Kaynak 1998): 1,437 for training and 360 for test"
    return dataset("digits", x[train], found.target[train], x[test], found.target[test], text, classes=10)


def diabetes() -> Dataset:
    """Progress of diabetes after a year, from ten measurements: 353 for training, 89 for test.

    (Efron, Hastie, Johnstone and Tibshirani 2004.)
    """
    found = datasets.load_diabetes(scaled=False)
    x, y = found.data.astype(np.float64), found.target.astype(np.float64)
    train, test = split(len(y), 89)
    text = "progress of diabetes from ten measurements (Efron et al. 2004): 353 for training and 89 for test"
    return dataset("diabetes", x[train], y[train], x[test], y[test], text)


def split(count: int, test: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and the test part: a permutation with a fixed seed, the test part last."""
    order = np.random.default_rng(0).permutation(count)
    return order[:-test], order[-test:]
