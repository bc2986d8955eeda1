"""How sweeps of small models fare: their layouts, thousands of runs, and what saving costs.

Measures on MNIST-1D, in one process and in turn: populations in each layout against a jitted loop in Python
that trains one run after another; thousands of runs of the linear model in one command, the last thousand
against the first; a sweep that streams to disk, shows progress and saves checkpoints against the same in
memory without; and diagnostics every ten steps against none. Compilation is not counted.
"""

import contextlib
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import zarr
from absl import flags
from rich.console import Console
from rich.table import Table

from bpresearch import command as shared
from bpresearch import data, diagnostics, files, models, optim, platform, sweep, train
from bpresearch.data.batches import shuffled_batches
from bpresearch.optim import schedules
from bpresearch.sweep.cost import Rehearsal

flags.DEFINE_bool("quick", False, "fewer steps, runs and rounds: done within 50 s")
flags.DEFINE_string("json", None, "file for the figures, as one flat object")


def experiment(model: Any, options: dict[str, Any], steps: int, **changes: Any) -> sweep.Experiment:
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    changes = {"eval_every": steps} | changes
    return sweep.Experiment(data.load("mnist1d"), model, loss, options, steps=steps, **changes)


def grid(batch: int, runs: int) -> sweep.Axes:
    lr = np.geomspace(1e-3, 1e-1, runs).tolist()
    return sweep.grid(optimizer=optim.momentum, schedule=schedules.constant, lr=lr, momentum=0.9,
                      batch_size=batch, seed=0)  # fmt: skip


def population(task: sweep.Experiment, axes: sweep.Axes, layout: str = "auto") -> Callable[[], float]:
    """Trains the runs in memory when it is called; their steps a second together."""
    return Rehearsal(task, sweep.expand(axes, task.model), layout=layout).steps_per_second


class PythonLoop:
    """One run after another, a jitted step at a time; called, its steps a second."""

    def __init__(self, task: sweep.Experiment, axes: sweep.Axes):
        self.settings = sweep.expand(axes, task.model)[0]
        self.training = task.training(self.settings)
        self.data = tuple(map(jnp.asarray, task.examples()["train"]))
        self.count = task.training_examples
        self.step = jax.jit(self._step)
        self.run = jax.jit(lambda: train.start(self.training, 0, {"momentum": 0.9}))()
        self(50)

    def _step(self, run, order, rate):
        table = {"learning_rate": rate[None]}
        return train.train(self.training, run, self.data, order[None], table, {"momentum": 0.9}, 1, 1)

    def __call__(self, steps: int) -> float:
        order = shuffled_batches(0, self.count, self.settings["batch_size"], 1, steps)
        run, rate = self.run, np.float32(0.01)
        begun = time.perf_counter()
        for index in order:
            run, _ = self.step(run, index, rate)
        jax.block_until_ready(run.params)
        return steps / (time.perf_counter() - begun)


