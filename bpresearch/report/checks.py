"""What an experiment prints: tables of numbers, and what it measured beside what theory says."""

from collections.abc import Iterable
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


def grid(title: str, columns: Iterable[str], *, words: Iterable[str] = ()) -> Table:
    """An empty table for the console; columns of numbers are flush right, those of `words` flush left."""
    found = Table(title=title)
    for name in columns:
        found.add_column(name, justify="left" if name in words else "right")
    return found


class Check(NamedTuple):
    """A number that was measured, the one that theory gives, and how far apart they may be."""

    what: str
    found: float | int
    expected: float | int
    tolerance: float | int

    @property
    def passed(self) -> bool:
        """Whether they are within the tolerance; never where one of them is NaN."""
        return abs(self.found - self.expected) <= self.tolerance


def conclude(console: Console, checks: Iterable[Check]) -> int:
    """Prints the checks and returns the exit code: 0 if all hold, 1 if one does not."""
    shown = grid(
        "Measured against theory", ("what", "measured", "theory", "may differ by", "holds"), words=("what",)
    )
    checks = list(checks)
    for check in checks:
        numbers = (f"{number:.5g}" for number in check[1:])
        shown.add_row(check.what, *numbers, "yes" if check.passed else "[bold red]NO[/]")
    console.print(shown)
    return 0 if all(check.passed for check in checks) else 1
