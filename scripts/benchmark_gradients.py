"""How fast are the hand-written gradients, and how much memory do they take, against autodiff's?

For each model, both engines' gradients of one batch are compiled, as sweeps compile them, and run in turn:
the models of this library, and models as users build them (those of `tests/chainrule/user_models`, their
examples repeated). Printed are the times, their ratio (median over rounds), the ratio of the peaks of
temporary memory by XLA's own analysis, the ratio of the times to trace and compile, and the largest relative
difference of a leaf in float64. Then, for a few models, the time of the Hessian's product with a vector
against `jax.jvp` of `jax.grad`, and of the gradients of single examples against `jax.vmap` of `jax.grad`.
The machine should do nothing else.

Figures: `MODEL.time_ratio` and so on for the library's models, whose medians and worst have no prefix;
`user_models.MODEL.time_ratio`, `user_models.median_time_ratio`, `user_models.worst_memory_ratio` and so on
for the users'; `hvp.time_ratio` and `per_example.time_ratio` are medians.
"""

import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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
from bpresearch import command as shared
from bpresearch.chainrule import per_example, second_order
from bpresearch.functional import split
from bpresearch.sweep.population import compile_with_fewer_copies
from bpresearch.verify.casting import cast_model
from bpresearch.verify.precision import cast

flags.DEFINE_bool("quick", False, "fewer models and rounds: done within 50 s; it says which")
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
USER_MODELS = Path(__file__).parents[1] / "tests" / "chainrule" / "user_models"
USERS = tuple(sorted(file.stem for file in USER_MODELS.glob("*.py")))
PRODUCTS = {"hvp": ("mlp", "lenet", "gru", "vit"), "per_example": ("mlp", "lenet", "gru", "vit")}
QUICK = {
    "models": ("mlp", "max_pooling_cnn", "bidirectional_gru", "transformer"),
    "users": ("digits_vae", "lora_mlp", "mnist_cnn"),
    "hvp": ("mlp",),
    "per_example": ("mlp",),
}
ROW = ("time_ratio", "memory_ratio", "compile_ratio", "error_float64")

Batch = tuple[Any, Any]


