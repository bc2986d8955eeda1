"""Where programs run, and in which number format: to be settled before JAX starts."""

import contextlib
import gc
import hashlib
import os
import platform as machine
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.extend.backend import clear_backends

PLATFORMS = ("cpu", "gpu", "tpu")
XLA_OPTIONS = {
    "xla_cpu_multi_thread_eigen": "false",  # one run per core beats many cores per product
    "xla_gpu_deterministic_ops": "true",  # the same bits in every call and after every compile
}
"""Options of XLA, unless the environment's XLA_FLAGS sets them."""
T = TypeVar("T")
DTYPES = {"float32": jnp.float32, "float64": jnp.float64, "bfloat16": jnp.bfloat16}


def start(platform: str | None = None, precision: str = "float32", cpu_devices: int | None = None) -> None:
    """Starts JAX on a platform.

    Args:
        platform: "cpu", "gpu" or "tpu"; None takes the best that the machine has.
        precision: "float32", "float64" or "bfloat16", the format of parameters, data and arithmetic. It
            turns 64-bit types on where it needs them, and keeps the products of float32 matrices in
            float32 where an accelerator would round their factors to shorter formats.
        cpu_devices: number of devices that the CPU shows, each with a thread of its own; default: one for
            each core that this process may use.

    Raises:
        ValueError: the machine lacks the platform, or JAX has already started on another.
    """
    if precision not in DTYPES:
        raise ValueError(f"--precision={precision} is not one of {', '.join(DTYPES)}")
    if platform not in (None, *PLATFORMS):
        raise ValueError(f"--platform={platform} is not one of {', '.join(PLATFORMS)}")
    for name, value in XLA_OPTIONS.items():
        flags = os.environ.get("XLA_FLAGS", "")
        if name not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()
    if platform == "cpu":
        choose(platform)
    _keep_programs()
    with contextlib.suppress(RuntimeError):  # JAX has started: a notebook keeps the devices it has
        jax.config.update("jax_num_cpu_devices", cpu_devices or available_cores())
    jax.config.update("jax_enable_x64", precision == "float64")
    if precision == "float32":
        jax.config.update("jax_default_matmul_precision", "float32")
    platforms = sorted({device.platform for device in jax.devices()})
    if platform and platform not in platforms:
        raise ValueError(f"--platform={platform}: this machine has {', '.join(platforms)}")
    gc.freeze()  # imported modules stay: each search for garbage among them would take 0.15 s


def choose(platform: str) -> None:
    """Takes the CPU although the machine has more; other platforms are found by themselves."""
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the processes that compute together, before or after `start`; if they are joined, does nothing.

    Where JAX has started before, it starts anew: arrays that were made before are not to be used any more.

    Where one of them ends before the others, JAX's runtime ends these too, within half a minute.

    Args:
        coordinator: address of process 0 as HOST:PORT. On Slurm, Kubernetes, Open MPI and Cloud TPU, None:
            JAX finds it, and the numbers, by itself.
        processes: how many there are.
        process: the number of this one, from 0.

    Raises:
        ValueError: no cluster is found, or the others do not come.
    """
    if jax.distributed.is_initialized():
        return
    clear_backends()
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM, which stops a sweep
    try:
        jax.distributed.initialize(
            coordinator, processes, process, initialization_timeout=120, heartbeat_timeout_seconds=20
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--distributed: {reason} Give --coordinator=HOST:PORT, --processes and --process"
        ) from error


def _keep_programs() -> None:
    """Keeps compiled programs between processes, in a folder for this kind of processor, unless JAX is told
    where: in JAX_COMPILATION_CACHE_DIR."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    processor = machine.machine() + machine.processor()
    with contextlib.suppress(OSError):  # Linux has more: a program may use instructions that others lack
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor += "".join(sorted({line for line in lines if line.startswith(("flags", "model name"))}))
    folder = cache_folder() / f"programs-{hashlib.sha256(processor.encode()).hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)  # they load in 0.01


def cache_folder() -> Path:
    """Where this project keeps what it can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bpresearch"


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


SETTINGS: dict[str, Callable[..., contextlib.AbstractContextManager[object]]] = {
    "jax_debug_infs": jax.debug_infs,
    "jax_debug_nans": jax.debug_nans,
    "jax_default_device": jax.default_device,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_default_prng_impl": jax.default_prng_impl,
    "jax_enable_x64": jax.enable_x64,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
    "jax_threefry_partitionable": jax.threefry_partitionable,
}
"""What a `with` of JAX's sets, for its own thread alone, that changes what a program computes."""


def with_these_settings(function: Callable[..., T]) -> Callable[..., T]:
    """The function for another thread, in which JAX's settings are those of this one.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> with ThreadPoolExecutor(1) as pool, jax.enable_x64(True):
    ...     one_half = bp.platform.with_these_settings(lambda: jnp.asarray(0.5).dtype.name)
    ...     pool.submit(one_half).result()
    'float64'
    """
    settings = {name: getattr(jax.config, name) for name in SETTINGS}

    def run(*args: object) -> T:
        with contextlib.ExitStack() as stack:
            for name, value in settings.items():
                stack.enter_context(SETTINGS[name](value))
            return function(*args)

    return run
