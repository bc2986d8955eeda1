"""Kills a sweep at random moments, resumes it each time, and compares the results with an undisturbed one's.

A process is killed (SIGKILL) at a random moment of its life: while it compiles, trains, writes results or
saves a checkpoint. The next one goes on in the same workdir. When one finishes, its store must hold the very
bits of the undisturbed sweep; then a new workdir is begun, until there were --kills kills.
"""

import os
import random
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optax
import xarray as xr
from absl import flags
from rich.console import Console

from bpresearch import command as shared
from bpresearch import data, files, models, optim, platform, sweep
from bpresearch.optim import schedules

flags.DEFINE_integer("kills", 20, "how often a sweep is killed")
flags.DEFINE_integer("random_seed", 0, "of the moments")
flags.DEFINE_string("platform", "cpu", "where the sweep is trained: cpu, gpu, tpu")
flags.DEFINE_bool("quick", False, "three kills")
flags.DEFINE_string("json", None, "file for the figures, as one flat object")


def train(workdir: Path) -> None:
    """A sweep of a few seconds, with a checkpoint after every chunk."""
    platform.start(flags.FLAGS.platform)
    task = data.load("spirals")
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    experiment = sweep.Experiment(task, models.mlp, loss, {"widths": (64, 64)}, steps=1000, eval_every=50)
    axes = sweep.grid(optimizer=[optim.sgd, optim.momentum], schedule=schedules.cosine, lr=[0.03, 0.1, 1e30],
                      momentum=0.9, batch_size=50, seed=range(2))  # fmt: skip
    sweep.run(experiment, axes, workdir, quiet=True, checkpoint_every=0)


def compare(workdir: Path, undisturbed: Path) -> None:
    """Raises an AssertionError unless both stores hold the same bits."""
    resumed, expected = (
        xr.open_zarr(path / "results.zarr", consolidated=False) for path in (workdir, undisturbed)
    )
    assert set(resumed.variables) == set(expected.variables)
    for name, values in expected.variables.items():
        np.testing.assert_array_equal(resumed[name].values, values.values, err_msg=str(name))
    assert bool(resumed.finished.all()) and not (workdir / "checkpoints").exists()


def apart(function: Callable[..., None], *arguments: Path) -> int:
    """The id of a process of its own that calls the function and then exits with 0."""
    with warnings.catch_warnings(action="ignore"):  # zarr's thread, which zarr itself renews in a fork
        child = os.fork()
    if child == 0:
        function(*arguments)
        os._exit(0)
    return child


def ended(child: int, seconds: float) -> bool:
    """Whether the process ends by itself within this time; if not, it is killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            if code := os.waitstatus_to_exitcode(status):
                raise SystemExit(max(code, 1))  # it has said why
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> int:
    json_file = shared.output_file("json")
    kills = 3 if flags.FLAGS.quick else shared.positive("kills")
    moments = random.Random(flags.FLAGS.random_seed)
    folder = Path(tempfile.mkdtemp())
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
    undisturbed, workdir = folder / "undisturbed", folder / "killed"
    ended(apart(train, folder / "warm"), np.inf)  # fills the compilation cache
    begun = time.monotonic()
    ended(apart(train, undisturbed), np.inf)
    duration = time.monotonic() - begun
    done = sweeps = 0
    while done < kills or workdir.exists():
        last = done >= kills
        if not ended(apart(train, workdir), np.inf if last else moments.uniform(0, duration)):
            done += 1
            continue
        ended(apart(compare, workdir, undisturbed), np.inf)
        sweeps += 1
        shutil.rmtree(workdir)
    shutil.rmtree(folder)
    Console().print(
        f"{done} kills: the {sweeps} resumed sweep{'s' if sweeps > 1 else ''} gave the undisturbed bits"
    )
    files.write_figures(json_file, {"kills": done, "sweeps": sweeps})
    return 0


if __name__ == "__main__":
    shared.run(main)
