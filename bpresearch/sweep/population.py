"""The compiled programs that train a population.

A population's runs are spread over all devices. On the CPU each device, one core, takes its runs one after
another (`lax.map`), which keeps a run's arrays in the core's cache and gives each run exactly the numbers
it would get alone; on an accelerator each takes all of its runs at once (`vmap`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bpresearch.optim import hyperparameters
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.grid import Settings
from bpresearch.train import Run, evaluate, start, train

RUNS, EVERYWHERE = PartitionSpec("runs"), PartitionSpec()
BLOCK = 16
"""Runs that an accelerator trains at once are padded to a multiple of this."""


class Population(NamedTuple):
    """The programs of one group of runs, and where their arrays live.

    Attributes:
        start: `(seeds, hyperparameters, parts) -> runs, metrics` before the first step.
        advance: `(runs, orders, slots, rates, hyperparameters, parts, first, last) -> runs, losses, metrics`
            after the steps in `rates`; run i meets the batches `orders[slots[i]]`.
        size: number of runs, padding included.
        runs, everywhere: shardings of arrays with one row for each run, and of common arrays.
    """

    start: Callable[..., Any]
    advance: Callable[..., Any]
    size: int
    runs: NamedSharding
    everywhere: NamedSharding


def padded_size(runs: int, devices: int, on_cpu: bool) -> int:
    """Runs including padding: at least two for each device, and as many on each.

    With one run for a device, the compiler would do away with the loop over runs, and fuse differently:
    the same run would not give the same bits.
    """
    share = max(2, -(-runs // devices))
    return devices * (share if on_cpu else BLOCK * -(-share // BLOCK))


def population(
    experiment: Experiment, settings: list[Settings], parts: dict[str, Any], size: int, seeds: int
) -> Population:
    """Compiles the programs for `size` runs of one optimizer and batch size with `seeds` seeds among them."""
    devices = jax.devices()
    on_cpu = devices[0].platform == "cpu"
    mesh = Mesh(np.array(devices), ("runs",))
    training = experiment.training(settings[0]["optimizer"])
    size = padded_size(size, len(devices), on_cpu)
    each = partial(jax.lax.map, batch_size=None) if on_cpu else _vmap

    def metrics(run: Run, parts: dict[str, Any]) -> dict[str, jax.Array]:
        held_out = {name: part for name, part in parts.items() if name != "train"}
        return {
            f"{name}_{metric}": value
            for name, part in held_out.items()
            for metric, value in evaluate(training, run, part).items()
        }

    def start_one(inputs, parts):
        run = start(training, *inputs)
        return run, metrics(run, parts)

    def advance_one(inputs, orders, parts, first, last):
        run, slot, rates, hyperparameters = inputs
        run, losses = train(training, run, parts["train"], orders[slot], rates, hyperparameters, first, last)
        return run, losses, metrics(run, parts)

    def start_all(seeds, hyperparameters, parts):
        return each(lambda inputs: start_one(inputs, parts), (seeds, hyperparameters))

    def advance_all(runs, slots, rates, hyperparameters, orders, parts, first, last):
        inputs = (runs, slots, rates, hyperparameters)
        return each(lambda one: advance_one(one, orders, parts, first, last), inputs)

    runs, everywhere = NamedSharding(mesh, RUNS), NamedSharding(mesh, EVERYWHERE)
    shard = partial(jax.shard_map, mesh=mesh, out_specs=RUNS, check_vma=False)
    first_program = jax.jit(shard(start_all, in_specs=(RUNS, RUNS, EVERYWHERE)))
    common = (EVERYWHERE,) * 4
    program = jax.jit(shard(advance_all, in_specs=(RUNS,) * 4 + common), donate_argnums=0)

    def shape(*dimensions: int, dtype: Any = jnp.float32, sharding: Any = runs) -> Any:
        return jax.ShapeDtypeStruct(dimensions, dtype, sharding=sharding)

    every, batch = experiment.eval_every, settings[0]["batch_size"]
    names = hyperparameter_names(settings)
    keys, hyper = shape(size, dtype=jnp.uint32), {name: shape(size) for name in names}
    parts = jax.tree.map(lambda a: shape(*a.shape, dtype=a.dtype, sharding=everywhere), parts)
    begin = first_program.lower(keys, hyper, parts)
    state = jax.tree.map(
        lambda a: shape(*a.shape, dtype=a.dtype),
        jax.eval_shape(first_program, keys, hyper, parts)[0],
    )
    scalar = shape(dtype=jnp.int32, sharding=everywhere)
    orders = shape(seeds, every, batch, dtype=jnp.int32, sharding=everywhere)
    advance = program.lower(
        state,
        shape(size, dtype=jnp.int32),
        shape(size, every),
        hyper,
        orders,
        parts,
        scalar,
        scalar,
    )
    return Population(begin.compile(), advance.compile(), size, runs, everywhere)


def hyperparameter_names(settings: list[Settings]) -> list[str]:
    """The axes that are hyper-parameters of these runs' optimizer."""
    return [name for name in hyperparameters(settings[0]["optimizer"]) if name in settings[0]]


def _vmap(function: Callable[..., Any], inputs: Any) -> Any:
    return jax.vmap(function)(inputs)
