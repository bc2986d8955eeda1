"""Data sets from files that the user has: IDX, as MNIST comes, and NumPy's npz."""

import gzip
import io
import os
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


def idx(data_dir: str | Path | None, *, standardize: str = "features") -> Dataset:
    """MNIST, Fashion-MNIST or another data set in MNIST's four files, with the split that they make.

    Args:
        data_dir: folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k, as
            they are or compressed with gzip (.gz).
        standardize: see `dataset`.

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
    classes = _classes(folder, labels, test_labels)
    text = f"{folder.name}: {len(images):,} images for training and {len(test_images):,} for test"
    x, x_test = images[..., None], test_images[..., None]
    return dataset(f"idx:{folder.name}", x, labels, x_test, test_labels, text, classes, standardize)


def _existing(name: str, data_dir: str | Path | None) -> Path:
    if not data_dir:
        raise ValueError(f"--dataset={name} needs --data_dir: where the files are")
    path = Path(data_dir).expanduser()
    if not path.exists():
        raise ValueError(f"--data_dir={data_dir}: there is no such file or folder")
    return path


def _read_part(folder: Path, part: str) -> Shaped[np.ndarray, "..."]:
    dimensions = 3 if part.endswith("images") else 1
    names = [f"{part}{dot}idx{dimensions}-ubyte{gz}" for dot in "-." for gz in (".gz", "")]
    files = [folder / name for name in names if (folder / name).is_file()]
    if not files:
        raise ValueError(f"--data_dir={folder}: holds neither {names[0]} nor {names[1]}")
    array = read_idx(files[0])
    if array.ndim != dimensions:
        raise ValueError(f"{files[0]}: holds an array of {array.ndim} dimensions, not {dimensions}")
    if dimensions == 1 and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{files[0]}: holds labels of type {array.dtype}: must be integers")
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


def npz(data_dir: str | Path | None, *, standardize: str = "features") -> Dataset:
    """Arrays in a file of `numpy.savez`: x_train, y_train, x_test and y_test, or x and y.

    With x and y alone, a fifth of the examples, drawn with a fixed seed, is the test part; a single example
    is both parts. Integer y, (examples,), are classes from 0; floating y, (examples,) or (examples, targets),
    are numbers. Examples of two axes are feature vectors; images (examples, height, width) of integers get a
    channel axis; other examples of three axes are signals with channels, and of four axes images with
    channels. Other arrays in the file are left alone.

    Args:
        data_dir: the file, or a folder with one .npz file.
        standardize: see `dataset`.

    Raises:
        ValueError: the file is missing or damaged, or its arrays are not as above; the message names it.
    """
    path = _existing("npz", data_dir)
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if len(files) != 1:
            raise ValueError(f"--data_dir={data_dir}: holds {len(files)} .npz files: name the file itself")
        path = files[0]
    parts = read_npz(path)
    (x, y), (x_test, y_test) = parts if len(parts) == 2 else _divided(*parts[0])
    _check_shapes(path, x, x_test)
    _check_targets(path, y, y_test)
    if x.ndim == 3 and np.issubdtype(x.dtype, np.integer):
        x, x_test = x[..., None], x_test[..., None]
    classes = _classes(path, y, y_test) if np.issubdtype(y.dtype, np.integer) else None
    both = " (the same one)" if len(parts) == len(x) == len(x_test) == 1 else ""
    text = f"{path.name}: {len(x):,} examples for training and {len(x_test):,}{both} for test"
    return dataset(f"npz:{path.stem}", x, y, x_test, y_test, text, classes, standardize)


def _divided(x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The training and the test part of examples without parts."""
    if len(x) < 2:
        return [(x, y), (x, y)]
    return [(x[part], y[part]) for part in split(len(x), max(1, len(x) // 5))]


def _check_shapes(path: Path, x: np.ndarray, x_test: np.ndarray) -> None:
    if not (len(x) and len(x_test)):
        raise ValueError(f"{path}: holds no examples for {'test' if len(x) else 'training'}")
    if x.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"{path}: training examples have shape {x.shape[1:]} and test examples {x_test.shape[1:]}: "
            "must be equal"
        )
    if 0 in x.shape[1:]:
        raise ValueError(f"{path}: an example has shape {x.shape[1:]} and holds nothing")


def _check_targets(path: Path, y: np.ndarray, y_test: np.ndarray) -> None:
    kinds = ["classes" if np.issubdtype(part.dtype, np.integer) else "numbers" for part in (y, y_test)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{path}: the training targets are {kinds[0]} ({y.dtype}) and the test targets {kinds[1]} "
            f"({y_test.dtype}): must be alike; classes are integers"
        )
    widths = [int(np.prod(part.shape[1:], dtype=int)) for part in (y, y_test)]
    if widths[0] != widths[1] or not widths[0]:
        raise ValueError(
            f"{path}: a training example has {widths[0]} targets and a test example {widths[1]}: must be "
            "equal and at least one"
        )


def _classes(path: Path, y: np.ndarray, y_test: np.ndarray) -> int:
    """The number of classes, those of the training part."""
    classes, beyond = int(y.max(initial=0)) + 1, int(y_test.max(initial=0))
    if classes > max(1000, len(y)):
        raise ValueError(
            f"{path}: holds the class {classes - 1} among {len(y)} training examples: number classes from 0"
        )
    if beyond >= classes:
        raise ValueError(
            f"{path}: the test part holds the class {beyond}, and the training part 0 to {classes - 1} alone"
        )
    return classes


def read_npz(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """The parts in a file of `numpy.savez`, examples and targets: training and test, or one without parts.

    Raises:
        ValueError: the file cannot be read, lacks an array, or has one that does not fit; names both.
    """
    try:
        content = io.BytesIO(path.read_bytes())  # numpy leaves a damaged file open
        archive = np.load(content, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is not a zip archive of arrays")
        names = _names(path, archive.files)
        _check_sizes(zipfile.ZipFile(content), names)
        arrays = {name: archive[name] for name in names}
    except Exception as error:  # of many types: of zip, zlib, and of Python's parser, which reads headers
        ours = isinstance(error, ValueError) and str(error).startswith(str(path))
        raise error if ours else _unreadable(path, error) from error
    for name, array in arrays.items():
        _check(path, name, array)
    pairs = list(zip(names[::2], names[1::2], strict=True))
    for x_name, y_name in pairs:
        x, y = arrays[x_name], arrays[y_name]
        if len(x) != len(y):
            raise ValueError(f"{path}: {len(x)} examples in {x_name} and {len(y)} in {y_name}: must be equal")
    return [(arrays[x_name], arrays[y_name]) for x_name, y_name in pairs]


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(f"{path}: cannot be read as .npz without pickles ({reason})")


def _names(path: Path, names: list[str]) -> list[str]:
    """The arrays to read: examples and targets of each part, in turn."""
    if "x_train" in names:
        wanted = ["x_train", "y_train", "x_test", "y_test"]
    else:
        wanted = ["x", "y", *(["x_test", "y_test"] if {"x_test", "y_test"} & {*names} else [])]
    if lacking := [name for name in wanted if name not in names]:
        raise ValueError(
            f"{path}: lacks {', '.join(lacking)}; it holds {', '.join(names) or 'nothing'}, and takes "
            "x_train, y_train, x_test and y_test, or x and y"
        )
    return wanted


def _check_sizes(archive: zipfile.ZipFile, names: list[str]) -> None:
    """Refuses what is no array, or would not fit into memory, before any memory is asked for."""
    total = 0
    for name in names:
        if f"{name}.npy" not in archive.namelist():
            raise ValueError(f"{name} is not an array")
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
            shape, _, dtype = read[min(version[0], 2)](file)
        size = dtype.itemsize * int(np.prod(shape, dtype=object))
        if size > member.file_size and not dtype.hasobject:
            raise ValueError(
                f"{name} is said to have shape {shape}, and ends after {member.file_size:,} bytes"
            )
        total += size
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total > memory:
        raise ValueError(f"it takes {total / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f}")


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
