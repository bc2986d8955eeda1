"""The compiled programs that train a population.

A population's runs are spread over all devices. On the CPU each device, one core, takes its runs one after
another (`lax.map`), which keeps a run's arrays in the core's cache and gives each run exactly the numbers
it would get alone; on an accelerator each takes all of its runs at once (`vmap`).

A run's steps are cut into parts, short enough for several to make a chunk, after which the program returns
to the host. Every chunk of a sweep is a call of the same program.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.grid import Settings, constants, scheduled
from bpresearch.train import Measured, Moment, Run, evaluate, start, train

RUNS, EVERYWHERE = PartitionSpec("runs"), PartitionSpec()
BLOCK = 16
"""Runs that an accelerator trains at once are padded to a multiple of this."""


class Population(NamedTuple):
    """The programs of one group of runs, and where their arrays live.

    Attributes:
        start: `(seeds, hyperparameters) -> runs` before the first step.
        advance: `(runs, inputs, common) -> runs, losses, metrics` after one chunk; see `Inputs`, `Common`.
        size: number of runs, padding included.
        runs, everywhere: shardings of arrays with one row for each run, and of common arrays.
    """

    start: Callable[..., Any]
    advance: Callable[..., Any]
    size: int
    runs: NamedSharding
    everywhere: NamedSharding


class Inputs(NamedTuple):
    """What one chunk takes for each run: arrays whose first axis is the run."""

    seeds: Any
    slots: Any
    """The run meets the batches `orders[slot]`."""
    scheduled: Any
    """Hyper-parameters with a value for each step: (runs, parts, steps of a part)."""
    hyperparameters: Any


class Common(NamedTuple):
    """What one chunk takes for all runs: each part's first and last step, batches, and the data."""

    first: Any
    last: Any
    evaluation: Any
    orders: Any
    """(seeds, parts, steps of a part, batch)"""
    data: Any


