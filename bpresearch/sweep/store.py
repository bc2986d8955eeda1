"""A sweep's results on disk: `results.zarr`, which opens as an xarray.Dataset, and `config.json` beside it.

Every write replaces a file whole, so a kill leaves the old or the new; the arrays carry checksums, so damage
is seen when they are read, and every chunk is written, so a lost one is missed (`soundness`). A run's
`finished` is written last.
"""

import fcntl
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec, ZstdCodec

from bpresearch import files
from bpresearch.sweep.choosing import Choice
from bpresearch.sweep.description import difference, provenance
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.processes import agreed, leads
from bpresearch.sweep.soundness import demand_chunks, line, loaded, per_run, read_through
from bpresearch.train import Measured

RUNS_IN_A_CHUNK = 64
STEPS_IN_A_CHUNK = 500
UNFINISHED = re.compile(r"\.(config\.json|flagfile|gradient_check\.json|study\.journal)\.\d+")
"""Files of `files.write` in a workdir that a kill has cut short."""

_held: set[tuple[int, Path]] = set()


class Layout(NamedTuple):
    """What the results of a sweep are: arrays by name, whose first dimension is the run."""

    coordinates: dict[str, np.ndarray]
    """Of the other dimensions."""
    variables: dict[str, tuple[np.generic, tuple[str, ...]]]
    """What each holds until a run has it, and its dimensions after `run`."""
    attributes: dict[str, object] = {}  # noqa: RUF012


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds a workdir for this thread, which may hold it again; another thread or process is refused.

    What a kill has left of files that were being written is removed.

    Raises:
        ValueError: it is held, or cannot be written.
    """
    mine = threading.get_ident(), workdir.resolve()
    if mine in _held:
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = os.open(workdir / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        link = ": its lock is a link" if (workdir / "lock").is_symlink() else ""
        raise ValueError(f"--workdir={workdir}: cannot write there ({error.strerror}{link})") from error
    with os.fdopen(lock, "w"):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"--workdir={workdir} is in use by another process") from error
        for path in workdir.glob(".*"):
            if UNFINISHED.fullmatch(path.name):
                path.unlink(missing_ok=True)
        _held.add(mine)
        try:
            yield
        finally:
            _held.discard(mine)


@contextmanager
def opened(
    workdir: Path | None,
    layout: Layout,
    columns: dict[str, np.ndarray],
    first: int,
    config: Mapping[str, object],
) -> Iterator[tuple[zarr.Group, np.ndarray]]:
    """The store of a workdir, held for this process, with these runs in it, and the row of each.

    The first process has the workdir; the others, stores in memory in which the same runs are finished.
    Arguments as `open_store`'s and `check_config`'s.
    """
    with ExitStack() as held:
        held.enter_context(every_chunk())
        try:
            if workdir:
                held.enter_context(locked(workdir))
                check_config(workdir, config)
            group, rows = open_store(workdir, layout, columns, first)
        except BaseException:  # the others must not wait
            agreed(np.array(False))
            raise
        if not agreed(np.array(True)):
            raise ValueError("the first process cannot begin; its message says why")
        done = agreed(group["finished"][:][rows])
        if not leads():
            group["finished"].oindex[rows] = done
        yield group, rows


def unwritable(workdir: Path | None, error: OSError) -> ValueError:
    """What to raise where a sweep cannot go on writing its workdir."""
    return ValueError(
        f"--workdir={workdir}: cannot write there ({error.strerror or error}); what is saved is whole, the "
        "same command goes on from there"
    )


def every_chunk() -> AbstractContextManager[object]:
    """While it is entered, zarr writes chunks that hold nothing too, so that a lost one is not like those."""
    return zarr.config.set({"array.write_empty_chunks": True})


def check_config(workdir: Path, config: Mapping[str, object]) -> None:
    """Writes `config.json`, or compares it with what is there.

    Args:
        workdir: the folder.
        config: what the results depend on.

    Raises:
        ValueError: the folder holds results of another configuration, or cannot be read.
    """
    path = workdir / "config.json"
    if not path.exists():
        if (workdir / "results.zarr").exists():
            raise ValueError(
                f"--workdir={workdir} holds results.zarr without config.json; take another folder"
            )
        files.write(path, json.dumps({"experiment": config, "provenance": provenance()}, indent=2))
    try:
        stored = dict(json.loads(path.read_text())["experiment"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"--workdir={workdir}: config.json cannot be read; take another folder") from error
    there, devices = stored.get("devices"), config.get("devices")
    if there and there != devices:
        raise ValueError(
            f"--workdir={workdir} was begun on {there} devices, and here are {devices}, with which results "
            "differ in their last bits: go on with as many devices (of a CPU, cores), or take another folder"
        )
    stored["devices"] = devices
    if other := difference(stored, json.loads(json.dumps(config))):
        raise ValueError(
            f"--workdir={workdir} holds a sweep with other settings ({other}); take another folder"
        )


def layout_of(experiment: Experiment, metrics: dict[str, Measured], choice: Choice) -> Layout:
    """The results of trainings: the loss of each step, and what evaluations measure."""
    coordinates: dict[str, np.ndarray] = {
        "step": np.arange(1, experiment.steps + 1),
        "eval_step": experiment.eval_steps,
    }
    nothing, never = np.float32(np.nan), np.int32(-1)
    variables: dict[str, tuple[np.generic, tuple[str, ...]]] = {"train_loss": (nothing, ("step",))}
    for name, measured in metrics.items():
        coordinates |= {axis: np.asarray(values) for axis, values in measured.coordinates.items()}
        variables[name] = (nothing, ("eval_step", *measured.coordinates))
    variables |= {"diverged_at": (never, ()), "pruned_at": (never, ())}
    return Layout(coordinates, variables, {"chosen_by": choice.variable, "higher_is_better": choice.maximize})


def open_store(
    workdir: Path | None, layout: Layout, columns: dict[str, np.ndarray], first: int = 0
) -> tuple[zarr.Group, np.ndarray]:
    """The store of a workdir with these runs in it, and the row of each; runs that it lacks are appended.

    Args:
        workdir: the folder; None keeps the store in memory.
        layout: what the results are.
        columns: the runs' settings by axis, as `coordinates` gives them.
        first: number of the first run, in a slice of a sweep.

    Raises:
        ValueError: the store cannot be read, or these runs have other axes than those in it.
    """
    if workdir is None:
        return _append(_create(zarr.storage.MemoryStore(), layout, columns), columns, first)
    path = workdir / "results.zarr"
    if not path.exists():
        unfinished = workdir / "results.zarr.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        _create(zarr.storage.LocalStore(unfinished), layout, columns)
        unfinished.rename(path)
    for partial in path.rglob("*.partial"):  # of a write that a kill cut short
        partial.unlink()
    try:
        group = zarr.open_group(path, mode="r+")
        read_through(group)
    except Exception as error:  # zarr raises errors of many types on damaged files
        raise ValueError(
            f"--workdir={workdir}: results.zarr cannot be read ({line(error)}); take another folder"
        ) from error
    for axis in columns.keys() | _axes(group):
        if axis not in columns or axis not in _axes(group):
            raise ValueError(f"--workdir={workdir} holds runs {'without' if axis in columns else 'with'} "
                             f"the axis {axis}; take another folder")  # fmt: skip
        if columns[axis].dtype.kind not in {"O": "OU", "T": "OU", "f": "fi"}.get(group[axis].dtype.kind, "i"):
            raise ValueError(f"--workdir={workdir}: the axis {axis} holds {group[axis].dtype.name} there, "
                             f"{columns[axis].dtype.name} here; take another folder")  # fmt: skip
    return _append(group, columns, first)


def _create(store: Store, layout: Layout, columns: dict[str, np.ndarray]) -> zarr.Group:
    """A store without runs."""
    attributes = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in provenance().items()
    }
    group = zarr.create_group(store, attributes=attributes | layout.attributes)
    axes = layout.coordinates

    def put(name: str, dtype: type | np.dtype, dimensions: tuple[str, ...], fill: object = None) -> None:
        shape = tuple(len(axes[dimension]) if dimension != "run" else 0 for dimension in dimensions)
        add(group, name, dtype, shape, dimensions, fill)

    for name, values in axes.items():
        kind = str if values.dtype.kind in "OU" else values.dtype
        put(name, kind, (name,))
        group[name][:] = values
    for name, values in columns.items():
        put(name, str if values.dtype == object else values.dtype, ("run",))
    put("run", np.int64, ("run",))
    for name, (empty, dimensions) in layout.variables.items():
        put(name, empty.dtype, ("run", *dimensions), empty.item())
    put("finished", np.dtype(bool), ("run",), False)
    names = [*axes, *columns, "run", *layout.variables, "finished"]
    group.attrs.update({"coordinates": " ".join(sorted(columns)), "arrays": names, "runs": 0})
    return group


def add(
    group: zarr.Group,
    name: str,
    dtype: type | np.dtype,
    shape: tuple[int, ...],
    dimensions: tuple[str, ...],
    fill: object = None,
) -> None:
    """Adds an array to a store, compressed and with checksums, in chunks by its dimensions."""
    chunks = {"run": RUNS_IN_A_CHUNK, "step": STEPS_IN_A_CHUNK, "eval_step": STEPS_IN_A_CHUNK}
    if len(dimensions) == 1:
        chunks = {"run": 1024}
    lengths = [0 if d == "run" else n for d, n in zip(dimensions, shape, strict=True)]
    group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=tuple(
            min(chunks.get(d, n), n) or chunks["run"] for d, n in zip(dimensions, lengths, strict=True)
        ),
        dimension_names=dimensions,
        fill_value=fill,
        compressors=(ZstdCodec(level=1), Crc32cCodec()),
    )


def _axes(group: zarr.Group) -> set[str]:
    return set(group.attrs["coordinates"].split())


def _per_run(group: zarr.Group) -> list[zarr.Array]:
    return [array for array in (group[name] for name in group.attrs["arrays"]) if per_run(array)]


def _append(group: zarr.Group, columns: dict[str, np.ndarray], first: int) -> tuple[zarr.Group, np.ndarray]:
    """Appends the runs that the store lacks, all of their chunks with them."""
    names, count = sorted(columns), group.attrs["runs"]
    for array in _per_run(group):
        if array.shape[0] > count:  # a kill has cut an append short
            array.resize((count, *array.shape[1:]))
    stored = [group[name][:].tolist() for name in names]
    rows = {repr(key): row for row, key in enumerate(zip(*stored, strict=True))}
    asked = [
        repr(key)
        for key in zip(*(columns[name].astype(group[name].dtype).tolist() for name in names), strict=True)
    ]
    new = list({key: number for number, key in reversed(list(enumerate(asked))) if key not in rows}.values())[
        ::-1
    ]
    if new:
        rows |= {asked[number]: count + place for place, number in enumerate(new)}
        held = {name: columns[name][new] for name in names}
        held["run"] = first + np.arange(count, count + len(new))
        for array in _per_run(group):
            array.resize((count + len(new), *array.shape[1:]))
            array[count:] = held.get(array.basename, array.fill_value)
        group.attrs["runs"] = count + len(new)
    return group, np.array([rows[key] for key in asked])


def dataset(group: zarr.Group) -> xr.Dataset:
    """The store as a Dataset; what is on disk is read when it is used.

    Raises:
        ValueError: something is missing on disk.
    """
    try:
        demand_chunks(group)
    except ValueError as error:
        workdir = getattr(group.store, "root", Path()).parent
        raise ValueError(f"--workdir={workdir}: results.zarr was damaged in this run ({error})") from error
    results = xr.open_zarr(group.store, consolidated=False, chunks=None)
    texts = {name for name, values in results.coords.items() if values.dtype.kind == "T"}
    return results.assign_coords({name: results[name].astype(object) for name in texts})


def read(workdir: str | Path) -> xr.Dataset:
    """The results that a workdir holds, as far as they are, in memory.

    Raises:
        ValueError: there are none, or something of them is missing or damaged; names the file.
    """
    path = Path(workdir).expanduser() / "results.zarr"
    if not path.exists():
        raise ValueError(f"--workdir={workdir}: there is no results.zarr; name the folder of a sweep")
    try:
        return loaded(zarr.open_group(path, mode="r"))
    except Exception as error:  # of many types, on damaged files
        raise ValueError(f"--workdir={workdir}: results.zarr cannot be read ({line(error)})") from error


def read_trainings(workdir: str | Path) -> xr.Dataset:
    """`read`, of a sweep of trainings: the results of other functions have no curves.

    Raises:
        ValueError: as in `read`, or they are of a function.
    """
    results = read(workdir)
    if "train_loss" not in results:
        raise ValueError(
            f"--workdir={workdir}: holds the results of a function, and no training: "
            "read them in Python, with bpresearch.sweep.read"
        )
    return results
