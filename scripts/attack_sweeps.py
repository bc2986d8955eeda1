"""Attacks sweeps, and counts what they answer: flags and files at random, damaged workdirs, and kills.

Flags and data files that nobody means are tried in one process: each must be accepted, or refused in one line
that names the flag or the file. Every kind of damage is done to the files of a workdir: whoever reads it
must say so in one line, or have the very results. A sweep is killed at a file event, any of those of its
store, checkpoints, journal and pruning: the same command must then give the undisturbed bits. Of two
processes one is killed, at a file event of either: the other must end within a minute, in one line and with
exit code 2, and the same command in both must give the bits of an undisturbed pair.

A seed is drawn anew and printed; --random_seed repeats one. Exit code 1 if something was lost or silent.
"""

import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from attack_inputs import answer, fuzz_files, fuzz_flags  # type: ignore[import-not-found]
from rich.console import Console

from bpresearch import command as shared
from bpresearch import data, files, losses, models, optim, platform, sweep
from bpresearch.command import compare, ending, start
from bpresearch.optim import schedules
from bpresearch.sweep import stream

FLAGS = flags.FLAGS

# workdirs -------------------------------------------------------------------------------------------------


def called(key: Any, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """What a sweep of a function calls."""
    return {"end": hyperparameters["scale"] * jnp.ones(()), "nothing": jnp.zeros(3)}


def of_function(workdir: Path) -> Any:
    return sweep.run(called, sweep.grid(scale=[0.5, 1.0], kind=["a", "b"], seed=[0, 1]), workdir, quiet=True)


def experiment() -> sweep.Experiment:
    return sweep.Experiment(
        data.load("spirals"),
        models.mlp,
        losses.named("cross_entropy"),
        {"widths": (8,)},
        steps=60,
        eval_every=5,
    )


def axes(**changes: Any) -> Any:
    usual = {"optimizer": [optim.momentum], "schedule": [schedules.cosine], "lr": [0.03, 0.1, 0.3]}
    return sweep.grid(**(usual | {"momentum": 0.9, "batch_size": 50, "seed": [0, 1]} | changes))


def of_training(workdir: Path) -> Any:
    return sweep.run(experiment(), axes(), workdir, quiet=True, checkpoint_every=0)


def of_pruning(workdir: Path) -> Any:
    return sweep.run(experiment(), axes(), workdir, quiet=True, prune="halving")


def of_search(workdir: Path) -> Any:
    drawn = axes(lr=sweep.Uniform(0.01, 1.0, log=True))
    return sweep.search(experiment(), drawn, trials=4, batch=2, workdir=workdir, quiet=True)


SWEEPS = {"function": of_function, "training": of_training, "pruning": of_pruning, "search": of_search}


def stopped_training(workdir: Path) -> Any:
    """A sweep of trainings with a checkpoint, stopped after its second call."""
    add, seen = stream.Stream.add, []

    def counted(self: Any, call: Any) -> None:
        seen.append(call)
        add(self, call)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    stream.Stream.add = counted  # type: ignore[method-assign]
    try:
        of_training(workdir)
    except sweep.Interrupted:
        pass
    finally:
        stream.Stream.add = add  # type: ignore[method-assign]


def damage(path: Path, kind: str, draw: random.Random) -> None:
    """Does this to a file."""
    content = path.read_bytes()
    at = draw.randrange(max(len(content), 1))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/nowhere/at/all")
    elif kind != "lost":
        bit = bytes([content[at] ^ 1 << draw.randrange(8)]) if content else b"\1"
        changed = {"empty": b"", "half": content[: len(content) // 2], "zeros": bytes(len(content))}
        changed |= {
            "bit": content[:at] + bit + content[at + 1 :],
            "brackets": b"[" * 100_000,
            "longer": content * 2,
        }
        path.write_bytes(changed[kind])


KINDS = ("lost", "empty", "half", "zeros", "bit", "brackets", "longer", "folder", "link")


def do_damages(count: int, draw: random.Random, folder: Path) -> list[str]:
    """Damages workdirs, resumes and reads them; returns what was silent or lost."""
    sources = {"function": of_function, "training": stopped_training}
    for name, make in sources.items():
        make(folder / name)
    expected = {"function": sweep.read(folder / "function"), "training": of_training(folder / "whole").load()}
    cases = [
        (name, path.relative_to(folder / name), kind)
        for name in sources
        for path in sorted((folder / name).rglob("*"))
        if path.is_file() and path.name != "lock"
        for kind in KINDS
    ]
    faults = []
    for number, (name, file, kind) in enumerate(draw.sample(cases, min(count, len(cases)))):
        workdir = folder / f"damaged-{number}"
        shutil.copytree(folder / name, workdir)
        damage(workdir / file, kind, draw)
        results: list[Any] = []
        readers = [sweep.read, SWEEPS[name]] if name == "function" else [SWEEPS[name]]
        for read in readers:
            said = answer(lambda: results.append(read(workdir)))  # noqa: B023
            silent = said is None and not same(results.pop(), expected[name])
            if silent or (said is not None and str(workdir) not in said):
                faults.append(f"{name}/{file}, {kind}, {read.__name__}: {'silent' if silent else said[:300]}")
        shutil.rmtree(workdir, ignore_errors=True)
    return faults


def same(found: Any, expected: Any) -> bool:
    """Whether two results have the same bits."""
    return set(found.variables) == set(expected.variables) and all(
        np.array_equal(found[name].values, values.values, equal_nan=values.dtype.kind == "f")
        for name, values in expected.variables.items()
    )


# kills ----------------------------------------------------------------------------------------------------


def kill_at(event: int, workdir: Path) -> list[int]:
    """From now on this process is killed at its event of this number that changes a file of the workdir."""
    events = [0]

    def seen(name: str, arguments: tuple[Any, ...]) -> None:
        changes = name in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
        writes = name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (changes or writes) and str(workdir) in str(arguments[0]):
            events[0] += 1
            if events[0] == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(seen)
    return events


def together(calls: Sequence[Callable[[], Any]], seconds: float = 600) -> list[tuple[int | None, str]]:
    """Exit code and output of processes that call these, each one; None of one that took longer."""
    with tempfile.TemporaryDirectory() as name:
        outputs = [Path(name) / str(number) for number in range(len(calls))]
        children = [in_a_fork(call, output) for call, output in zip(calls, outputs, strict=True)]
        end, codes = time.monotonic() + seconds, dict.fromkeys(children)
        while None in codes.values() and time.monotonic() < end:
            time.sleep(0.05)
            for child in [child for child, code in codes.items() if code is None]:
                ended, status = os.waitpid(child, os.WNOHANG)
                codes[child] = os.waitstatus_to_exitcode(status) if ended else None
        for child in [child for child, code in codes.items() if code is None]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        texts = [re.sub(r"^\[Gloo\].*\n", "", path.read_text(), flags=re.M) for path in outputs]
        return [(codes[child], text) for child, text in zip(children, texts, strict=True)]


def in_a_fork(call: Callable[[], Any], output: Path) -> int:
    """Begins a process that calls this and prints what it returns, or the error, into a file."""
    with warnings.catch_warnings(action="ignore"):  # zarr's thread, which zarr itself renews in a fork
        child = os.fork()
    if child == 0:
        code = 1
        with output.open("w") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        try:
            os.write(1, str(call()).encode())
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException as error:
            os.write(1, f"{type(error).__name__}: {error}"[:500].encode())
        finally:
            os._exit(code)
    return child


def apart(call: Callable[[], Any]) -> tuple[int | None, str]:
    """Exit code and output of a process of its own that starts JAX and calls this."""

    def started() -> Any:
        platform.start("cpu")
        return call()

    return together([started])[0]


def do_kills(count: int, draw: random.Random, folder: Path) -> list[str]:
    """Kills sweeps at file events and resumes them; returns what was lost."""

    def counted(name: str) -> int:
        events = kill_at(-1, folder / name)
        SWEEPS[name](folder / name)
        return events[0]

    events = {name: int(apart(partial(counted, name))[1]) for name in SWEEPS}
    moments = [(name, event + 1) for name, most in events.items() for event in range(most)]
    chosen = draw.sample(moments, min(count, len(moments)))
    faults = []
    for number, (name, event) in enumerate(chosen):
        workdir = folder / f"killed-{number}"
        code, text = apart(lambda: (kill_at(event, workdir), SWEEPS[name](workdir)))  # noqa: B023
        if code != -signal.SIGKILL:
            continue  # a thread's event came at another time: it was done before
        code, text = apart(lambda: same(SWEEPS[name](workdir).load(), sweep.read(folder / name)))  # noqa: B023
        left = [
            path.name for path in workdir.glob("*") if path.name in ("checkpoints", "results.zarr.unfinished")
        ]
        left += [path.name for path in workdir.glob(".*")]
        if text != "True" or left:
            faults.append(f"{name}, killed at event {event} of {events[name]}: {text[:300]} {left or ''}")
        shutil.rmtree(workdir)
    return faults


def of_pair(workdir: Path, event: int = -1, killed: int = -1) -> list[tuple[int | None, str]]:
    """Two processes that sweep together, of which one is killed at its event of this number."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"localhost:{probe.getsockname()[1]}"

    def call(number: int) -> None:
        platform.choose("cpu")
        platform.join(coordinator, 2, number)
        platform.start("cpu", cpu_devices=1)
        events = kill_at(event if number == killed else -1, workdir)
        of_training(workdir)
        print(events[0], flush=True)

    def command(number: int) -> None:
        sys.argv[1:] = []
        ending.tell_of_lost_processes("sweep")
        start.run(lambda: call(number))

    return together([partial(command, number) for number in range(2)])


def do_pairs(count: int, draw: random.Random, folder: Path) -> list[str]:
    """Kills one of two processes, and begins both again; returns what was lost."""
    whole = of_pair(folder / "whole")
    moments = [(killed, event + 1) for killed in range(2) for event in range(int(whole[killed][1] or 0))]
    faults = []
    for number, (killed, event) in enumerate(draw.sample(moments, min(count, len(moments)))):
        workdir, name = folder / f"killed-{number}", f"process {killed} of two, killed at event {event}"
        before = time.monotonic()
        ended = of_pair(workdir, event, killed)
        if ended[killed][0] != -signal.SIGKILL:
            continue
        code, text = ended[1 - killed]
        late = time.monotonic() - before > 120  # a minute, and what the sweep itself took before
        if code not in (0, 2) or late or text.count("\n") > 1:
            faults.append(f"{name}: the other ended with {code}{' late' if late else ''}: {text[:300]}")
        again = of_pair(workdir)
        if [code for code, _ in again] != [0, 0] or not same(
            sweep.read(workdir), sweep.read(folder / "whole")
        ):
            faults.append(f"{name}: not the undisturbed bits: {[text[:200] for _, text in again]}")
        shutil.rmtree(workdir)
    return faults


def main() -> int:
    json_file = shared.output_file("json")
    seed = random.SystemRandom().randrange(2**32) if FLAGS.random_seed is None else FLAGS.random_seed
    counts: dict[str, int] = {
        name: int(FLAGS[name].value or 0) for name in ("flags", "files", "damages", "kills", "pairs")
    }
    if FLAGS.quick:
        counts = {"flags": 60, "files": 60, "damages": 6, "kills": 2, "pairs": 1}
    for name in counts:
        shared.positive(name, low=0)
    console = Console()
    console.print(f"--random_seed={seed}")
    folder = Path(tempfile.mkdtemp())
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
    attacks: dict[str, Callable[[int, random.Random, Path], list[str]]] = {
        "kills": do_kills,  # first: a process that has started JAX must not fork
        "pairs": do_pairs,
        "files": fuzz_files,
        "damages": do_damages,
        "flags": lambda count, draw, _: fuzz_flags(count, draw),
    }
    figures: dict[str, int] = {"seed": seed}
    for name, attack in attacks.items():
        (folder / name).mkdir()
        if counts[name] and name == "damages":
            platform.start("cpu")
        faults = attack(counts[name], random.Random(seed), folder / name) if counts[name] else []
        for fault in faults:
            console.print(fault, markup=False, soft_wrap=True)
        console.print(f"{name}: {counts[name]} tried, {len(faults)} without a right answer")
        figures |= {name: counts[name], f"{name}_faults": len(faults)}
    shutil.rmtree(folder, ignore_errors=True)
    files.write_figures(json_file, figures)
    return 1 if any(figures[f"{name}_faults"] for name in attacks) else 0


if __name__ == "__main__":
    compare.define_flags()
    flags.DEFINE_integer("flags", 700, "flags that are tried")
    flags.DEFINE_integer("files", 300, "data files that are tried")
    flags.DEFINE_integer("damages", 60, "damages of workdirs")
    flags.DEFINE_integer("kills", 100, "kills of sweeps")
    flags.DEFINE_integer("pairs", 10, "kills of one of two processes")
    flags.DEFINE_integer("random_seed", None, "repeats a run; by default drawn anew")
    flags.DEFINE_bool("quick", False, "few of each")
    shared.run(main)
