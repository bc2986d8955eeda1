"""The flags of how a sweep is run: on which machines, laid out how, in how much memory, or not at all yet."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from bpresearch import platform, sweep
from bpresearch.command.axes import values
from bpresearch.command.ending import tell_of_lost_processes
from bpresearch.command.start import Stop, choose, program
from bpresearch.platform import DTYPES
from bpresearch.sweep.cost import seconds_in_words

FLAGS = flags.FLAGS


def define_running_flags() -> None:
    """The flags of how a sweep is run."""
    flags.DEFINE_string(
        "layout", "auto", "runs on each device one after another (map), several at a time (vmap), or auto"
    )
    flags.DEFINE_float("memory_fraction", 0.6, "part of the free memory for runs that are trained together")
    flags.DEFINE_string("shard", "runs", "what is spread over the devices: runs, or the data of each batch")
    flags.DEFINE_float(
        "checkpoint_every", 20.0, "seconds between two checkpoints of runs that are being trained, at least"
    )
    flags.DEFINE_bool("distributed", False, "one of many processes that train a sweep together")
    flags.DEFINE_string("coordinator", None, "distributed, where no cluster tells: HOST:PORT of process 0")
    flags.DEFINE_integer("processes", None, "distributed, where no cluster tells: how many there are")
    flags.DEFINE_integer("process", None, "distributed, where no cluster tells: number of this one, from 0")
    flags.DEFINE_string(
        "slice",
        None,
        "3/16: train the third of sixteen parts of the runs, in a folder of its own in --workdir",
    )
    flags.DEFINE_bool("dry_run", False, "print runs, programs, memory and time, and train nothing")
    flags.DEFINE_integer("replay", None, "train this run of the results again, alone, and compare")


def start_from_flags() -> None:
    """Starts JAX as --platform, --precision and --distributed say."""
    running_options()  # what is wrong with them ends the program before any work is done
    cluster = ("coordinator", "processes", "process")
    given = [name for name in cluster if FLAGS[name].present]
    if given and not FLAGS.distributed:
        raise ValueError(f"--{given[0]} is not a flag without --distributed")
    if given and len(given) < len(cluster):
        missing = next(name for name in cluster if name not in given)
        raise ValueError(f"--{given[0]} needs --{missing} too; without all three, the cluster tells")
    if FLAGS.coordinator is not None:
        _check_cluster()
    if FLAGS.distributed and not jax.distributed.is_initialized():
        if FLAGS.platform:
            platform.choose(FLAGS.platform)
        tell_of_lost_processes(program())
        platform.join(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    platform.start(FLAGS.platform, precisions()[0] if len(precisions()) == 1 else "float32")


def _check_cluster() -> None:
    host, _, port = FLAGS.coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f"--coordinator={FLAGS.coordinator}: takes HOST:PORT, such as node1:12345")
    if FLAGS.processes < 1:
        raise ValueError(f"--processes={FLAGS.processes}: takes at least 1")
    if not 0 <= FLAGS.process < FLAGS.processes:
        raise ValueError(
            f"--process={FLAGS.process}: takes 0 to {FLAGS.processes - 1}, as --processes={FLAGS.processes}"
        )


def precisions() -> list[str]:
    """The formats that --precision names."""
    return [choose("precision", name, DTYPES) for name in values("precision", FLAGS.precision, str)]


def running_options() -> dict[str, Any]:
    """How `sweep.run` is to run, by the flags."""
    choose("layout", FLAGS.layout, sweep.LAYOUTS)
    choose("shard", FLAGS.shard, sweep.SHARDS)
    if not 0 < FLAGS.memory_fraction <= 1:
        raise ValueError(f"--memory_fraction={FLAGS.memory_fraction}: takes a number above 0, at most 1")
    if not FLAGS.checkpoint_every >= 0:
        raise ValueError(f"--checkpoint_every={FLAGS.checkpoint_every}: takes seconds, at least 0")
    return {"layout": FLAGS.layout, "memory_fraction": FLAGS.memory_fraction, "shard": FLAGS.shard}


def describe_and_stop(experiment: sweep.Experiment, axes: sweep.Axes | list[sweep.Settings]) -> None:
    """--dry_run: prints what the sweep will take, and ends the program."""
    estimates = sweep.estimate(experiment, axes, **running_options())
    table = Table("program", "runs", "together", "memory", "time", title="What the sweep will take")
    for estimate in estimates:
        together = (
            f"{estimate.together} (vmap {estimate.width})" if estimate.width > 1 else str(estimate.together)
        )
        memory = f"{estimate.memory / 2**20:.0f} MiB"
        table.add_row(
            estimate.program, str(estimate.runs), together, memory, seconds_in_words(estimate.seconds)
        )
    Console().print(table)
    runs, seconds = (
        sum(estimate.runs for estimate in estimates),
        sum(estimate.seconds for estimate in estimates),
    )
    programs = f"{len(estimates)} program{'s' if len(estimates) > 1 else ''}"
    memory = f"{max(estimate.memory for estimate in estimates) / 2**20:.0f} MiB"
    steps = f"{'up to ' if experiment.ends else ''}{experiment.steps} steps"
    print(f"{runs} runs of {steps}, {programs}, {memory}, about {seconds_in_words(seconds)}")
    raise Stop


def replay_and_stop(experiment: sweep.Experiment, runs: list[sweep.Settings], workdir: Path) -> None:
    """--replay: trains one run of the results alone, compares it with them, and ends the program."""
    if not 0 <= FLAGS.replay < len(runs):
        raise ValueError(f"--replay={FLAGS.replay}: the results have runs 0 to {len(runs) - 1}")
    settings = runs[FLAGS.replay]
    alone = sweep.run(experiment, [settings], quiet=FLAGS.quiet, **running_options())
    for name, value in settings.items():
        if value == value:
            print(f"{name}: {sweep.coordinate(value)}")
    for name in ("train_loss", *(name for name in alone if str(name).startswith(("valid_", "test_")))):
        if alone[name].dims in (("run", "step"), ("run", "eval_step")):
            print(f"{name} at the end: {alone[name].values[0, -1]:.6g}")
    stored = sweep.read(workdir) if (workdir / "results.zarr").exists() else None
    if stored is None or FLAGS.replay >= stored.sizes["run"] or not stored.finished[FLAGS.replay]:
        print(f"{workdir} does not hold this run yet")
        raise Stop
    before, now = stored.train_loss[FLAGS.replay].values, alone.train_loss.values[0]
    if np.array_equal(before, now, equal_nan=True):
        print(f"the same as in {workdir}, bit for bit")
        raise Stop
    off = int(np.argmax(~((before == now) | (np.isnan(before) & np.isnan(now)))))
    print(
        f"not the same as in {workdir}: at step {off + 1} the loss is {now[off]:.9g}, there {before[off]:.9g}"
    )
    raise Stop(1)
