"""How many training steps a second, against the ways to train that one would write otherwise.

Measures, in one run and in turn: bpresearch's populations; the same runs as a skilled JAX user trains them
(`hundred_lines.py`), `jit(vmap(scan))` over all of them or `jit(scan)` one after another, whichever is
faster, and the faster of the same two spread over one device for each core; a loop over `nnx.jit` steps; and
where PyTorch is installed (EXTRAS=torch scripts/run FILE) its eager loop in one process and in two at once,
its loop with `torch.compile` where there is a C++ compiler, and all runs by `torch.func`'s `vmap` where the
layers have one. On an accelerator, all of these run there, and the same populations on the machine's CPU
beside them. Compilation is not counted. Each ratio is the median over rounds; the machine should do nothing
else.
"""

import functools
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from rich.console import Console
from rich.table import Table

from bpresearch import autodiff, chainrule, data, files, models, optim, platform, sweep
from bpresearch import command as shared
from bpresearch.optim import schedules
from bpresearch.sweep.cost import Rehearsal

flags.DEFINE_bool("quick", False, "fewer steps and rounds, and spread over devices the perceptron alone")
flags.DEFINE_string("json", None, "file for the figures, as one flat object")
flags.DEFINE_string("only", "", "tasks whose name starts with this")
flags.DEFINE_string("platform", None, "cpu, gpu, tpu; by default the best there is")
flags.DEFINE_integer("runs", None, "of each population; by default 90, 64 or 10, by the task")
flags.DEFINE_string("gradient", "autodiff", "where the populations' gradients come from: autodiff, chainrule")
flags.DEFINE_bool(
    "served", False, "trains --only a task, whenever a line comes in, and prints steps a second"
)

LOOPS = str(Path(__file__).with_name("benchmark_loops.py"))
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
    all_tasks = {
        "default": (mnist1d, models.mlp, {"widths": (100, 100)}, 100, 90),
        "mlp": (random_task(), models.mlp, {"widths": (128, 128)}, 64, 64),
        "mnist1d.residual_mlp": (mnist1d, models.residual_mlp, paper, 100, 10),
        "mnist1d.cnn": (mnist1d, models.cnn, {**paper, "padding": 1}, 100, 10),
        "mnist1d.bidirectional_gru": (mnist1d, models.bidirectional_gru, paper, 100, 10),
    }
    return {name: task for name, task in all_tasks.items() if name.startswith(flags.FLAGS.only)}


