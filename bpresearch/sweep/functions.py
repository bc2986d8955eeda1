"""Sweeps of any function `(key, hyperparameters) -> metrics`, for what is no training of a model."""

import hashlib
import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from bpresearch.sweep import slices, store
from bpresearch.sweep.axes import Axes, grid, product
from bpresearch.sweep.description import column, coordinate, label
from bpresearch.sweep.options import Settings
from bpresearch.sweep.processes import fetch, leads, place
from bpresearch.sweep.progress import ProgressReport, progress
from bpresearch.sweep.soundness import demand_store

WIDTH = 16
"""Calls that a device makes at a time, by `vmap`; always so many, so that a run has the same bits alone and
in company."""
TOGETHER = 1024
"""Calls after which their results are written."""

Function = Callable[[jax.Array, Settings], dict[str, PyTree]]


def run(
    function: Function,
    axes: Axes | list[Settings],
    workdir: str | Path | None = None,
    *,
    slice: str | None = None,
    quiet: bool = False,
) -> xr.Dataset:
    """Calls a function with every combination of the axes' values, many at a time in one compiled program.

    >>> def walk(key, hyperparameters):
    ...     steps = jax.random.normal(key, (100,)) * hyperparameters["scale"]
    ...     return {"end": jnp.sum(steps), "path": jnp.cumsum(steps)}
    >>> results = bp.sweep.run(walk, bp.sweep.grid(scale=[0.1, 1.0], seed=range(3)), quiet=True)
    >>> results.end.dims, results.path.dims
    (('run',), ('run', 'path_0'))

    Args:
        function: `(key, hyperparameters) -> metrics`: from a random key, `jax.random.key(seed)`, and the
            other axes' values by name, to a dict of arrays. Real numbers are traced; for each combination of
            other values, integers say, it is compiled anew.
        axes: as `grid` gives them; `seed` is 0 unless it is among them. Or a list of runs, each with one
            value on every axis; in a workdir they are appended to the runs that are there.
        workdir: as in `bpresearch.sweep.run`; the same call resumes.
        slice: as there.
        quiet: show no progress.

    Returns:
        A dataset with the dimension `run`, every axis a coordinate on it, and the metrics as variables, whose
        own dimensions are `NAME_0`, `NAME_1` and so on.

    Raises:
        ValueError: the function gives no dict of arrays, or arrays of other shapes for other values; or as in
            `bpresearch.sweep.run`.
    """
    axes = axes if isinstance(axes, list) else grid(**axes)
    runs = axes if isinstance(axes, list) else product(axes)
    runs = [{"seed": 0} | settings for settings in runs]
    columns = {axis: column([coordinate(settings[axis]) for settings in runs]) for axis in runs[0]}
    shapes = _shapes(function, runs)
    runs, first = slices.part_of(runs, slice)
    columns = {axis: values[first : first + len(runs)] for axis, values in columns.items()}
    layout = store.Layout(
        {f"{name}_{i}": np.arange(n) for name, shape in shapes.items() for i, n in enumerate(shape.shape)},
        {name: (_nothing(shape.dtype), _dimensions(name, shape)) for name, shape in shapes.items()},
    )
    path = Path(workdir).expanduser() if workdir is not None and leads() else None
    described = {"axes": {} if isinstance(axes, list) else {axis: label(v) for axis, v in axes.items()}}
    if isinstance(axes, list):  # runs that are appended later have metrics of the same shapes
        described["metrics"] = {name: list(shape.shape) for name, shape in shapes.items()}
    config = {
        "function": label(function),
        "source_sha256": _digest(function),
        **described,
        **({"slice": slice} if slice else {}),
    }
    with store.opened(path, layout, columns, first, config) as (group, rows):
        finished = group["finished"][:]
        todo = [(row, s) for row, s in zip(rows.tolist(), runs, strict=True) if not finished[row]]
        with progress(len(todo), len(todo), quiet) as report, ThreadPoolExecutor(1) as writer:
            writing = [
                writer.submit(_write, group, [row for row, _ in block], metrics)
                for block, metrics in _called(function, dict(todo), report)
            ]
            try:
                for future in writing:
                    future.result()
            except OSError as error:
                raise store.unwritable(path, error) from error
        results = store.dataset(group)
    return results if len(rows) == len(finished) and not isinstance(axes, list) else results.isel(run=rows)


