"""How fast are the hand-written gradients, and how much memory do they take, against autodiff's?

For each model, both engines' gradients of one batch are compiled, as sweeps compile them, and run in turn.
Printed are the times, their ratio (median over rounds), the ratio of the peaks of temporary memory by XLA's
own analysis, the ratio of the times to trace and compile, and the largest relative difference of a leaf in
float64. The machine should do nothing else.
"""

import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx
from rich.console import Console
from rich.table import Table

from bpresearch import autodiff, chainrule, data, files, models, platform
from bpresearch import flags as shared
from bpresearch.functional import split
from bpresearch.sweep.population import compile_with_fewer_copies
from bpresearch.verify.precision import cast, cast_model

flags.DEFINE_bool("quick", False, "a model of each family and fewer rounds: done within 50 s")
flags.DEFINE_string("json", None, "file for the figures, as one flat object")
flags.DEFINE_string("only", "", "models whose name starts with this")
flags.DEFINE_integer("batch_size", 100, "examples in a batch")
flags.DEFINE_string("platform", None, "cpu, gpu, tpu; by default the best there is")

ENGINES = {"autodiff": autodiff, "chainrule": chainrule}
TASKS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "mlp": (models.mlp, "mnist1d", {}),
    "residual_mlp": (models.residual_mlp, "mnist1d", {}),
    "autoencoder": (models.autoencoder, "digits", {}),
    "cnn": (models.cnn, "mnist1d", {}),
    "max_pooling_cnn": (models.cnn, "digits", {"pooling": "max"}),
    "lenet": (models.lenet, "digits", {}),
    "resnet": (models.resnet, "digits", {}),
    "gru": (models.gru, "mnist1d", {}),
    "lstm": (models.lstm, "mnist1d", {}),
    "bidirectional_gru": (models.bidirectional_gru, "mnist1d", {}),
    "transformer": (models.transformer, "text", {}),
    "vit": (models.vit, "digits", {}),
    "mixer": (models.mixer, "digits", {}),
}
QUICK = ("mlp", "max_pooling_cnn", "lenet", "resnet", "bidirectional_gru", "transformer", "vit")
ROW = ("time_ratio", "memory_ratio", "compile_ratio", "error_float64")


@dataclass
class Gradient:
    """One engine's gradient of one batch, compiled.

    Attributes:
        seconds_to_compile: tracing and compilation, without any cache.
        temporary_bytes: the peak of what the program allocates besides its arguments and results.
    """

    run: Any
    arguments: tuple[Any, ...]
    seconds_to_compile: float
    temporary_bytes: int

    def __call__(self, repetitions: int) -> float:
        """Seconds that one evaluation takes."""
        begun = time.perf_counter()
        for _ in range(repetitions):
            results = self.run(*self.arguments)
        jax.block_until_ready(results)
        return (time.perf_counter() - begun) / repetitions


def compiled(
    engine: Any, model: nnx.Module, loss_fn: Any, batch: tuple[Any, Any], **options: Any
) -> Gradient:
    """The gradient function of an engine, compiled for a model and a batch."""
    graphdef, params, state = split(model)
    begun = time.perf_counter()
    lowered = jax.jit(engine.gradient(graphdef, loss_fn), **options).lower(params, state, batch)
    run = compile_with_fewer_copies(lowered)
    seconds = time.perf_counter() - begun
    memory: Any = run.memory_analysis()
    return Gradient(run, (params, state, batch), seconds, memory.temp_size_in_bytes)


def task(name: str) -> tuple[nnx.Module, Any, tuple[Any, Any]]:
    """A model, its loss and a batch of its data."""
    build, dataset_name, options = TASKS[name]
    dataset = data.load(dataset_name)
    loss_fn = optax.losses.softmax_cross_entropy_with_integer_labels
    if build is models.autoencoder:
        dataset, loss_fn = data.reconstruction(dataset), optax.losses.squared_error
    model = build(dataset.input_shape, dataset.outputs, rngs=nnx.Rngs(0), **options)
    size = flags.FLAGS.batch_size
    return model, loss_fn, (jnp.asarray(dataset.x[:size]), jnp.asarray(dataset.y[:size]))


