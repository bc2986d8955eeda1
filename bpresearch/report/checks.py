"""What an experiment measured beside what theory says."""

from collections.abc import Iterable
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


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
    grid = Table(title="Measured against theory")
    grid.add_column("")
    for name in ("measured", "theory", "may differ by", ""):
        grid.add_column(name, justify="right")
    checks = list(checks)
    for check in checks:
        numbers = (f"{number:.5g}" for number in check[1:])
        grid.add_row(check.what, *numbers, "yes" if check.passed else "[bold red]NO[/]")
    console.print(grid)
    return 0 if all(check.passed for check in checks) else 1
