"""Data sets as arrays: generated, carried by scikit-learn, or read from files that the user has."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path

from bpresearch.data.collected import breast_cancer, diabetes, digits, wine
from bpresearch.data.dataset import STANDARDIZATIONS, Dataset, dataset, reconstruction
from bpresearch.data.files import idx, npz, read_idx
from bpresearch.data.generated import mnist1d, published_mnist1d, spirals
from bpresearch.data.text import text

_WITHOUT_FILES: dict[str, Callable[..., Dataset]] = {
    f.__name__: f for f in (mnist1d, digits, wine, breast_cancer, diabetes, spirals, text)
}
_FROM_FILES: dict[str, Callable[..., Dataset]] = {f.__name__: f for f in (idx, npz)}
NAMES = (*_WITHOUT_FILES, *_FROM_FILES)
"""The names that `load` takes."""


def load(name: str, data_dir: str | Path | None = None, standardize: str = "features") -> Dataset:
    """The data set of a name.

    Args:
        name: one of `NAMES`.
        data_dir: `idx`: the folder with the files; `npz`: the file.
        standardize: "features" or "none", see `dataset`; what consists of tokens has nothing to standardise.

    Raises:
        ValueError: there is no such data set or standardisation, it takes no `data_dir`, its files are not
            right, or the package that carries it is not installed.

    >>> data = bp.data.load("spirals")
    >>> data.x.shape, data.classes
    ((1000, 2), 2)
    """
    if standardize not in STANDARDIZATIONS:
        raise ValueError(f"--standardize={standardize} is not one of {', '.join(STANDARDIZATIONS)}")
    if name in _FROM_FILES:
        return _FROM_FILES[name](data_dir, standardize=standardize)
    if name not in _WITHOUT_FILES:
        raise ValueError(f"--dataset={name} is not one of {', '.join(NAMES)}")
    if data_dir is not None:
        raise ValueError(f"--data_dir={data_dir}: --dataset={name} takes none; idx and npz do")
    function = _WITHOUT_FILES[name]
    if "standardize" in inspect.signature(function).parameters:
        function = functools.partial(function, standardize=standardize)
    return function()


__all__ = [
    "NAMES",
    "STANDARDIZATIONS",
    "Dataset",
    "breast_cancer",
    "dataset",
    "diabetes",
    "digits",
    "idx",
    "load",
    "mnist1d",
    "npz",
    "published_mnist1d",
    "read_idx",
    "reconstruction",
    "spirals",
    "text",
    "wine",
]