def _called(
    function: Function, todo: dict[int, Settings], report: ProgressReport
) -> Iterator[tuple[list[tuple[int, Settings]], dict[str, np.ndarray]]]:
    """The metrics of the runs, block by block."""
    groups: dict[str, list[int]] = {}
    for row, settings in todo.items():
        fixed = {name: value for name, value in settings.items() if not _traced(name, value)}
        groups.setdefault(repr(fixed), []).append(row)
    for rows in groups.values():
        settings = todo[rows[0]]
        traced = [name for name, value in settings.items() if _traced(name, value) and name != "seed"]
        fixed = {name: value for name, value in settings.items() if not _traced(name, value)}
        program, sharding = _program(partial(_one, function, fixed))
        room = WIDTH * sharding.mesh.size
        for begin in range(0, len(rows), TOGETHER):
            block = rows[begin : begin + TOGETHER]
            padded = block + block[-1:] * (-len(block) % room)
            seeds = np.array([todo[row]["seed"] for row in padded], np.uint32)
            values = {name: np.array([todo[row][name] for row in padded], np.float32) for name in traced}
            arrays = program(*place((seeds, values), sharding))
            metrics = {name: fetch(array)[: len(block)] for name, array in arrays.items()}
            report(steps=len(block), runs=len(block))
            yield [(row, todo[row]) for row in block], metrics


def _one(
    function: Function, fixed: Settings, seed: jax.Array, values: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    metrics = function(jax.random.key(seed), {**fixed, **values})
    if not isinstance(metrics, dict) or not metrics:
        raise ValueError(
            f"{label(function)} returns {type(metrics).__name__}: takes a dict of arrays by name"
        )
    return {name: jnp.asarray(value) for name, value in metrics.items()}


def _program(
    function: Callable[..., dict[str, jax.Array]],
) -> tuple[Callable[..., dict[str, jax.Array]], NamedSharding]:
    """The function for arrays of seeds and values, spread over all devices."""
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    spec = PartitionSpec("devices")

    def each(seeds: jax.Array, values: dict[str, jax.Array]) -> dict[str, jax.Array]:
        def cut(array: jax.Array) -> jax.Array:
            return array.reshape(-1, WIDTH, *array.shape[1:])

        metrics = jax.lax.map(lambda inputs: jax.vmap(function)(*inputs), jax.tree.map(cut, (seeds, values)))
        return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), metrics)

    spread = jax.shard_map(each, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(spread), NamedSharding(mesh, spec)


def _shapes(function: Function, runs: list[Settings]) -> dict[str, jax.ShapeDtypeStruct]:
    """The metrics' shapes, which all runs share."""
    shared: dict[str, jax.ShapeDtypeStruct] = {}
    for settings in {_kind(s): s for s in runs}.values():
        values = {n: np.float32(v) for n, v in settings.items() if _traced(n, v) and n != "seed"}
        fixed = {name: value for name, value in settings.items() if not _traced(name, value)}
        shapes = jax.eval_shape(partial(_one, function, fixed), np.uint32(0), values)
        for name, shape in shapes.items():
            if shared.setdefault(name, shape) != shape:
                raise ValueError(
                    f"{label(function)}: {name} has shape {shared[name].shape} and, with {_named(fixed)}, "
                    f"shape {shape.shape}: must be the same in all runs"
                )
    return shared


def _write(group: Any, rows: list[int], metrics: dict[str, np.ndarray]) -> None:
    demand_store(group)
    for name, values in metrics.items():
        group[name].oindex[np.array(rows)] = values
    group["finished"].oindex[np.array(rows)] = np.ones(len(rows), bool)


def _traced(name: str, value: object) -> bool:
    return name == "seed" or isinstance(value, float | np.floating)


def _kind(settings: Settings) -> str:
    return repr({name: value for name, value in settings.items() if not _traced(name, value)})


def _named(settings: Settings) -> str:
    return ", ".join(f"{name}={coordinate(value)}" for name, value in settings.items())


def _nothing(dtype: np.dtype) -> np.generic:
    """NaN, or 0 where there is none."""
    return np.dtype(dtype).type(np.nan if np.issubdtype(dtype, np.inexact) else 0)


def _dimensions(name: str, shape: jax.ShapeDtypeStruct) -> tuple[str, ...]:
    return tuple(f"{name}_{i}" for i in range(len(shape.shape)))


def _digest(function: Function) -> str:
    """Of the function's own text, so that another one does not go on with its results."""
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
    except (OSError, TypeError):
        return ""
