"""How many training steps a second, against the ways to train that one would write otherwise.

Measures, in one run and in turn: bpresearch's populations, a loop over `nnx.jit` steps, and PyTorch's eager
loop in one process and in two at once (where PyTorch is installed: EXTRAS=torch scripts/run FILE).
Compilation is not counted. Each ratio is the median over rounds; the machine should do nothing else.
"""

import itertools
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from rich.console import Console
from rich.table import Table

from bpresearch import autodiff, chainrule, data, files, models, optim, platform, sweep
from bpresearch import flags as shared
from bpresearch.optim import schedules
from bpresearch.sweep import store
from bpresearch.sweep.blocks import Block, train_block
from bpresearch.sweep.chunks import Pace
from bpresearch.sweep.layout import planned
from bpresearch.sweep.population import measured_variables
from bpresearch.sweep.stream import Stream

flags.DEFINE_bool("quick", False, "fewer steps and rounds: done within 50 s")
flags.DEFINE_string("json", None, "file for the figures, as one flat object")
flags.DEFINE_string("only", "", "tasks whose name starts with this")
flags.DEFINE_string("gradient", "autodiff", "where the populations' gradients come from: autodiff, chainrule")

CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels


def random_task() -> data.Dataset:
    """Random examples for the 64-128-128-10 perceptron, whose speed does not depend on their values."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(4000, 64)).astype(np.float32)
    y = generator.integers(0, 10, 4000).astype(np.int32)
    return data.Dataset(name="random", x=x, y=y, x_test=x[:100], y_test=y[:100], classes=10, description="")


def tasks() -> dict:
    """Each task: data set, model with options, batch size, runs."""
    mnist1d = data.load("mnist1d")
    paper = {"initialization": "torch"}
    found = {
        "default": (mnist1d, models.mlp, {"widths": (100, 100)}, 100, 90),
        "mlp": (random_task(), models.mlp, {"widths": (128, 128)}, 64, 64),
        "mnist1d.residual_mlp": (mnist1d, models.residual_mlp, paper, 100, 10),
        "mnist1d.cnn": (mnist1d, models.cnn, {**paper, "padding": 1}, 100, 10),
        "mnist1d.bidirectional_gru": (mnist1d, models.bidirectional_gru, paper, 100, 10),
    }
    return {name: task for name, task in found.items() if name.startswith(flags.FLAGS.only)}


class Ours:
    """A population of runs with momentum, on all devices."""

    def __init__(self, dataset, model, options, batch, runs, steps):
        engine = {"autodiff": autodiff, "chainrule": chainrule}[flags.FLAGS.gradient]
        self.experiment = sweep.Experiment(
            dataset,
            model,
            CROSS_ENTROPY,
            options,
            gradient=engine.gradient,
            steps=steps,
            eval_every=steps,
        )
        rates = np.geomspace(1e-3, 1e-2, -(-runs // 5)).tolist()
        axes = sweep.grid(
            optimizer=optim.momentum,
            schedule=schedules.constant,
            lr=rates,
            momentum=0.9,
            batch_size=batch,
            seed=range(5),
        )
        runs = sweep.expand(axes, model)[:runs]
        self.data = self.experiment.examples()
        metrics = measured_variables(self.experiment, runs[0], self.data)
        group, rows = store.open_store(None, self.experiment, runs, metrics)
        self.block = Block(runs, rows)
        self.program = planned(self.experiment, runs, self.data)
        self.pace = Pace(self.experiment.parts_in_a_chunk)
        self.stream = Stream(self.experiment, group, lambda **_: None)

    def __call__(self) -> float:
        begun = time.perf_counter()
        train_block(
            self.experiment, self.program, self.block, self.data, self.pace, self.stream, threading.Event()
        )
        self.stream.flush()
        return len(self.block.rows) * self.experiment.steps / (time.perf_counter() - begun)


class Loops:
    """Python training loops in processes of their own, all at once; called, their steps a second together."""

    def __init__(self, framework: str, name: str, batch: int, steps: int, processes: int = 1):
        script = Path(__file__).with_name("benchmark_loops.py")
        threads = 1 if processes > 1 else platform.available_cores()
        command = [
            sys.executable,
            str(script),
            framework,
            name,
            str(batch),
            str(steps),
            str(threads),
        ]
        environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        pipe = subprocess.PIPE
        self.processes = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
            for _ in range(processes)
        ]
        self.ready = {self._read(process) for process in self.processes} == {"ready"}

    def __call__(self) -> float:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return sum([float(self._read(process)) for process in self.processes])

    def _read(self, process: subprocess.Popen) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def close(self) -> None:
        for process in self.processes:
            process.communicate()  # closes its input, which ends it


def peak() -> float:
    """Floating-point operations a second of float32 matrix products, one on each device at once."""
    count, size = len(jax.devices()), 1024
    mesh = jax.make_mesh((count,), ("devices",))
    spec = jax.sharding.PartitionSpec("devices")
    product = jax.jit(
        jax.shard_map(
            lambda a: jax.lax.fori_loop(0, 20, lambda _, b: a[0] @ b * 1e-3, a[0])[None],
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
        )
    )
    a = jax.device_put(jnp.ones((count, size, size)), jax.sharding.NamedSharding(mesh, spec))
    product(a).block_until_ready()
    begun = time.perf_counter()
    product(a).block_until_ready()
    return count * 20 * 2 * size**3 / (time.perf_counter() - begun)


def dense_operations(options, batch) -> float:
    """Operations of one step of the 64-128-128-10 perceptron: forward, and twice that backward less x_bar."""
    sizes = [64, *options["widths"], 10]
    products = [2 * batch * n * m for n, m in itertools.pairwise(sizes)]
    return 3 * sum(products) - products[0]


def main() -> None:
    json_file = shared.output_file("json")
    platform.start()
    quick = flags.FLAGS.quick
    steps, rounds = (200, 3) if quick else (1000, 5)
    figures: dict[str, float] = {}
    seconds: list[list[float]] = []  # of one step of each model of experiments/mnist1d_table.py: theirs, ours
    table = Table(
        "task", "steps/s", "nnx.jit loop", "PyTorch", "two PyTorch", title="Training steps a second"
    )
    for name, task in tasks().items():
        dataset, model, options, batch, runs = task
        ours = Ours(dataset, model, options, batch, runs, steps)
        ours()
        loops = {
            "nnx_jit": Loops("nnx", name, batch, steps),
            "torch": Loops("torch", name, batch, steps),
        }
        if name == "mlp":
            loops["two_torch"] = Loops("torch", name, batch, steps, processes=2)
        others = {key: loop for key, loop in loops.items() if loop.ready}
        rates: dict[str, list] = {"ours": [], "fraction_of_peak": [], **{key: [] for key in others}}
        for _ in range(rounds):
            rates["ours"].append(ours())
            for key, other in others.items():
                rates[key].append(other())
            if name == "mlp":
                rates["fraction_of_peak"].append(
                    rates["ours"][-1] * dense_operations(options, batch) / peak()
                )
        if name.startswith("mnist1d") and "torch" in rates:
            seconds.append([1 / statistics.median(rates[key]) for key in ("torch", "ours")])
        row = [name, f"{statistics.median(rates['ours']):,.0f}"]
        figures[f"{name}.steps_per_second"] = statistics.median(rates["ours"])
        for key in ("nnx_jit", "torch", "two_torch"):
            if key not in rates:
                row.append("-")
                continue
            ratios = [a / b for a, b in zip(rates["ours"], rates[key], strict=True)]
            figures[f"{name}.speedup_vs_{key}"] = statistics.median(ratios)
            row.append(f"{statistics.median(rates[key]):,.0f} ({statistics.median(ratios):.1f}x)")
        if rates["fraction_of_peak"]:
            figures[f"{name}.fraction_of_peak"] = statistics.median(rates["fraction_of_peak"])
        table.add_row(*row)
        for loop in loops.values():
            loop.close()
    Console().print(table)
    if seconds:
        torch_seconds, our_seconds = (sum(each) for each in zip(*seconds, strict=True))
        figures["mnist1d.table.speedup_vs_torch"] = ratio = torch_seconds / our_seconds
        print(f"as many steps of each model on MNIST-1D: {ratio:.1f} times as fast as PyTorch")
    if "mlp.fraction_of_peak" in figures:
        print(f"mlp: {figures['mlp.fraction_of_peak']:.0%} of the measured peak of float32 matrix products")
    files.write_figures(json_file, figures)


if __name__ == "__main__":
    shared.run(main)
