"""The state of the runs that are being trained, on disk: what `results.zarr` lacks to go on from there.

One checkpoint is kept, written by Orbax beside the one before and renamed when it is whole.
"""

import hashlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpresearch.sweep.processes import agreed, fetch, place


def save(workdir: Path | None, state: PyTree, rows: np.ndarray, step: int) -> None:
    """Saves the state of a block's runs after `step` steps, in place of any checkpoint before it.

    All processes call it; the one that has the workdir writes.
    """
    leaves = {str(number): plain(leaf) for number, leaf in enumerate(jax.tree.leaves(state))}
    if workdir is None:
        return
    what = {"rows": rows.tolist(), "step": step, "sha256": _digest(leaves)}
    folder = workdir / "checkpoints"
    before = list(folder.iterdir()) if folder.exists() else []
    name = f"{int(rows[0])}-{step}"
    shutil.rmtree(folder / name, ignore_errors=True)
    import orbax.checkpoint as ocp  # half a second, and a short sweep needs none of it

    arguments = ocp.args.Composite(state=ocp.args.StandardSave(leaves), what=ocp.args.JsonSave(what))
    with _checkpointer() as checkpointer:
        try:
            checkpointer.save((folder / name).absolute(), args=arguments)
        except Exception as error:  # Orbax's storage has errors of its own for a full disk, say
            for cut_short in folder.glob(f"{name}.*"):
                shutil.rmtree(cut_short, ignore_errors=True)
            if isinstance(error, OSError):
                raise
            system = re.search(r"os_error_code='(\d+)'", str(error))
            raise OSError(os.strerror(int(system[1])) if system else _line(error)) from error
    for old in before:
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)


def resumed(workdir: Path | None, state: PyTree, rows: np.ndarray) -> tuple[PyTree, int]:
    """The state of these runs from the checkpoint and the number of steps behind them, in all processes.

    Without one, `state`, as it is before the first step.
    """
    checkpoint = restore(workdir, state, rows) if workdir else None
    step = int(agreed(np.array(checkpoint[1] if checkpoint else 0)))
    if not step:
        return state, 0
    leaves, tree = jax.tree.flatten(state)
    read = agreed(checkpoint[0] if checkpoint else [_blank(leaf) for leaf in leaves])
    shardings = [leaf.sharding for leaf in leaves]
    whole = zip(read, leaves, shardings, strict=True)
    return jax.tree.unflatten(tree, [as_before(place(a, s), leaf) for a, leaf, s in whole]), step


def restore(workdir: Path, state: PyTree, rows: np.ndarray) -> tuple[list[np.ndarray], int] | None:
    """The leaves of these runs' state, as `plain` gives them, and the number of steps behind them.

    None if there is no such checkpoint.

    Args:
        workdir: the folder.
        state: arrays, or their shapes, of the runs' state before the first step.
        rows: which runs.

    Raises:
        ValueError: there is one, and it is damaged.
    """
    folder = workdir / "checkpoints"
    folders = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime) if folder.exists() else []
    whole = [path for path in folders if path.name.replace("-", "").isdigit()]  # others were cut short
    if not whole:
        return None
    try:
        with _checkpointer() as checkpointer:
            read = checkpointer.restore(whole[-1].absolute())
        leaves, what = read["state"], read["what"]
        sound = what["sha256"] == _digest(leaves)
    except Exception as error:  # many types, from Orbax and from the libraries under it
        raise ValueError(_damaged(workdir, whole[-1], _line(error))) from error
    if not sound:
        raise ValueError(_damaged(workdir, whole[-1], "its checksum is wrong"))
    expected = jax.tree.leaves(state)
    if what["rows"] != rows.tolist() or len(leaves) != len(expected):
        return None
    ordered = [leaves[str(number)] for number in range(len(expected))]
    if any(new.shape[: old.ndim] != old.shape for new, old in zip(ordered, expected, strict=True)):
        return None
    return ordered, what["step"]


def discard(workdir: Path) -> None:
    """Removes the checkpoint: its runs have finished."""
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)


def _checkpointer() -> Any:
    """Orbax's, for this process alone: without its options it waits for all processes of a sweep."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells of every step, and twice of errors
    number = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=number, active_processes={number}, barrier_sync_key_prefix=f"process_{number}"
    )
    state = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    what = ocp.JsonCheckpointHandler(multiprocessing_options=alone)
    both = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone), state=state, what=what
    )
    return ocp.Checkpointer(both, multiprocessing_options=alone)


def plain(leaf: jax.Array) -> np.ndarray:
    """A copy on the host; of a random key, its data."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.array(fetch(leaf))


def _blank(leaf: jax.Array) -> np.ndarray:
    """Zeros of the form that `plain` gives, without asking the other processes for a leaf's values."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return np.zeros(leaf.shape, leaf.dtype)


def as_before(array: jax.Array, leaf: jax.Array) -> jax.Array:
    """What `plain` made of a leaf, as an array of the leaf's kind."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array))
    return array


def _digest(leaves: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for number in sorted(leaves, key=int):
        digest.update(np.ascontiguousarray(leaves[number]).tobytes())
    return digest.hexdigest()


def _damaged(workdir: Path, path: Path, reason: str) -> str:
    return (
        f"--workdir={workdir}: the checkpoint {path.name} cannot be read ({reason}); "
        f"without {path}, its runs start again from their first step"
    )


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
