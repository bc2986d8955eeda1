"""The compiled programs that train a population.

A population's runs are spread over all devices; each device takes `width` of them at a time, by `vmap`, until
it has done its share. On the CPU a width of 1 keeps a run's arrays in the core's cache and gives each run
exactly the numbers it would get alone. With a larger width a run's last bits depend on the width, not on the
other runs; so the width never depends on how many runs there are, and places left over are filled up.

How many places hold a run is an input of the program, so a program serves any number of runs that it has
room for, and never compiles its loop over runs away when there is one.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import PyTree

from bpresearch.evaluation import evaluate
from bpresearch.jaxprs import traced
from bpresearch.same_bits import blank
from bpresearch.sweep.experiment import Experiment
from bpresearch.sweep.options import Settings, constants, scheduled
from bpresearch.train import Chunk, Measured, Moment, make_run, next_step, start

RUNS, EVERYWHERE = PartitionSpec("devices"), PartitionSpec()
BATCHES = PartitionSpec(None, None, None, "devices")
SHARED_STEP = 25
"""Up to so many steps between evaluations, training takes over the step that the diagnostics looked at."""

TRACING = threading.Lock()
"""Programs are traced one after another, by Python, and compiled at the same time: so the first is ready, and
trains, as early as it can."""


class Population(NamedTuple):
    """The programs of one group of runs, and where their arrays live.

    Attributes:
        start: `(counts, seeds, hyperparameters) -> runs` before the first step.
        advance: `(counts, runs, inputs, common) -> runs, losses, metrics` after one chunk; see `Inputs`,
            `Common`. `counts` is how many runs each device has.
        size: room for runs, on all devices together.
        seeds: room for different seeds.
        width: runs that a device takes at a time.
        runs, everywhere, orders: shardings of arrays with one row for each run, of common arrays, and of the
            batches among those.
    """

    start: Callable[..., PyTree]
    advance: Callable[..., PyTree]
    size: int
    seeds: int
    width: int
    runs: NamedSharding
    everywhere: NamedSharding
    orders: NamedSharding

    def has_room_for(self, settings: list[Settings]) -> bool:
        """Whether any of these runs can be trained together."""
        return len({run["seed"] for run in settings}) <= self.seeds or self.seeds == self.size

    def places(self, runs: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of `runs` runs in arrays of `size` rows, and how many each device has.

        Each device has rows that follow each other; runs are dealt to devices `width` at a time. With each
        run spread over all devices, they count as one.
        """
        devices = self.runs.mesh.size if self.runs.spec == RUNS else 1
        run = np.arange(runs)
        device = run // self.width % devices
        within = run // (self.width * devices) * self.width + run % self.width
        return device * (self.size // devices) + within, np.bincount(device, minlength=devices)


class Inputs(NamedTuple):
    """What one chunk takes for each run: arrays whose first axis is the run."""

    seeds: PyTree
    order: PyTree
    """The run meets the batches `orders[order]`."""
    scheduled: dict[str, PyTree]
    """Hyper-parameters with a value for each step: (runs, segments, steps of a segment)."""
    hyperparameters: dict[str, PyTree]


class Common(NamedTuple):
    """What one chunk takes for all runs: each segment's first and last step, batches, and the data."""

    first: PyTree
    last: PyTree
    evaluation: PyTree
    orders: PyTree
    """(seeds, segments, steps of a segment, batch)"""
    data: dict[str, PyTree]


def population(
    experiment: Experiment,
    settings: Settings,
    data: dict[str, PyTree],
    size: int,
    seeds: int,
    width: int,
    spread: str = "runs",
) -> Population:
    """Compiles the programs for `size` runs of one group, a multiple of the devices times `width`.

    With `spread="data"` all devices train the same run, each on its part of every batch; the compiler adds
    the sums over devices that make its gradients, losses and batch statistics those of the whole batch.
    """
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    everywhere = NamedSharding(mesh, EVERYWHERE)
    runs = NamedSharding(mesh, RUNS) if spread == "runs" else everywhere
    split_batches = everywhere if spread == "runs" else NamedSharding(mesh, BATCHES)
    training = experiment.training(settings)
    programs = make_run(
        training,
        lambda moment, data: values_of(measure(experiment, moment, data)),
        shared=experiment.steps_in_a_segment <= SHARED_STEP,
        alone=width == 1,
    )

    def start_all(counts, seeds, hyperparameters):
        inputs = (seeds, hyperparameters)
        start_one, row_shapes = traced(programs.start, *rows_of(inputs))
        return each(
            lambda _, row: start_one(*row), 1, counts[0], blank(rows_of(row_shapes, len(seeds))), inputs
        )

    def advance_all(counts, runs, inputs, common):
        def advance_one(run, inputs):
            order = common.orders[inputs.order]
            chunk = Chunk(inputs.seeds, common.first, common.last, common.evaluation, order, *inputs[2:])
            return programs.advance(run, chunk, common.data)

        advance_one, row_shapes = traced(advance_one, *rows_of((runs, inputs)))
        return each(
            lambda carried, row: advance_one(carried[0], row),
            width,
            counts[0],
            (runs, *blank(rows_of(row_shapes[1:], len(inputs.seeds)))),
            inputs,
        )

    if spread == "runs":
        shard = partial(jax.shard_map, mesh=mesh, out_specs=RUNS, check_vma=False)
        start_all = shard(start_all, in_specs=RUNS)
        advance_all = shard(advance_all, in_specs=(RUNS, RUNS, RUNS, EVERYWHERE))
    first_program = jax.jit(start_all, out_shardings=runs)
    program = jax.jit(advance_all, donate_argnums=1, out_shardings=runs)

    keys, hyper, inputs, common = shapes(experiment, settings, data, size, seeds)

    def placed(tree: PyTree, sharding: NamedSharding) -> PyTree:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)

    keys, hyper, inputs = placed((keys, hyper, inputs), runs)
    common = placed(common, everywhere)._replace(orders=placed(common.orders, split_batches))
    shares = mesh.size if spread == "runs" else 1
    counts = jax.ShapeDtypeStruct((shares,), jnp.int32, sharding=runs)
    with TRACING:
        begin = first_program.lower(counts, keys, hyper)
        state = placed(jax.eval_shape(first_program, counts, keys, hyper), runs)
        lowered = program.lower(counts, state, inputs, common)
    compiled = compile_with_fewer_copies(lowered)
    return Population(begin.compile(), compiled, size, seeds, width, runs, everywhere, split_batches)