def ours(dataset, model, options, batch, runs, steps) -> Callable[[], float]:
    """Trains a population of runs with momentum on all devices when called; their steps a second together."""
    gradient = {"autodiff": autodiff, "chainrule": chainrule}[flags.FLAGS.gradient].gradient
    experiment = sweep.Experiment(
        dataset, model, CROSS_ENTROPY, options, gradient=gradient, steps=steps, eval_every=steps
    )
    rates = np.geomspace(1e-3, 1e-2, -(-runs // 5)).tolist()
    axes = sweep.grid(optimizer=optim.momentum, schedule=schedules.constant, lr=rates, momentum=0.9,
                      batch_size=batch, seed=range(5))  # fmt: skip
    settings = sweep.expand(axes, model)[:runs]
    return Rehearsal(experiment, settings).steps_per_second


class Others:
    """Processes that train as well, all at once; called, their steps a second together, in the best form."""

    def __init__(self, command: list[str], processes: int = 1, forms: Sequence[str] = ("go",)):
        self.forms, self.best = forms, dict.fromkeys(forms, 0.0)
        environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        if flags.FLAGS.platform == "cpu":
            environment["JAX_PLATFORMS"] = "cpu"
        pipe = subprocess.PIPE
        self.processes = [
            subprocess.Popen([sys.executable, *command], stdin=pipe, stdout=pipe, text=True, env=environment)
            for _ in range(processes)
        ]

    @functools.cached_property
    def ready(self) -> bool:
        """Whether the framework is there; waits until all is compiled."""
        return {self._read(process) for process in self.processes} == {"ready"}

    def __call__(self) -> float:
        rates = {form: self._rate(form) for form in self.forms}
        for form, rate in rates.items():
            self.best[form] = max(self.best[form], rate)
        return max(rates.values())

    @property
    def form(self) -> str:
        """The form that is faster."""
        return max(self.best, key=lambda form: self.best[form])

    def _rate(self, form: str) -> float:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{form}\n")
            process.stdin.flush()
        return sum([float(self._read(process)) for process in self.processes])

    def _read(self, process: subprocess.Popen) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def close(self) -> None:
        for process in self.processes:
            process.communicate()  # closes its input, which ends it


def python_loop(framework: str, name: str, batch: int, steps: int, processes: int = 1) -> Others:
    """Loops of a framework, each with its share of the cores."""
    threads = 1 if processes > 1 else platform.available_cores()
    return Others([LOOPS, framework, name, *map(str, (batch, steps, threads, 1))], processes)


def hundred_lines(name: str, batch: int, steps: int, runs: int, devices: int = 1) -> Others:
    """The runs as a skilled JAX user trains them, on one device or on several.

    A fifth of the steps is enough: they are all alike, nothing is evaluated, and there are four forms.
    """
    steps //= 5
    forms = ("spread_vmap", "spread_scan") if devices > 1 else ("vmap", "scan")
    return Others([LOOPS, "hundred", name, *map(str, (batch, steps, devices, runs))], forms=forms)


def on_cpu(name: str) -> Others:
    """The same population on the CPU."""
    given = [f"--{flag}={flags.FLAGS[flag].value}" for flag in ("quick", "gradient")]
    given += [f"--runs={flags.FLAGS.runs}"] if flags.FLAGS.runs else []
    return Others([__file__, "--platform=cpu", "--served", f"--only={name}", *given])


def serve(population: Callable[[], float]) -> None:
    """Trains at every line that comes in, and prints steps a second."""
    print("ready", flush=True)
    for _ in sys.stdin:
        print(population(), flush=True)


def peak() -> float:
    """Floating-point operations a second of float32 matrix products, one on each device at once."""
    count, size = len(jax.devices()), 1024 if jax.default_backend() == "cpu" else 4096
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


PEERS = {
    "hundred_lines": "hundred lines",
    "hundred_lines_spread": "spread",
    "nnx_jit": "nnx.jit loop",
    "torch": "PyTorch",
    "two_torch": "two PyTorch",
    "torch_compile": "torch.compile",
    "torch_vmap": "torch.func",
    "cpu": "CPU",
}


def main() -> None:
    json_file = shared.output_file("json")
    # A GPU's memory is shared with the other processes.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    platform.start(flags.FLAGS.platform)
    quick = flags.FLAGS.quick
    steps, rounds = (200, 3) if quick else (1000, 5)
    chosen = tasks()
    if not chosen:
        raise ValueError(f"--only={flags.FLAGS.only}: no task's name starts with this")
    if flags.FLAGS.runs is not None:
        shared.positive("runs")
    figures: dict[str, float] = {}
    seconds: list[list[float]] = []  # of one step of each model of experiments/mnist1d_table.py: theirs, ours
    cores = platform.available_cores()
    accelerated = jax.default_backend() != "cpu"
    shown = [peer for peer in PEERS if accelerated or peer != "cpu"]
    table = Table("task", "steps/s", *(PEERS[peer] for peer in shown), title="Training steps a second")
    for name, task in chosen.items():
        dataset, model, options, batch, runs = task
        runs = flags.FLAGS.runs or runs
        if flags.FLAGS.served:
            population = ours(dataset, model, options, batch, runs, steps)
            population()
            return serve(population)
        others = {  # they get ready side by side, and while ours is compiled
            "hundred_lines": hundred_lines(name, batch, steps, runs),
            "nnx_jit": python_loop("nnx", name, batch, steps),
            "torch": python_loop("torch", name, batch, steps),
        }
        others["torch_compile"] = python_loop("torch_compile", name, batch, steps)
        others["torch_vmap"] = Others(
            [LOOPS, "torch_vmap", name, *map(str, (batch, steps // 5, cores, runs))]
        )
        if name == "mlp":
            others["two_torch"] = python_loop("torch", name, batch, steps, processes=2)
        if accelerated:
            others["cpu"] = on_cpu(name)
        elif cores > 1 and (name == "mlp" or not quick):
            others["hundred_lines_spread"] = hundred_lines(name, batch, steps, runs, cores)
        population = ours(dataset, model, options, batch, runs, steps)
        population()
        others = {key: other for key, other in others.items() if other.ready}
        rates: dict[str, list] = {"ours": [], "fraction_of_peak": [], **{key: [] for key in others}}
        for _ in range(rounds):
            rates["ours"].append(population())
            for key, other in others.items():
                rates[key].append(other())
            if name == "mlp":
                operations = rates["ours"][-1] * dense_operations(options, batch)
                rates["fraction_of_peak"].append(operations / peak())
        if name.startswith("mnist1d") and "torch" in rates:
            seconds.append([1 / statistics.median(rates[key]) for key in ("torch", "ours")])
        row = [name, f"{statistics.median(rates['ours']):,.0f}"]
        figures[f"{name}.steps_per_second"] = statistics.median(rates["ours"])
        for key in shown:
            if key not in rates:
                row.append("-")
                continue
            ratios = [a / b for a, b in zip(rates["ours"], rates[key], strict=True)]
            figures[f"{name}.speedup_vs_{key}"] = statistics.median(ratios)
            form = f", {others[key].form.rpartition('_')[2]}" if len(others[key].forms) > 1 else ""
            row.append(f"{statistics.median(rates[key]):,.0f} ({statistics.median(ratios):.1f}x{form})")
        if rates["fraction_of_peak"]:
            figures[f"{name}.fraction_of_peak"] = statistics.median(rates["fraction_of_peak"])
        table.add_row(*row)
        for other in others.values():
            other.close()
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
