"""A sweep's results on disk: `results.zarr`, an xarray.Dataset, and `config.json` beside it."""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

RUNS_IN_A_CHUNK = 64


def provenance() -> dict[str, Any]:
    """What a result depends on beside its settings: versions, device, revision, command."""
    packages = ("bpresearch", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind} ({jax.default_backend()})",
        "git_revision": git_revision(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "unknown"


def git_revision() -> str:
    """The revision of the source tree that is running, "+changes" if it differs from it, or "unknown"."""
    here = Path(__file__).parent
    try:
        describe = [
            "git",
            "-C",
            str(here),
            "describe",
            "--always",
            "--dirty=+changes",
            "--abbrev=12",
        ]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds a workdir for this process; a second process is refused."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = open(workdir / "lock", "w")  # noqa: SIM115
    except OSError as error:
        raise ValueError(f"--workdir={workdir}: cannot write there ({error.strerror})") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"--workdir={workdir} is in use by another process") from error
        yield


def open_store(workdir: Path, config: dict[str, Any], template: xr.Dataset) -> xr.Dataset:
    """The results so far: those of the workdir if its configuration is this one, or an empty store.

    Args:
        workdir: the folder.
        config: what the results depend on; compared with that of a folder that holds results.
        template: the whole results with NaN for what is to come.

    Raises:
        ValueError: the folder holds results of another configuration, or cannot be read.
    """
    path, zarr = workdir / "config.json", workdir / "results.zarr"
    if not path.exists():
        if zarr.exists():
            raise ValueError(
                f"--workdir={workdir} holds results.zarr without config.json; take another folder"
            )
        write_text(path, json.dumps({"experiment": config, "provenance": provenance()}, indent=2))
    try:
        found = json.loads(path.read_text())["experiment"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"--workdir={workdir}: config.json cannot be read; take another folder") from error
    if difference := _difference(found, json.loads(json.dumps(config))):
        raise ValueError(
            f"--workdir={workdir} holds a sweep with other settings ({difference}); take another folder"
        )
    if not zarr.exists():
        _create(zarr, template)
    try:
        return xr.open_zarr(zarr, consolidated=False).load()
    except Exception as error:  # zarr and its codecs raise errors of many types on damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"--workdir={workdir}: results.zarr cannot be read ({reason}); take another folder"
        ) from error


def _create(zarr: Path, template: xr.Dataset) -> None:
    """Writes the empty store whole or not at all."""
    unfinished = zarr.with_name("results.zarr.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    encoding = {
        name: {"chunks": (min(RUNS_IN_A_CHUNK, variable.shape[0]), *variable.shape[1:])}
        for name, variable in template.data_vars.items()
    }
    template.to_zarr(unfinished, mode="w", encoding=encoding, consolidated=False)
    unfinished.rename(zarr)


def write_runs(workdir: Path, results: xr.Dataset, runs: slice) -> None:
    """Writes the variables of some runs; `finished` last, so that a kill leaves them to be done again."""
    part = results.isel(run=runs).drop_vars([name for name in results.coords])
    for names in ([n for n in part.data_vars if n != "finished"], ["finished"]):
        part[names].to_zarr(
            workdir / "results.zarr",
            region={"run": runs},
            consolidated=False,
            safe_chunks=False,
        )


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _difference(found: Any, asked: Any, path: str = "") -> str:
    """The first place where two configurations differ, in words; empty if they are equal."""
    if isinstance(found, dict) and isinstance(asked, dict):
        for name in sorted({*found, *asked}):
            inner = f"{path}.{name}" if path else name
            if text := _difference(found.get(name), asked.get(name), inner):
                return text
        return ""
    if found == asked:
        return ""
    return f"{path}: {_brief(found)} there, {_brief(asked)} here"


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def empty(runs: int, steps: int, eval_steps: np.ndarray, metrics: list[str]) -> dict[str, Any]:
    """The variables of the results with NaN for what is to come."""
    nan = np.float32(np.nan)
    curves = {name: (("run", "eval_step"), np.full((runs, len(eval_steps)), nan)) for name in metrics}
    return {
        "train_loss": (("run", "step"), np.full((runs, steps), nan)),
        **curves,
        "diverged_at": ("run", np.full(runs, -1, np.int32)),
        "finished": ("run", np.zeros(runs, bool)),
    }
