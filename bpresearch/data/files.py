"""Data sets from files that the user has: IDX, as MNIST comes, and NumPy's npz."""

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from bpresearch.data.collected import split
from bpresearch.data.dataset import Dataset, dataset

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")


def idx(data_dir: str | None) -> Dataset:
    """MNIST, Fashion-MNIST or another data set in MNIST's four files, with the split that they make.

    Args:
        data_dir: folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k, as
            they are or compressed with gzip (.gz).

    Raises:
        ValueError: a file is missing, damaged, or does not fit the others; the message names it.
    """
    folder = _existing("idx", data_dir)
    if not folder.is_dir():
        raise ValueError(
            f"--data_dir={data_dir}: --dataset=idx takes a folder, with {PARTS[0]}-idx3-ubyte.gz"
        )
    images, labels, test_images, test_labels = (_read_part(folder, part) for part in PARTS)
    for part, x, y in (("train", images, labels), ("t10k", test_images, test_labels)):
        if len(x) != len(y):
            raise ValueError(f"{folder}: {len(x)} {part} images and {len(y)} {part} labels: must be equal")
    _check_shapes(folder, images, test_images)
    classes = int(max(labels.max(initial=0), test_labels.max(initial=0))) + 1
    text = f"{folder.name}: {len(images):,} images for training and {len(test_images):,} for test"
    x, x_test = images[..., None], test_images[..., None]
    return dataset(f"idx:{folder.name}", x, labels, x_test, test_labels, text, classes=classes)


def _existing(name: str, data_dir: str | None) -> Path:
    if not data_dir:
        raise ValueError(f"--dataset={name} needs --data_dir: where the files are")
    path = Path(data_dir).expanduser()
    if not path.exists():
        raise ValueError(f"--data_dir={data_dir}: there is no such file or folder")
    return path


def _read_part(folder: Path, part: str) -> Shaped[np.ndarray, "..."]:
    dimensions = 3 if part.endswith("images") else 1
    names = [f"{part}{dot}idx{dimensions}-ubyte{gz}" for dot in "-." for gz in (".gz", "")]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise ValueError(f"--data_dir={folder}: holds neither {names[0]} nor {names[1]}")
    array = read_idx(found[0])
    if array.ndim != dimensions:
        raise ValueError(f"{found[0]}: holds an array of {array.ndim} dimensions, not {dimensions}")
    if dimensions == 1 and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{found[0]}: holds labels of type {array.dtype}: must be integers")
    return array


def read_idx(path: Path) -> Shaped[np.ndarray, "..."]:
    """The array in an IDX file, compressed with gzip or not.

    The format (LeCun, Cortes and Burges 1998): two zero bytes, a byte for the type, a byte for the number
    of dimensions, each dimension as a big-endian 32-bit integer, then the elements, big-endian.

    Raises:
        ValueError: the file cannot be read or is not whole; the message names it.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged or not readable ({error})") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in TYPES or not content[3]:
        raise ValueError(f"{path}: is not an IDX file, which begins with two zeros, a type and dimensions")
    dimensions, dtype = content[3], np.dtype(TYPES[content[2]])
    begin = 4 + 4 * dimensions
    if len(content) < begin:
        raise ValueError(f"{path}: ends within its header")
    shape = struct.unpack(f">{dimensions}I", content[4:begin])
    expected = begin + dtype.itemsize * int(np.prod(shape, dtype=object))
    if len(content) != expected:
        state = "ends early" if len(content) < expected else "goes on after its end"
        raise ValueError(f"{path}: {state}: {len(content)} bytes for shape {shape}, which takes {expected}")
    return np.frombuffer(content, dtype, offset=begin).reshape(shape).astype(dtype.newbyteorder("="))


def npz(data_dir: str | None) -> Dataset:
    """Arrays in a file of `numpy.savez`: x_train, y_train, x_test and y_test, or x and y.

    With x and y alone, a fifth of the examples, drawn with a fixed seed, is the test part. Integer y are
    classes; floating y, (examples,) or (examples, targets), are numbers. Examples of two axes are feature
    vectors; images (examples, height, width) of integers get a channel axis; other examples of three axes
    are signals with channels, and of four axes images with channels.

    Args:
        data_dir: the file, or a folder with one .npz file.

    Raises:
        ValueError: the file is missing or damaged, or its arrays are not as above; the message names it.
    """
    path = _existing("npz", data_dir)
    if path.is_dir():
        found = sorted(path.glob("*.npz"))
        if len(found) != 1:
            raise ValueError(f"--data_dir={data_dir}: holds {len(found)} .npz files: name the file itself")
        path = found[0]
    arrays = _read_npz(path)
    names: tuple[str, ...]
    if "x_train" in arrays:
        names = ("x_train", "y_train", "x_test", "y_test")
    else:
        names = ("x", "y", *(name for name in ("x_test", "y_test") if name in arrays))
    if missing := [name for name in names if name not in arrays] or (["y_test"] if len(names) == 3 else []):
        raise ValueError(f"{path}: lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}")
    parts = [arrays[name] for name in names]
    for name, array in zip(names, parts, strict=True):
        _check(path, name, array)
    for (x_name, x), (y_name, y) in zip(
        *(zip(names[i::2], parts[i::2], strict=True) for i in (0, 1)), strict=True
    ):
        if len(x) != len(y):
            raise ValueError(f"{path}: {len(x)} examples in {x_name} and {len(y)} in {y_name}: must be equal")
    if len(parts) == 2:
        x, y = parts
        if len(x) < 2:
            raise ValueError(f"{path}: {len(x)} examples are too few for a training and a test part")
        train, test = split(len(x), max(1, len(x) // 5))
        parts = [x[train], y[train], x[test], y[test]]
    x, y, x_test, y_test = parts
    _check_shapes(path, x, x_test)
    if x.ndim == 3 and np.issubdtype(x.dtype, np.integer):
        x, x_test = x[..., None], x_test[..., None]
    integer = np.issubdtype(y.dtype, np.integer)
    classes = int(max(y.max(initial=0), y_test.max(initial=0))) + 1 if integer else None
    text = f"{path.name}: {len(x):,} examples for training and {len(x_test):,} for test"
    return dataset(f"npz:{path.stem}", x, y, x_test, y_test, text, classes=classes)


def _check_shapes(path: Path, x: np.ndarray, x_test: np.ndarray) -> None:
    if x.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"{path}: training examples have shape {x.shape[1:]} and test examples {x_test.shape[1:]}: "
            "must be equal"
        )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        content = io.BytesIO(path.read_bytes())  # numpy leaves a damaged file open
        archive = np.load(content, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is not a zip archive of arrays")
        return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: cannot be read as .npz without pickles ({reason})") from error


def _check(path: Path, name: str, array: np.ndarray) -> None:
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise ValueError(
            f"{path}: {name} is of type {array.dtype}: must be integers or floating-point numbers"
        )
    least, most = (2, 4) if name.startswith("x") else (1, 2)
    if not least <= array.ndim <= most:
        raise ValueError(f"{path}: {name} has {array.ndim} axes: must have {least} to {most}")
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: {name} holds NaN or infinite values")
    if name.startswith("y") and np.issubdtype(array.dtype, np.integer):
        if array.ndim != 1:
            raise ValueError(f"{path}: {name} holds classes and has {array.ndim} axes: must have one")
        if array.min(initial=0) < 0:
            raise ValueError(f"{path}: {name} holds the class {array.min()}: classes are numbered from 0")
