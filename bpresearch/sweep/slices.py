"""A sweep in parts: each process of a job array trains a slice of the runs, and `merge` joins them."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xarray as xr
import zarr

from bpresearch import files
from bpresearch.sweep import store
from bpresearch.sweep.description import difference
from bpresearch.sweep.soundness import per_run

T = TypeVar("T")


def numbers(text: str) -> tuple[int, int]:
    """The number of a slice, from 1, and how many there are.

    >>> numbers("3/16")
    (3, 16)

    Raises:
        ValueError: the text is not of this form, or there is no such slice.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, count = (int(part) for part in match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise ValueError(f"slice={text}: takes a number and how many there are, 1/16 to 16/16")
    return number, count


def part_of(runs: list[T], slice: str | None) -> tuple[list[T], int]:
    """The runs of a slice, which follow each other, and the number of the first; of None, all.

    >>> part_of(list("abcdefg"), "2/3")
    (['c', 'd', 'e'], 2)
    """
    if slice is None:
        return runs, 0
    number, count = numbers(slice)
    if count > len(runs):
        raise ValueError(f"slice={slice}: the sweep has only {len(runs)} runs")
    bounds = [round(len(runs) * share / count) for share in (number - 1, number)]
    return runs[bounds[0] : bounds[1]], bounds[0]


def folder_of(workdir: Path, slice: str) -> Path:
    """Where a slice's results are, in the workdir of the whole sweep."""
    number, count = numbers(slice)
    return workdir / f"slice-{number}-of-{count}"


def merge(workdirs: Sequence[str | Path], into: str | Path) -> xr.Dataset:
    """Makes one workdir of those of a sweep's slices, equal to that of the undivided sweep.

    Runs that are not finished stay so: the sweep's command, without its slice, trains them.

    Args:
        workdirs: of all slices, in any order.
        into: a folder without results.

    Returns:
        The results of all runs.

    Raises:
        ValueError: a slice is missing or there twice, they are not of one sweep, or the folder has results.
    """
    into = Path(into).expanduser()
    slices, alike = _by_number([Path(workdir).expanduser() for workdir in workdirs])
    config = json.loads((slices[0] / "config.json").read_text())
    with store.locked(into):
        if (into / "results.zarr").exists():
            raise ValueError(f"--workdir={into} holds results already; take another folder")
        parts = [store.read(path) for path in slices]
        unfinished = into / "results.zarr.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        with store.every_chunk():
            _join(parts, zarr.open_group(slices[0] / "results.zarr", mode="r"), unfinished)
        del config["experiment"]["slice"]
        if not alike:  # then the bits are those of no number of devices
            config["experiment"].pop("devices", None)
        files.write(into / "config.json", json.dumps(config, indent=2))
        for name in ("flagfile", "gradient_check.json"):
            if (slices[0] / name).exists():
                files.write(into / name, (slices[0] / name).read_text())
        unfinished.rename(into / "results.zarr")
    return store.read(into)


def _by_number(workdirs: list[Path]) -> tuple[list[Path], bool]:
    """The workdirs in the order of their slices, which must be all of one sweep, and whether all were trained
    on as many devices."""
    if not workdirs:
        raise ValueError("--workdir: there are no slices to merge")
    folders: dict[int, Path] = {}
    devices: set[str | None] = set()
    first: Any = None
    for path in workdirs:
        try:
            config = json.loads((path / "config.json").read_text())["experiment"]
            number, count = numbers(config.pop("slice"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"--workdir={path}: holds no slice of a sweep") from error
        devices.add(config.pop("devices", None))
        first = first or (path, count, config)
        if count != first[1]:
            raise ValueError(f"--workdir={path}: is one of {count} slices, {first[0]} one of {first[1]}")
        if other := difference(first[2], config):
            raise ValueError(f"--workdir={path}: is of another sweep than {first[0]} ({other})")
        if number in folders:
            raise ValueError(f"--workdir={path}: slice {number} of {count} is in {folders[number]} too")
        folders[number] = path
    if missing := sorted(set(range(1, first[1] + 1)) - set(folders)):
        raise ValueError(f"slice {missing[0]} of {first[1]} is missing; --workdir takes those of all slices")
    return [folders[number] for number in sorted(folders)], len(devices) == 1


def _join(parts: list[xr.Dataset], like: zarr.Group, path: Path) -> None:
    """Writes a store with the runs of all of them, one after another; its arrays are like another's."""
    runs = sum(part.sizes["run"] for part in parts)
    attributes = dict(like.attrs) | {"runs": runs}
    whole = zarr.create_group(zarr.storage.LocalStore(path), attributes=attributes)
    for name in like.attrs["arrays"]:
        array = like[name]
        taken = parts if per_run(array) else parts[:1]
        values = np.concatenate([part[name].values for part in taken])
        store.add(
            whole, name, array.dtype, values.shape, array.metadata.dimension_names, array.metadata.fill_value
        )
        whole[name][:] = values
