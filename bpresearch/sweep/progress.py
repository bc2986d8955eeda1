"""How far a sweep is: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn


@runtime_checkable
class ProgressReport(Protocol):
    """Called whenever the sweep has got further.

    Args:
        steps: steps done since the last call.
        runs: runs finished since the last call.
        diverged: those of them that diverged.
        note: a remark.
        best: the best result so far, in a few words; empty if it has not changed.
    """

    def __call__(
        self, *, steps: int = 0, runs: int = 0, diverged: int = 0, note: str = "", best: str = ""
    ) -> None: ...


class State:
    """What has been reported so far.

    >>> state = State(runs=20, steps=2000, begun=0.0)
    >>> state.add(steps=500, runs=4, diverged=1, best="97.1 %")
    >>> state.text(now=2.0)
    '4 of 20 runs, 1 diverged, 250 steps/s, 0:06 left, best 97.1 %'
    """

    def __init__(self, runs: int, steps: int, begun: float):
        self.all_runs, self.all_steps, self.begun = runs, max(steps, 1), begun
        self.runs = self.steps = self.diverged = 0
        self.best = ""

    def add(self, *, steps: int = 0, runs: int = 0, diverged: int = 0, best: str = "") -> None:
        """Counts what a call reports."""
        self.steps += steps
        self.runs += runs
        self.diverged += diverged
        self.best = best or self.best

    @property
    def share(self) -> float:
        """The part of all steps that is done."""
        return self.steps / self.all_steps

    def text(self, now: float) -> str:
        """Runs, diverged runs, steps per second, time left and the best so far, in one line."""
        rate = self.steps / max(now - self.begun, 1e-9)
        parts = [f"{self.runs} of {self.all_runs} runs"]
        parts += [f"{self.diverged} diverged"] if self.diverged else []
        parts.append(f"{rate:,.0f} steps/s")
        left = max(self.all_steps - self.steps, 0)
        if self.steps and left:
            parts.append(f"{clock(left / rate)} left")
        parts += [f"best {self.best}"] if self.best else []
        return ", ".join(parts)


def clock(seconds: float | int) -> str:
    """A duration: `0:06`, `12:30`, `1:02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


@contextmanager
def progress(runs: int, steps: int, quiet: bool = False) -> Iterator[ProgressReport]:
    """Shows the progress of `runs` runs with `steps` steps in all, on stderr: nothing if `quiet`, a bar on a
    terminal, and elsewhere a line for every tenth of the steps.
    """
    console = Console(stderr=True)
    state = State(runs, steps, time.monotonic())
    if quiet or not console.is_terminal:
        yield _lines(state, quiet)
        return
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:3.0f} %"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("compiling", total=state.all_steps)

        def on_terminal(
            *, steps: int = 0, runs: int = 0, diverged: int = 0, note: str = "", best: str = ""
        ) -> None:
            state.add(steps=steps, runs=runs, diverged=diverged, best=best)
            text = note if note and not state.steps else state.text(time.monotonic())
            bar.update(task, advance=steps, description=escape(text))

        yield on_terminal


def _lines(state: State, quiet: bool) -> ProgressReport:
    """A report that prints a line for every tenth of the steps, and notes as they come."""
    tenths = 0

    def plain(*, steps: int = 0, runs: int = 0, diverged: int = 0, note: str = "", best: str = "") -> None:
        nonlocal tenths
        state.add(steps=steps, runs=runs, diverged=diverged, best=best)
        if quiet:
            return
        if note:
            print(note, file=sys.stderr, flush=True)
        # The last line tells of all runs: their results come after their last steps.
        reached = min(int(state.share * 10 + 1e-9), 10 if state.runs >= state.all_runs else 9)
        if reached > tenths:
            tenths = reached
            print(f"{reached * 10:3d}%  {state.text(time.monotonic())}", file=sys.stderr, flush=True)

    return plain