def in_turn(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of what each gives over the rounds; one round before them warms up."""
    rates = [{name: rate() for name, rate in contenders.items()} for _ in range(rounds + 1)][1:]
    return {name: statistics.median(of_round[name] for of_round in rates) for name in contenders}


def layouts(figures: dict[str, float], steps: int, rounds: int) -> None:
    """Two sizes of model under each layout, and the loop in Python."""
    for name, width, batch in (("small", 16, 20), ("wide", 100, 100)):
        task, axes = experiment(models.mlp, {"widths": (width,)}, steps), grid(batch, 64)
        ours = {layout: population(task, axes, layout) for layout in ("auto", "map", "vmap")}
        loop = PythonLoop(task, axes)
        middle = in_turn({"loop": partial(loop, steps), **ours}, rounds)
        figures[f"{name}.steps_per_second"] = middle["auto"]
        figures[f"{name}.speedup_vs_python_loop"] = middle["auto"] / middle["loop"]
        figures[f"{name}.planned_vs_best_layout"] = middle["auto"] / max(middle["map"], middle["vmap"])


def many_runs(figures: dict[str, float], runs: int, steps: int) -> None:
    """Thousands of runs of the linear model: throughput of the last fifth against the first, and memory."""
    times: list[tuple[int, float]] = []
    memory: list[int] = []

    def watch(folder: Path) -> None:
        """Looks every fifth of a second how many runs are finished."""
        while not over.wait(0.2):
            with contextlib.suppress(OSError, KeyError):  # before the store is there
                finished = zarr.open_array(folder / "results.zarr" / "finished", mode="r")[:]
                times.append((int(finished.sum()), time.perf_counter()))
                memory.append(resident())

    over = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        watcher = threading.Thread(target=watch, args=[Path(folder) / "w"])
        watcher.start()
        begun = time.perf_counter()
        sweep.run(experiment(models.linear, {}, steps), grid(100, runs), Path(folder) / "w", quiet=True)
        seconds = time.perf_counter() - begun
        time.sleep(0.5)
        over.set()
        watcher.join()
    count, moment = (np.array(column) for column in zip(*times, strict=True))
    part = runs // 5
    at = lambda number: float(np.interp(number, count, moment))  # noqa: E731
    figures["many.runs_per_second"] = runs / seconds
    figures["many.last_vs_first_fifth"] = (at(2 * part) - at(part)) / (at(runs) - at(runs - part))
    figures["many.memory_growth_mb"] = (memory[-1] - memory[len(memory) // 5]) / 1e6


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def saving(figures: dict[str, float], steps: int, rounds: int) -> None:
    """A sweep with everything on against the same in memory, quiet."""
    task, axes = (
        experiment(models.mlp, {"widths": (100, 100)}, steps, eval_every=max(1, steps // 20)),
        grid(100, 64),
    )
    seconds: dict[str, list[float]] = {"memory": [], "disk": []}
    for round_ in range(rounds + 1):
        for kind, times in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                sweep.run(task, axes, Path(folder) / "w" if kind == "disk" else None, quiet=kind == "memory")
                if round_:  # the first compiles
                    times.append(time.perf_counter() - begun)
    ratios = [a / b for a, b in zip(seconds["disk"], seconds["memory"], strict=True)]
    figures["saving.overhead"] = statistics.median(ratios) - 1


def diagnosing(figures: dict[str, float], runs: int, steps: int, rounds: int) -> None:
    """What diagnostics every ten steps cost a sweep that is evaluated every ten steps anyway."""
    along = (diagnostics.gradient_norms, diagnostics.update_norms, diagnostics.distance,
             diagnostics.step_fidelity)  # fmt: skip
    noise, histogram = (diagnostics.gradient_noise,), (diagnostics.gradient_histogram,)
    sets = {"none": (), "norms_distance_fidelity": along, "noise": noise, "histogram": histogram}
    sets["six"] = (*along, *noise, *histogram)
    ours = {}
    for name, chosen in sets.items():
        task = experiment(models.mlp, {"widths": (100, 100)}, steps, eval_every=10, diagnostics=chosen)
        ours[name] = population(task, grid(100, runs))
    middle = in_turn(ours, rounds)
    for name in list(sets)[1:]:
        figures[f"diagnostics.{name}_cost"] = middle["none"] / middle[name] - 1


def main() -> None:
    json_file = shared.output_file("json")
    platform.start()
    quick = flags.FLAGS.quick
    figures: dict[str, float] = {}
    layouts(figures, 100 if quick else 500, 3 if quick else 5)
    saving(figures, 100 if quick else 1000, 1 if quick else 3)
    diagnosing(figures, 16, 100 if quick else 500, 1 if quick else 5)
    many_runs(figures, 1000 if quick else 5000, 100 if quick else 500)
    table = Table("figure", "value", title="Sweeps of small models")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.3g}" if value < 1000 else f"{value:,.0f}")
    Console().print(table)
    files.write_figures(json_file, figures)


if __name__ == "__main__":
    shared.run(main)
