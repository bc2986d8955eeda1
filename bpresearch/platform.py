"""Where programs run, and in which number format: to be settled before JAX starts."""

import contextlib
import os

import jax
import jax.numpy as jnp

PLATFORMS = ("cpu", "gpu", "tpu")
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
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in flags:  # one run per core beats many cores per product
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # JAX has started: a notebook keeps the devices it has
        jax.config.update("jax_num_cpu_devices", cpu_devices or available_cores())
    jax.config.update("jax_enable_x64", precision == "float64")
    if precision == "float32":
        jax.config.update("jax_default_matmul_precision", "float32")
    found = sorted({device.platform for device in jax.devices()})
    if platform and platform not in found:
        raise ValueError(f"--platform={platform}: this machine has {', '.join(found)}")


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
