"""Data sets that scikit-learn carries: digits, wine and breast cancer to classify, diabetes to predict."""

from types import ModuleType

import numpy as np
from jaxtyping import Int

from bpresearch.data.dataset import Dataset, dataset
from bpresearch.imports import extra


def digits(*, standardize: str = "features") -> Dataset:
    """Handwritten digits of 8 x 8 pixels: 1,437 for training, 360 for test (Alpaydin and Kaynak 1998).

    >>> digits = bp.data.digits()
    >>> digits.x.shape, digits.x_test.shape, digits.classes
    ((1437, 8, 8, 1), (360, 8, 8, 1), 10)
    """
    source = _scikit_learn("digits").load_digits()
    text = "handwritten digits, 8 x 8 pixels (Alpaydin and Kaynak 1998)"
    return _divided("digits", (source.images[..., None], source.target), 360, text, 10, standardize)


def wine(*, standardize: str = "features") -> Dataset:
    """Three cultivars told by 13 measurements of their wine: 142 for training, 36 for test.

    (Aeberhard and Forina 1991.)

    >>> bp.data.wine().x.shape
    (142, 13)
    """
    source = _scikit_learn("wine").load_wine()
    text = "three cultivars by 13 measurements of their wine (Aeberhard and Forina 1991)"
    return _divided("wine", (source.data, source.target), 36, text, 3, standardize)


def breast_cancer(*, standardize: str = "features") -> Dataset:
    """Malignant (0) or benign (1) by 30 measurements of cell nuclei: 455 for training, 114 for test.

    (Wolberg, Mangasarian, Street and Street 1993.)

    >>> bp.data.breast_cancer().x.shape
    (455, 30)
    """
    source = _scikit_learn("breast_cancer").load_breast_cancer()
    text = "malignant or benign by 30 measurements of cell nuclei (Wolberg et al. 1993)"
    return _divided("breast_cancer", (source.data, source.target), 114, text, 2, standardize)


def diabetes(*, standardize: str = "features") -> Dataset:
    """Progress of diabetes after a year, from ten measurements: 353 for training, 89 for test.

    (Efron, Hastie, Johnstone and Tibshirani 2004.)

    >>> bp.data.diabetes().y.shape
    (353, 1)
    """
    source = _scikit_learn("diabetes").load_diabetes(scaled=False)
    text = "progress of diabetes from ten measurements (Efron et al. 2004)"
    x, y = source.data.astype(np.float64), source.target.astype(np.float64)
    return _divided("diabetes", (x, y), 89, text, None, standardize)


def _scikit_learn(name: str) -> ModuleType:
    module: ModuleType = extra("sklearn.datasets", f"--dataset={name}")
    return module


def _divided(
    name: str,
    examples: tuple[np.ndarray, np.ndarray],
    test: int,
    text: str,
    classes: int | None,
    standardize: str,
) -> Dataset:
    x, y = examples
    first, last = split(len(y), test)
    text += f": {len(first):,} for training and {len(last):,} for test"
    return dataset(name, x[first], y[first], x[last], y[last], text, classes, standardize)


def split(count: int, test: int) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """Indices of the training and the test part: a permutation with a fixed seed, the test part last."""
    order = np.random.default_rng(0).permutation(count)
    return order[:-test], order[-test:]