def padded_size(runs: int, devices: int, on_cpu: bool) -> int:
    """Runs including padding: at least two for each device, and as many on each.

    With one run for a device, the compiler would do away with the loop over runs, and fuse differently:
    the same run would not give the same bits.
    """
    share = max(2, -(-runs // devices))
    return devices * (share if on_cpu else BLOCK * -(-share // BLOCK))


def population(
    experiment: Experiment, settings: list[Settings], data: dict[str, Any], size: int, seeds: int
) -> Population:
    """Compiles the programs for `size` runs of one group with `seeds` seeds among them."""
    devices = jax.devices()
    on_cpu = devices[0].platform == "cpu"
    mesh = Mesh(np.array(devices), ("runs",))
    size = padded_size(size, len(devices), on_cpu)
    each = partial(jax.lax.map, batch_size=None) if on_cpu else _vmap
    training = experiment.training(settings[0])

    def start_all(seeds, hyperparameters):
        return each(lambda one: start(training, *one), (seeds, hyperparameters))

    def advance_all(runs, inputs, common):
        return each(lambda one: advance(experiment, training, one[0], one[1], common), (runs, inputs))

    runs, everywhere = NamedSharding(mesh, RUNS), NamedSharding(mesh, EVERYWHERE)
    shard = partial(jax.shard_map, mesh=mesh, out_specs=RUNS, check_vma=False)
    first_program = jax.jit(shard(start_all, in_specs=(RUNS, RUNS)))
    program = jax.jit(shard(advance_all, in_specs=(RUNS, RUNS, EVERYWHERE)), donate_argnums=0)

    keys, hyper, inputs, common = shapes(experiment, settings[0], data, size, seeds)

    def placed(tree: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)

    keys, hyper, inputs = placed((keys, hyper, inputs), runs)
    common = placed(common, everywhere)
    begin = first_program.lower(keys, hyper)
    state = placed(jax.eval_shape(first_program, keys, hyper), runs)
    return Population(begin.compile(), program.lower(state, inputs, common).compile(), size, runs, everywhere)


def shapes(
    experiment: Experiment, settings: Settings, data: dict[str, Any], size: int, seeds: int
) -> tuple[Any, dict[str, Any], Inputs, Common]:
    """Shapes of the programs' inputs: seeds, the hyper-parameters at the start, and a chunk's."""
    parts, steps = experiment.parts_in_a_chunk, experiment.steps_in_a_part

    def shape(*dimensions: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dimensions, dtype)

    keys = shape(size, dtype=jnp.uint32)
    fixed = {name: shape(size) for name in constants(settings)}
    tables = {name: shape(size, parts, steps) for name in scheduled(settings)}
    inputs = Inputs(keys, shape(size, dtype=jnp.int32), tables, fixed)
    number, flag = shape(parts, dtype=jnp.int32), shape(parts, dtype=jnp.bool_)
    orders = shape(seeds, parts, steps, settings["batch_size"], dtype=jnp.int32)
    common = Common(
        number, number, flag, orders, jax.tree.map(lambda a: shape(*a.shape, dtype=a.dtype), data)
    )
    return keys, fixed | {name: shape(size) for name in tables}, inputs, common


def advance(experiment: Experiment, training: Any, run: Run, inputs: Inputs, common: Common):
    """One run over the parts of a chunk: the run after them, its losses, and what was measured."""

    def part(run: Run, one: tuple[Any, ...]):
        first, last, evaluation, order, values = one
        now = {name: value[0] for name, value in values.items()} | inputs.hyperparameters
        moment = Moment(training, run, inputs.seeds, first - 1, common.data["train"], order[0], now)

        def measured() -> dict[str, jax.Array]:
            return {name: result.values for name, result in measure(experiment, moment, common.data).items()}

        nothing = jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan, a.dtype), jax.eval_shape(measured))
        metrics = jax.lax.cond(evaluation, measured, lambda: nothing)
        run, losses = jax.lax.cond(
            first <= last,
            lambda run: train(
                training, run, common.data["train"], order, values, inputs.hyperparameters, first, last
            ),
            lambda run: (run, jnp.full(order.shape[0], jnp.nan)),
            run,
        )
        return run, (losses, metrics)

    orders = common.orders[inputs.slots]
    scanned = (common.first, common.last, common.evaluation, orders, inputs.scheduled)
    run, (losses, metrics) = jax.lax.scan(part, run, scanned)
    return run, losses, metrics


def measure(experiment: Experiment, moment: Moment, data: dict[str, Any]) -> dict[str, Measured]:
    """A run's losses and accuracies on the held-out parts, and its diagnostics; NaN once it has diverged."""
    held_out = {name: part for name, part in data.items() if name != "train"}
    found = {
        f"{name}_{metric}": Measured(value)
        for name, part in held_out.items()
        for metric, value in evaluate(moment.training, moment.run, part).items()
    }
    healthy = moment.run.diverged_at < 0
    for diagnostic in experiment.diagnostics:
        for name, result in diagnostic(moment).items():
            values = jnp.where(healthy, result.values.astype(jnp.float32), jnp.nan)
            found[name] = Measured(values, result.coordinates)
    return found


def measured_variables(
    experiment: Experiment, settings: Settings, data: dict[str, Any]
) -> dict[str, Measured]:
    """What an evaluation of these runs gives, without computing it: shapes in place of the values."""
    training = experiment.training(settings)
    keys, hyper, _, common = shapes(experiment, settings, data, 1, 1)
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (keys, hyper))
    coordinates: dict[str, dict[str, Any]] = {}

    def values(key, hyperparameters, index, data):
        run = start(training, key, hyperparameters)
        rates = {"learning_rate": jnp.float32(0)} | hyperparameters
        moment = Moment(training, run, key, jnp.int32(0), data["train"], index, rates)
        found = measure(experiment, moment, data)
        coordinates.update({name: result.coordinates for name, result in found.items()})
        return {name: result.values for name, result in found.items()}

    index = jax.ShapeDtypeStruct(common.orders.shape[3:], common.orders.dtype)
    found = jax.eval_shape(values, *one, index, common.data)
    return {name: Measured(found[name], coordinates[name]) for name in found}


def _vmap(function: Callable[..., Any], inputs: Any) -> Any:
    return jax.vmap(function)(inputs)
