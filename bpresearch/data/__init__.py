"""Data sets as arrays: generated, carried by scikit-learn, or read from files that the user has."""

from bpresearch.data.collected import diabetes, digits
from bpresearch.data.dataset import Dataset, dataset, reconstruction
from bpresearch.data.files import idx, npz, read_idx
from bpresearch.data.generated import mnist1d, published_mnist1d, spirals
from bpresearch.data.text import text

_WITHOUT_FILES = {f.__name__: f for f in (mnist1d, digits, diabetes, spirals, text)}
_FROM_FILES = {f.__name__: f for f in (idx, npz)}
NAMES = (*_WITHOUT_FILES, *_FROM_FILES)
"""The names that `load` takes."""


def load(name: str, data_dir: str | None = None) -> Dataset:
    """The data set of a name.

    Args:
        name: one of `NAMES`.
        data_dir: `idx`: the folder with the files; `npz`: the file.

    Raises:
        ValueError: there is no such data set, it takes no `data_dir`, or its files are not right.
    """
    if name in _FROM_FILES:
        return _FROM_FILES[name](data_dir)
    if name not in _WITHOUT_FILES:
        raise ValueError(f"--dataset={name} is not one of {', '.join(NAMES)}")
    if data_dir is not None:
        raise ValueError(f"--data_dir={data_dir}: --dataset={name} takes none; idx and npz do")
    return _WITHOUT_FILES[name]()


__all__ = [
    "NAMES",
    "Dataset",
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
]