@dataclass
class Compiled:
    """A function of some arguments, compiled.

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


def compiled(function: Callable[..., Any], *arguments: Any, **options: Any) -> Compiled:
    """A function compiled for its arguments, as sweeps compile."""
    begun = time.perf_counter()
    run = compile_with_fewer_copies(jax.jit(function, **options).lower(*arguments))
    seconds = time.perf_counter() - begun
    memory: Any = run.memory_analysis()
    return Compiled(run, arguments, seconds, memory.temp_size_in_bytes)


def gradient_of(engine: Any, model: nnx.Module, loss_fn: Any, batch: Batch, **options: Any) -> Compiled:
    """The gradient by an engine."""
    graphdef, params, state = split(model)
    return compiled(engine.gradient(graphdef, loss_fn), params, state, batch, **options)


def task(name: str) -> tuple[nnx.Module, Any, Batch, Batch]:
    """A model of this library, its loss, a batch of its data, and ten examples."""
    build, dataset_name, options = TASKS[name]
    dataset = data.load(dataset_name)
    loss_fn = optax.losses.softmax_cross_entropy_with_integer_labels
    if build is models.autoencoder:
        dataset, loss_fn = data.reconstruction(dataset), optax.losses.squared_error
    model = build(dataset.input_shape, dataset.outputs, rngs=nnx.Rngs(0), **options)
    size = flags.FLAGS.batch_size
    batch = (jnp.asarray(dataset.x[:size]), jnp.asarray(dataset.y[:size]))
    return model, loss_fn, batch, jax.tree.map(lambda part: part[:10], batch)


def users_task(name: str) -> tuple[nnx.Module, Any, Batch, Batch]:
    """A user's model, its loss, its examples repeated to about a batch, and its examples."""
    specification: Any = importlib.util.spec_from_file_location(name, USER_MODELS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    model, loss_fn, x, y = module.make()
    few = jax.tree.map(jnp.asarray, (x, y))
    size = jax.tree.leaves(x)[0].shape[0]

    def repeated(part):
        times = max(1, flags.FLAGS.batch_size // size) if part.shape[0] == size else 1
        return jnp.tile(part, (times, *[1] * (part.ndim - 1)))

    return model, loss_fn, jax.tree.map(repeated, few), few


def difference(model: nnx.Module, loss_fn: Any, few: Batch) -> float:
    """Largest max |chainrule - autodiff| / max |autodiff| of a leaf in float64, on a few examples.

    A leaf whose derivative is zero, such as the bias of attention's keys, is held to the whole gradient.
    """
    with jax.enable_x64(True):
        wide, few = cast_model(model, jnp.float64), cast(few, jnp.float64)
        quickly = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
        both = [gradient_of(e, wide, loss_fn, few, compiler_options=quickly) for e in ENGINES.values()]
        right, ours = (jax.tree.leaves(each.run(*each.arguments)[1]) for each in both)
    largest = max(float(np.max(np.abs(leaf))) for leaf in right)
    floor = 1e-4 * largest
    return max(
        float(np.max(np.abs(a - b))) / max(float(np.max(np.abs(a))), floor)
        for a, b in zip(right, ours, strict=True)
    )


def against(theirs: Compiled, ours: Compiled, rounds: int) -> dict[str, float]:
    """The figures of two programs that are run in turn."""
    once = max(theirs(2), ours(2))
    once = min(once, theirs(2), ours(2))
    repetitions = max(1, round(0.02 / once))
    times = [(theirs(repetitions), ours(repetitions)) for _ in range(rounds)]
    return {
        "autodiff_ms": 1e3 * statistics.median(a for a, _ in times),
        "chainrule_ms": 1e3 * statistics.median(b for _, b in times),
        "time_ratio": statistics.median(b / a for a, b in times),
        "memory_ratio": ours.temporary_bytes / max(theirs.temporary_bytes, 1),
        "compile_ratio": ours.seconds_to_compile / theirs.seconds_to_compile,
    }


def gradients(made: tuple[nnx.Module, Any, Batch, Batch], rounds: int) -> dict[str, float]:
    """The figures of the gradients of a model."""
    model, loss_fn, batch, few = made
    theirs, ours = (gradient_of(engine, model, loss_fn, batch) for engine in ENGINES.values())
    return {**against(theirs, ours, rounds), "error_float64": difference(model, loss_fn, few)}


def hvp(name: str, rounds: int) -> dict[str, float]:
    """The figures of the Hessian's product with a vector."""
    model, loss_fn, batch, _ = task(name)
    graphdef, params, state = split(model)
    gradient = autodiff.gradient(graphdef, loss_fn)

    def by_autodiff(params, state, batch, vector):
        return jax.jvp(lambda params: gradient(params, state, batch)[1], (params,), (vector,))[1]

    arguments = params, state, batch, jax.tree.map(jnp.ones_like, params)
    by_rules = second_order.hessian_vector_product(graphdef, loss_fn)
    return against(compiled(by_autodiff, *arguments), compiled(by_rules, *arguments), rounds)


def of_examples(name: str, rounds: int) -> dict[str, float]:
    """The figures of the gradients of single examples."""
    model, loss_fn, batch, _ = task(name)
    graphdef, params, state = split(model)
    gradient = autodiff.gradient(graphdef, loss_fn)

    def by_autodiff(params, state, batch):
        def of_one(x, y):
            example = jax.tree.map(lambda part: jnp.expand_dims(part, 0), (x, y))
            (loss, _), grads = gradient(params, state, example)
            return loss, grads

        return jax.vmap(of_one)(*batch)

    arguments = params, state, batch
    by_rules = per_example.gradients(graphdef, loss_fn)
    return against(compiled(by_autodiff, *arguments), compiled(by_rules, *arguments), rounds)


def summary(rows: list[dict[str, float]], prefix: str = "") -> dict[str, float]:
    """The median time and the worst of every figure."""
    if not rows:
        return {}
    median = {f"{prefix}median_time_ratio": statistics.median(row["time_ratio"] for row in rows)}
    return median | {f"{prefix}worst_{key}": max(row[key] for row in rows) for key in ROW}


def said(figures: dict[str, float], prefix: str = "") -> str:
    worst = {key: f"{figures[f'{prefix}worst_{key}']:.2f}" for key in ROW[:3]}
    median = f"{figures[f'{prefix}median_time_ratio']:.2f}"
    return (
        f"median time {median} of autodiff's, worst {worst['time_ratio']}; "
        f"worst memory {worst['memory_ratio']}, compilation {worst['compile_ratio']}"
    )


def main() -> None:
    json_file = shared.output_file("json")
    if flags.FLAGS.batch_size < 1:
        raise ValueError(f"--batch_size={flags.FLAGS.batch_size}: takes an integer of at least 1")
    platform.start(flags.FLAGS.platform)
    jax.config.update("jax_enable_compilation_cache", False)
    only, quick = flags.FLAGS.only, flags.FLAGS.quick
    everything = {"models": tuple(TASKS), "users": USERS, **PRODUCTS}
    chosen = {
        kind: [name for name in (QUICK[kind] if quick and not only else names) if name.startswith(only)]
        for kind, names in everything.items()
    }
    if not any(chosen.values()):
        raise ValueError(f"--only={only}: takes the beginning of one of {', '.join((*TASKS, *USERS))}")
    rounds = 7 if quick else 31
    device = jax.devices()[0].device_kind
    table = Table("model", "autodiff", "rules", "time", "memory", "compile", "float64")
    table.title = f"A gradient of {flags.FLAGS.batch_size} examples on {device}"
    figures: dict[str, float] = {}

    def add(name: str, key: str, row: dict[str, float]) -> dict[str, float]:
        figures.update({f"{key}.{what}": value for what, value in row.items()})
        times = (f"{row[what]:.2f} ms" for what in ("autodiff_ms", "chainrule_ms"))
        ratios = (f"{row[what]:.2f}" for what in ROW[:3])
        table.add_row(name, *times, *ratios, f"{row[ROW[3]]:.0e}" if ROW[3] in row else "")
        return row

    ours = [add(name, name, gradients(task(name), rounds)) for name in chosen["models"]]
    table.add_section()
    theirs = [
        add(name, f"user_models.{name}", gradients(users_task(name), rounds)) for name in chosen["users"]
    ]
    for kind, measure, title in (
        ("hvp", hvp, "Hessian times vector"),
        ("per_example", of_examples, "examples"),
    ):
        table.add_section()
        rows = [add(f"{title}, {name}", f"{kind}.{name}", measure(name, rounds)) for name in chosen[kind]]
        if rows:
            figures[f"{kind}.time_ratio"] = statistics.median(row["time_ratio"] for row in rows)
    figures |= summary(ours) | summary(theirs, "user_models.")
    Console().print(table)
    if ours:
        print(f"Models of this library: {said(figures)}")
    if theirs:
        print(f"Models of users: {said(figures, 'user_models.')}")
    for kind, title in (("hvp", "Hessian times vector"), ("per_example", "Gradients of single examples")):
        if f"{kind}.time_ratio" in figures:
            print(f"{title}: median time {figures[f'{kind}.time_ratio']:.2f} of autodiff's")
    if quick and not only:
        left = {kind: len(names) - len(chosen[kind]) for kind, names in everything.items()}
        print("Not measured in this sample: " + ", ".join(f"{n} {kind}" for kind, n in left.items()))
    if json_file:
        files.write(json_file, json.dumps(figures, indent=2))


if __name__ == "__main__":
    shared.run(main)
