"""Whether a store is whole: zarr reads a chunk that is not there as its fill value, and says nothing.

Every chunk of a store is written when its runs are appended. The group's attributes tell what there is:
`arrays`, the names, and `runs`, how many runs have been appended, set when all of their chunks are there.
"""

import errno

import numpy as np
import xarray as xr
import zarr


def per_run(array: zarr.Array) -> bool:
    """Whether an array's first dimension is the run."""
    return bool(array.metadata.dimension_names[0] == "run")


def demand_store(group: zarr.Group) -> None:
    """Raises a FileNotFoundError if the store's folder was removed: zarr would make another, without runs."""
    root = getattr(group.store, "root", None)
    if root and not (root / "zarr.json").exists():
        raise FileNotFoundError(errno.ENOENT, "it was removed while the sweep ran", str(root))


def demand_chunks(group: zarr.Group) -> int:
    """Looks for every array and every chunk of a store; returns the number of its runs.

    Raises:
        ValueError: something is missing; the message names its file.
    """
    if not {"arrays", "runs", "coordinates"} <= set(group.attrs):
        raise ValueError("zarr.json tells neither arrays nor runs")
    root, runs = getattr(group.store, "root", None), int(group.attrs["runs"])
    for name in group.attrs["arrays"]:
        if root and not (root / name / "zarr.json").exists():
            raise ValueError(f"{name}/zarr.json is missing")
        array = group[name]
        length = runs if per_run(array) else array.shape[0]
        if array.shape[0] < length:
            raise ValueError(f"{name} holds {array.shape[0]} of {runs} runs")
        if not root:
            continue
        chunks = zip((length, *array.shape[1:]), array.chunks, strict=True)
        for index in np.ndindex(*(-(-size // each) for size, each in chunks)):
            key = array.metadata.encode_chunk_key(index)
            if not (root / name / key).exists():
                raise ValueError(f"{name}/{key} is missing")
    return runs


def read_through(group: zarr.Group) -> int:
    """Looks for every chunk and reads it, so that damage is found before anything is written.

    Returns:
        The number of runs. What a kill has left behind them, of an append, holds nothing.

    Raises:
        ValueError: something is missing or damaged; the message names its file.
    """
    runs = demand_chunks(group)
    for name in group.attrs["arrays"]:
        array = group[name]
        end = runs if per_run(array) else array.shape[0]
        for begin in range(0, end, array.chunks[0]):
            _read(name, array, slice(begin, min(begin + array.chunks[0], end)))
    if np.any(group["finished"][runs:]):
        raise ValueError(f"zarr.json tells of {runs} runs, and more are finished")
    return runs


def loaded(group: zarr.Group) -> xr.Dataset:
    """The runs of a store, in memory; those being appended are left out.

    Raises:
        ValueError: as `read_through`.
    """
    runs = demand_chunks(group)
    names = sorted(group.attrs["arrays"], key=lambda name: name != "finished")  # whose other values are there
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for name in names:
        array = group[name]
        values = _read(name, array, slice(0, runs) if per_run(array) else slice(None))
        values = values.astype(object) if values.dtype.kind == "T" else values
        variables[name] = (array.metadata.dimension_names, values)
    attributes = {key: value for key, value in group.attrs.items() if key != "coordinates"}
    return xr.Dataset({name: variables[name] for name in group.attrs["arrays"]}, attrs=attributes).set_coords(
        group.attrs["coordinates"].split()
    )


def _read(name: str, array: zarr.Array, part: slice) -> np.ndarray:
    """Values of an array; what cannot be read is named.

    Raises:
        ValueError: a chunk is damaged.
    """
    try:
        return np.asarray(array[part])
    except Exception as error:  # of many types, from zarr and its codecs
        for index in np.ndindex(*array.cdata_shape):
            try:
                array.blocks[index]
            except Exception as reason:
                raise ValueError(
                    f"{name}/{array.metadata.encode_chunk_key(index)}: {line(reason)}"
                ) from error
        raise ValueError(f"{name}: {line(error)}") from error


def line(error: BaseException) -> str:
    """An error's first line, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]
