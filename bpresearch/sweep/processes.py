"""One sweep on many machines: every process runs the same program text, the first one keeps the results."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jaxtyping import PyTree


def leads() -> bool:
    """Whether this is the process that reads and writes the workdir."""
    return jax.process_index() == 0


def place(values: PyTree, sharding: NamedSharding) -> PyTree:
    """Arrays, the same in every process, on the devices of all processes."""
    if sharding.is_fully_addressable:
        return jax.device_put(values, sharding)
    whole = jax.tree.map(np.asarray, values)
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]), whole
    )


def fetch(array: jax.Array) -> np.ndarray:
    """The whole array on the host, in every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def agreed(values: PyTree) -> PyTree:
    """The first process's values, in every process."""
    if jax.process_count() == 1:
        return values
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(values))


def told(make: Callable[[], object]) -> Any:
    """What `make` gives in the first process, where alone it is called, in every process.

    Between processes it travels as JSON.

    Raises:
        ValueError: in the other processes, if `make` raises an error.
    """
    if jax.process_count() == 1:
        return make()
    text = b""
    failed: BaseException | None = None
    if leads():
        try:
            text = json.dumps(make()).encode()
        except BaseException as error:  # Ctrl-C too: the others must not wait for what does not come
            failed = error
    size = int(agreed(np.array(-1 if failed else len(text), np.int32)))
    if failed:
        raise failed
    if size < 0:
        raise ValueError("the first process cannot go on; its message says why")
    letters = np.frombuffer(text, np.uint8) if leads() else np.zeros(size, np.uint8)
    return json.loads(agreed(letters).tobytes())


def least(value: float | int) -> float | int:
    """The smallest of the processes' values, in every process."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.process_allgather(np.array(value, np.float32)).min())


def anywhere(*conditions: bool) -> list[bool]:
    """For each condition, whether it holds in some process."""
    if jax.process_count() == 1:
        return list(conditions)
    return multihost_utils.process_allgather(np.array(conditions)).any(axis=0).tolist()