def compile_with_fewer_copies(program: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a program with options of XLA that spare the CPU copies.

    These are copies of what loops carry, and transposed copies of the cotangents of convolutions: the
    gradient of a bias is a sum over them, and XLA cuts long sums into parts before it would see that the sum
    can be taken of the array as it is. Parts make a sum more exact, but not those that YNN computes anyway.
    """
    options: dict[str, str | bool] = {
        "xla_cpu_copy_insertion_use_region_analysis": True,
        "xla_disable_hlo_passes": "tree_reduction_rewriter",
    }
    while True:
        try:
            return program.compile(options)
        except jax.errors.JaxRuntimeError as error:  # a JAX whose XLA does not know one of them?
            unknown = {name for name in options if f"option: '{name}'" in str(error)}
            if not unknown:
                raise
            options = {name: value for name, value in options.items() if name not in unknown}


def each(
    function: Callable[..., PyTree], width: int, count: jax.Array, carried: PyTree, inputs: PyTree
) -> PyTree:
    """`function(carried, inputs)` of the first `count` rows, `width` at a time; the other rows stay."""

    def body(number, carried):
        def take(array):
            rows = jax.lax.dynamic_slice_in_dim(array, number * width, width)
            return rows[0] if width == 1 else rows

        def put(array, rows):
            rows = rows[None] if width == 1 else rows
            return jax.lax.dynamic_update_slice_in_dim(array, rows, number * width, 0)

        at_once = function if width == 1 else jax.vmap(function)
        after = at_once(jax.tree.map(take, carried), jax.tree.map(take, inputs))
        return jax.tree.map(put, carried, after)

    return jax.lax.fori_loop(0, -(-count // width), body, carried)


def rows_of(arrays: PyTree, count: int | None = None) -> PyTree:
    """The shapes of one row of these arrays; with a count, of so many rows of arrays like these."""

    def shape(array: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape[1:] if count is None else (count, *array.shape), array.dtype)

    return jax.tree.map(shape, arrays)


def shapes(
    experiment: Experiment, settings: Settings, data: dict[str, PyTree], size: int, seeds: int
) -> tuple[jax.ShapeDtypeStruct, dict[str, jax.ShapeDtypeStruct], Inputs, Common]:
    """Shapes of the programs' inputs: seeds, the hyper-parameters at the start, and a chunk's."""
    segments, steps = experiment.segments_in_a_chunk, experiment.steps_in_a_segment

    def shape(*dimensions: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dimensions, dtype)

    keys = shape(size, dtype=jnp.uint32)
    fixed = {name: shape(size) for name in constants(settings)}
    tables = {name: shape(size, segments, steps) for name in scheduled(settings)}
    inputs = Inputs(keys, shape(size, dtype=jnp.int32), tables, fixed)
    number, flag = shape(segments, dtype=jnp.int32), shape(segments, dtype=jnp.bool_)
    orders = shape(seeds, segments, steps, settings["batch_size"], dtype=jnp.int32)
    common = Common(
        number, number, flag, orders, jax.tree.map(lambda a: shape(*a.shape, dtype=a.dtype), data)
    )
    return keys, fixed | {name: shape(size) for name in tables}, inputs, common


def measure(experiment: Experiment, moment: Moment, data: dict[str, PyTree]) -> dict[str, Measured]:
    """A run's losses and metrics on each part, and its diagnostics; NaN once it has diverged.

    Of the training part, `train_eval`, as many examples are taken as of the part that settings are chosen on.
    """
    held_out = {name: part for name, part in data.items() if name != "train"}
    most = len(jax.tree.leaves(data[experiment.choosing_part])[0])
    parts = {"train_eval": jax.tree.map(lambda array: array[:most], data["train"]), **held_out}
    measurements = {
        f"{name}_{metric}": Measured(value)
        for name, part in parts.items()
        for metric, value in evaluate(moment.training, moment.run, part).items()
    }
    healthy = moment.run.diverged_at < 0
    for diagnostic in experiment.diagnostics:
        for name, result in diagnostic(moment).items():
            values = jnp.where(healthy, result.values.astype(jnp.float32), jnp.nan)
            measurements[name] = Measured(values, result.coordinates)
    return measurements


def values_of(measured: dict[str, Measured]) -> dict[str, jax.Array]:
    """The results without their coordinates."""
    return {name: result.values for name, result in measured.items()}


def measured_variables(
    experiment: Experiment, settings: Settings, data: dict[str, PyTree]
) -> dict[str, Measured]:
    """What an evaluation of these runs gives, without computing it: shapes in place of the values."""
    training = experiment.training(settings)
    keys, hyper, _, common = shapes(experiment, settings, data, 1, 1)
    single = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (keys, hyper))
    coordinates: dict[str, dict[str, Sequence[object]]] = {}

    def values(key, hyperparameters, index, data):
        run = start(training, key, hyperparameters)
        rates = {"learning_rate": jnp.float32(0)} | hyperparameters
        step = next_step(training, run, data["train"], index, rates)
        moment = Moment(training, run, key, run.params, jnp.int32(0), data["train"], index, rates, step)
        measurements = measure(experiment, moment, data)
        coordinates.update({name: result.coordinates for name, result in measurements.items()})
        return values_of(measurements)

    index = jax.ShapeDtypeStruct(common.orders.shape[3:], common.orders.dtype)
    with experiment.in_format():
        variables = jax.eval_shape(values, *single, index, common.data)
    return {name: Measured(variables[name], coordinates[name]) for name in variables}