def difference(model: nnx.Module, loss_fn: Any, batch: tuple[Any, Any]) -> float:
    """Largest max |chainrule - autodiff| / max |autodiff| of a leaf in float64, on ten examples.

    A leaf whose derivative is zero, such as the bias of attention's keys, is held to the whole gradient.
    """
    with jax.enable_x64(True):
        wide, few = (
            cast_model(model, jnp.float64),
            cast(jax.tree.map(lambda part: part[:10], batch), jnp.float64),
        )
        quickly = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
        by = [compiled(engine, wide, loss_fn, few, compiler_options=quickly) for engine in ENGINES.values()]
        right, ours = (jax.tree.leaves(each.run(*each.arguments)[1]) for each in by)
    largest = max(float(np.max(np.abs(leaf))) for leaf in right)
    floor = 1e-4 * largest
    return max(
        float(np.max(np.abs(a - b))) / max(float(np.max(np.abs(a))), floor)
        for a, b in zip(right, ours, strict=True)
    )


def measure(name: str, rounds: int) -> dict[str, float]:
    """The figures of one model."""
    model, loss_fn, batch = task(name)
    both = [compiled(engine, model, loss_fn, batch) for engine in ENGINES.values()]
    once = max(gradient(2) for gradient in both)
    once = min(once, *(gradient(2) for gradient in both))
    repetitions = max(1, round(0.02 / once))
    times = [[gradient(repetitions) for gradient in both] for _ in range(rounds)]
    theirs, ours = both
    return {
        "autodiff_ms": 1e3 * statistics.median(a for a, _ in times),
        "chainrule_ms": 1e3 * statistics.median(b for _, b in times),
        "time_ratio": statistics.median(b / a for a, b in times),
        "memory_ratio": ours.temporary_bytes / max(theirs.temporary_bytes, 1),
        "compile_ratio": ours.seconds_to_compile / theirs.seconds_to_compile,
        "error_float64": difference(model, loss_fn, batch),
    }


def main() -> None:
    json_file = shared.output_file("json")
    if flags.FLAGS.batch_size < 1:
        raise ValueError(f"--batch_size={flags.FLAGS.batch_size}: takes an integer of at least 1")
    platform.start(flags.FLAGS.platform)
    jax.config.update("jax_enable_compilation_cache", False)
    quick = flags.FLAGS.quick and not flags.FLAGS.only
    names = [name for name in (QUICK if quick else TASKS) if name.startswith(flags.FLAGS.only)]
    if not names:
        raise ValueError(f"--only={flags.FLAGS.only}: takes the beginning of one of {', '.join(TASKS)}")
    rounds = 7 if flags.FLAGS.quick else 31
    device = jax.devices()[0].device_kind
    table = Table("model", "autodiff", "rules", "time", "memory", "compile", "float64")
    table.title = f"A gradient of {flags.FLAGS.batch_size} examples on {device}"
    figures: dict[str, float] = {}
    rows = []
    for name in names:
        row = measure(name, rounds)
        rows.append(row)
        figures |= {f"{name.replace(' ', '_')}.{key}": value for key, value in row.items()}
        times = (f"{row[key]:.2f} ms" for key in ("autodiff_ms", "chainrule_ms"))
        ratios = (f"{row[key]:.2f}" for key in ROW[:3])
        table.add_row(name, *times, *ratios, f"{row['error_float64']:.0e}")
    figures["median_time_ratio"] = statistics.median(row["time_ratio"] for row in rows)
    for key in ROW:
        figures[f"worst_{key}"] = max(row[key] for row in rows)
    Console().print(table)
    worst = {key: f"{figures[f'worst_{key}']:.2f}" for key in ROW[:3]}
    print(
        f"Median time {figures['median_time_ratio']:.2f} of autodiff's, worst {worst['time_ratio']}; "
        f"worst memory {worst['memory_ratio']}, compilation {worst['compile_ratio']}"
    )
    if json_file:
        files.write(json_file, json.dumps(figures, indent=2))


if __name__ == "__main__":
    shared.run(main)
