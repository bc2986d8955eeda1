"""How long does it take to verify every parameter of an MLP, in every coordinate?

An MLP 64-128-128-10 (26,122 parameters) on 16 random examples: every coordinate of every parameter by finite
differences (bpresearch), the same by torch.autograd.gradcheck in slow mode on the same weights where PyTorch
is installed, and engine against engine, for the first time in this process and again with its programs
compiled. In float64. Then a small function with a `custom_vjp`: a first verdict on it and a repeated one
against `jax.test_util.check_grads` on it, each for the first time in a process, medians over processes, and
how many programs are compiled for the first. Exit code 1 if a gradient is rejected.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx
from rich.console import Console
from rich.table import Table

from bpresearch import command as shared
from bpresearch import files, models, platform, verify
from bpresearch.functional import split

flags.DEFINE_bool("quick", False, "an MLP 16-32-10 of 874 parameters: done within 50 s")
flags.DEFINE_string("json", None, "file for the figures, as one flat object")
flags.DEFINE_bool("small", False, "the small function alone, in this process; prints JSON")

EXAMPLES, CLASSES = 16, 10


def gradcheck_seconds(model: nnx.Module, x: np.ndarray, y: np.ndarray) -> float:
    """Seconds of `torch.autograd.gradcheck`, slow mode, on the same loss of the same weights."""
    import torch

    _, params, _ = split(model)
    layers = [params["layers"][i] for i in sorted(params["layers"])]
    flat = [torch.tensor(np.array(layer[n], np.float64)) for layer in layers for n in ("kernel", "bias")]
    inputs, labels = torch.tensor(x, dtype=torch.float64), torch.tensor(y)

    def loss(*weights):
        h = inputs
        for index in range(0, len(weights), 2):
            h = h @ weights[index] + weights[index + 1]
            h = torch.relu(h) if index < len(weights) - 2 else h
        return torch.nn.functional.cross_entropy(h, labels)

    begun = time.perf_counter()
    if not torch.autograd.gradcheck(loss, [w.requires_grad_() for w in flat]):
        raise ValueError("torch.autograd.gradcheck rejects PyTorch's own gradient")
    return time.perf_counter() - begun


def dense(width: int) -> tuple[Any, tuple[np.ndarray, ...]]:
    """A layer with its backward pass by hand, and arguments."""

    @jax.custom_vjp
    def layer(x, w, b):
        return jnp.tanh(x @ w + b[None])

    def forward(x, w, b):
        y = layer(x, w, b)
        return y, (x, w, y)

    def backward(residuals, y_bar):
        x, w, y = residuals
        z_bar = y_bar * (1 - y**2)
        return z_bar @ w.T, x.T @ z_bar, jnp.sum(z_bar, axis=0)

    layer.defvjp(forward, backward)
    rng = np.random.default_rng(width)
    return layer, (rng.normal(size=(5, width)), rng.normal(size=(width, 4)), rng.normal(size=4))


def of_a_small_function() -> dict[str, float]:
    """Seconds of `check_grads`, of a first verdict and of a repeated one, and how many programs they compile.

    Of a process of its own: nothing is compiled yet, for either.
    """
    from jax.test_util import check_grads

    programs = 0

    def compiled(event: str, duration_secs: float, **kwargs: str | int) -> None:
        nonlocal programs
        programs += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(compiled)
    layer, args = dense(4)
    figures: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        before, begun = programs, time.perf_counter()
        verdict = function(*args, **options)
        figures[f"{name}_s"], figures[f"{name}_programs"] = time.perf_counter() - begun, programs - before
        return verdict

    with jax.enable_x64(True):
        timed("check_grads", check_grads, layer, args, order=1, modes=["rev"])
    for name in ("first", "again"):
        if not timed(name, verify.function, layer, *args).passed:
            raise ValueError("a right derivative was rejected")
    return figures


def of_small_functions(count: int) -> dict[str, float]:
    """Medians over so many processes."""
    command = [sys.executable, __file__, "--small"]
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(count)]
    each = [json.loads(text) for text in said]
    median = {name: statistics.median(figures[name] for figures in each) for name in each[0]}
    return {
        **{f"function.{name}": median[name] for name in ("check_grads_s", "first_s", "again_s")},
        "function.time_vs_check_grads": median["first_s"] / median["check_grads_s"],
        "function.repeat_vs_check_grads": median["again_s"] / median["check_grads_s"],
        "function.programs": median["first_programs"],
        "function.programs_again": median["again_programs"],
    }


def main() -> int:
    json_file = shared.output_file("json")
    platform.start("cpu")
    if flags.FLAGS.small:
        print(json.dumps(of_a_small_function()))
        return 0
    inputs, widths = (16, (32,)) if flags.FLAGS.quick else (64, (128, 128))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(EXAMPLES, inputs)), rng.integers(0, CLASSES, EXAMPLES)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    model = models.mlp((inputs,), CLASSES, widths=widths, rngs=nnx.Rngs(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(split(model)[1]))
    figures: dict[str, float] = {"parameters": count}

    check = verify.prepare(model, loss, x, y, "float64", ["autodiff"])
    for name in ("engine_against_engine_first_s", "engine_against_engine_again_s"):
        begun = time.perf_counter()
        right = check(model, x, y).passed
        figures[name] = time.perf_counter() - begun
    begun = time.perf_counter()
    report = verify.model(
        model, loss, x, y, dtype="float64", oracles=["finite differences"], every_coordinate_up_to=count
    )
    figures["every_coordinate_s"] = time.perf_counter() - begun
    if importlib.util.find_spec("torch"):
        figures["gradcheck_slow_s"] = gradcheck_seconds(model, x, y)
        figures["speedup_vs_gradcheck"] = figures["gradcheck_slow_s"] / figures["every_coordinate_s"]

    figures |= of_small_functions(3 if flags.FLAGS.quick else 5)
    table = Table(f"{count} parameters", "")
    for name, value in figures.items():
        if name != "parameters":
            table.add_row(name, f"{value:.2f}")
    Console().print(table)
    print(report)
    if json_file:
        files.write(json_file, json.dumps(figures, indent=2))
    return 0 if right and report.passed else 1


if __name__ == "__main__":
    shared.run(main)
