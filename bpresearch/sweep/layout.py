"""How runs are laid out on the devices: how many each takes at a time, how many a program has room for."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import PyTree

from bpresearch.functional import split
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.options import Settings
from bpresearch.sweep.population import Population, population

RUNS_IN_A_BLOCK = 128
"""Runs that are trained together, unless memory allows fewer."""
LAYOUTS, SHARDS = ("auto", "map", "vmap"), ("runs", "data")
CPU_WIDTH, ACCELERATOR_WIDTH = 16, 256
"""Runs that a device takes at a time by `vmap`, at most."""
SMALL = 1.5e6
"""Products of a step, 6 x parameters x batch, up to which `vmap` is faster on the CPU. Measured on MNIST-1D,
two cores: runs a second of width 16 against width 1 are 1.5 at 0.1e6 (linear: 1.4 at 0.2e6), 1.3 at 0.5e6,
1.1 at 1.5e6, 0.7 at 9e6. It is a constant, not measured anew by each sweep, so that the same run has the same
layout, and the same bits, in every sweep."""
ENOUGH = 1e11
"""Products of a step of all runs together that keep an accelerator busy: larger models are taken fewer at a
time. Measured on one H100, steps a second: perceptrons of 9e6 products 74,000 at width 16, 228,000 at 64,
529,000 at 256 and 861,000 at 1,024, which would be slower for sweeps of fewer runs; perceptrons of 1.7e9
products 1,500 at width 1, 7,400 at 8 and 14,800 at 64."""


def planned(
    experiment: Experiment, settings: list[Settings], data: dict[str, PyTree], *how: Any, **options: Any
) -> Population:
    """The programs for the runs of one group, as `laid_out` has them, in the experiment's format."""
    with experiment.in_format():
        return laid_out(experiment, settings, data, *how, **options)


def laid_out(
    experiment: Experiment,
    settings: list[Settings],
    data: dict[str, PyTree],
    layout: str = "auto",
    memory_fraction: float = 0.6,
    shard: str = "runs",
    available: float | int | None = None,
    beside: Sequence[Settings] = (),
) -> Population:
    """The programs for the runs of one group, with room for as many as memory allows: a fraction of what is
    `available`, in bytes, or else of `memory()`. There is room for those `beside` in their place, too.

    The room is a power of two for each device, so that sweeps of other sizes find the program in JAX's
    compilation cache.

    Raises:
        ValueError: not even the smallest number of runs fits into memory, or batches do not divide into
            parts for each device.
    """
    devices = len(jax.devices())
    if shard == "data":
        if settings[0]["batch_size"] % devices:
            raise ValueError(
                f"--shard=data: --batch_size={settings[0]['batch_size']} does not divide by the {devices} "
                f"devices: take a multiple of {devices}"
            )
        devices, layout = 1, "map"
    width = width_of(experiment, settings[0], layout)
    least = devices * width
    size = least
    while size < min(max(len(settings), len(beside)), RUNS_IN_A_BLOCK):
        size *= 2
    different = max(len({s["seed"] for s in runs}) for runs in (settings, beside))
    available = memory() if available is None else available
    budget = memory_fraction * available
    while True:
        seeds = min(size, 1 << (different - 1).bit_length())
        program = population(experiment, settings[0], data, size, seeds, width, shard)
        if (need := memory_of(program)) <= budget:
            return program
        if size == least:
            raise ValueError(
                f"--memory_fraction={memory_fraction:g}: {size} runs at a time take {need / 2**30:.2f} GiB, "
                f"and {budget / 2**30:.2f} of {available / 2**30:.2f} GiB are allowed: take a larger "
                f"fraction, a smaller model or a smaller batch{'' if width == 1 else ', or --layout=map'}"
            )
        size = max(least, size // 2)


def width_of(experiment: Experiment, settings: Settings, layout: str) -> int:
    """Runs that a device takes at a time."""
    training = experiment.training(settings)
    params = jax.eval_shape(lambda: split(training.model(nnx.Rngs(0)))[1])
    products = 6.0 * sum(leaf.size for leaf in jax.tree.leaves(params)) * settings["batch_size"]
    on_cpu = jax.default_backend() == "cpu"
    if layout == "map" or (layout == "auto" and on_cpu and products > SMALL):
        return 1
    return CPU_WIDTH if on_cpu else accelerator_width(products)


def accelerator_width(products: float) -> int:
    """The power of two, up to 256, with which an accelerator has enough to do.

    >>> accelerator_width(9e6), accelerator_width(1e9), accelerator_width(1e11)
    (256, 64, 1)
    """
    room = ENOUGH / products
    return 2 ** int(math.log2(min(max(room, 1), ACCELERATOR_WIDTH)))


def memory() -> int:
    """Bytes of memory that programs may share: of all local devices together, or what the host has left."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(of_device and "bytes_limit" in of_device for of_device in stats):
        return sum(of_device["bytes_limit"] for of_device in stats if of_device)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_of(program: Population) -> int:
    """Bytes that a call of the program needs on all devices of this process, by XLA's account."""
    analysis = program.advance.memory_analysis()  # type: ignore[attr-defined]
    each = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
    return (each - analysis.alias_size_in_bytes) * len(program.runs.mesh.local_devices)
