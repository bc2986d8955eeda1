"""How far a sweep is: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@runtime_checkable
class Report(Protocol):
    """Called whenever the sweep has got further."""

    def __call__(self, *, steps: int = 0, runs: int = 0, diverged: int = 0, note: str = "") -> None: ...


@contextmanager
def progress(runs: int, steps: int, quiet: bool = False) -> Iterator[Report]:
    """Shows the progress of `runs` runs with `steps` steps in all, on stderr."""
    console = Console(stderr=True)
    done = {"runs": 0, "steps": 0, "diverged": 0}
    begun = time.monotonic()

    def rate() -> float:
        return done["steps"] / max(time.monotonic() - begun, 1e-9)

    def state() -> str:
        diverged = f", {done['diverged']} diverged" if done["diverged"] else ""
        return f"{done['runs']} of {runs} runs{diverged}, {rate():,.0f} steps/s"

    if quiet or not console.is_terminal:
        marks = iter([] if quiet else [tenth / 10 for tenth in range(1, 11)])
        mark = next(marks, None)

        def plain(*, steps: int = 0, runs: int = 0, diverged: int = 0, note: str = "") -> None:
            nonlocal mark
            _count(done, steps, runs, diverged)
            if note and not quiet:
                print(note, file=sys.stderr, flush=True)
            while mark is not None and done["steps"] >= mark * total:
                if done["steps"] < (mark + 0.1) * total or mark == 1:
                    print(f"{mark:4.0%}  {state()}", file=sys.stderr, flush=True)
                mark = next(marks, None)

        total = max(steps, 1)
        yield plain
        return

    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("compiling", total=steps)

        def rich(*, steps: int = 0, runs: int = 0, diverged: int = 0, note: str = "") -> None:
            _count(done, steps, runs, diverged)
            bar.update(task, advance=steps, description=note if done["steps"] == 0 and note else state())

        yield rich


def _count(done: dict[str, int], steps: int, runs: int, diverged: int) -> None:
    done["steps"] += steps
    done["runs"] += runs
    done["diverged"] += diverged
