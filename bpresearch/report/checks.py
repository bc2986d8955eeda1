"""What an experiment of the theory found: tables, a verdict, pictures, and numbers beside those of theory."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, SupportsFloat

import altair as alt
from rich.console import Console
from rich.table import Table

from bpresearch.report.figures import write_picture


def grid(title: str, columns: Iterable[str], *, words: Iterable[str] = ()) -> Table:
    """An empty table for the console; columns of numbers are flush right, those of `words` flush left."""
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="left" if name in words else "right")
    return table


class Check(NamedTuple):
    """A number that was measured, the one that theory gives, and how far apart they may be.

    Without a tolerance what theory gives is a limit, and the number must be less (see `below`).
    """

    what: str
    measured: float | int
    expected: float | int
    tolerance: float | int | None

    @classmethod
    def below(cls, what: str, measured: float | int, limit: float | int) -> "Check":
        """A number that must be less than a limit.

        >>> from bpresearch.report import Check
        >>> Check.below("loss after / before", 0.9, 1).passed, Check.below("loss after / before", 1, 1).passed
        (True, False)
        """
        return cls(what, measured, limit, None)

    @property
    def passed(self) -> bool:
        """Whether they are within the tolerance, or the number below its limit; never if one is NaN."""
        if self.tolerance is None:
            return bool(self.measured < self.expected)
        return bool(abs(self.measured - self.expected) <= self.tolerance)


class Finding(NamedTuple):
    """What an experiment found."""

    verdict: str
    """The answer, in sentences."""
    checks: Sequence[Check]
    figures: Mapping[str, SupportsFloat]
    """What was measured, by name, for `--json`."""
    tables: Sequence[Table | str] = ()
    """Tables, and what is to be said between them."""
    pictures: Mapping[str, alt.TopLevelMixin] = {}
    """Pictures, by the name of their files."""


def conclude(console: Console, finding: Finding, folder: Path) -> int:
    """Prints what was found, and writes its pictures into a folder; the exit code: 0 if all checks hold, 1 if
    one does not."""
    for table in finding.tables:
        console.print(table)
    if finding.verdict:
        console.print(finding.verdict)
    for name, picture in finding.pictures.items():
        console.print(f"Picture: {write_picture(picture, folder, name)}")
    if not finding.checks:
        return 0
    shown = grid(
        "Measured against theory", ("what", "measured", "theory", "may differ by", "holds"), words=("what",)
    )
    for check in finding.checks:
        theory = f"{check.expected:.5g}"
        allowed = (f"< {theory}", "") if check.tolerance is None else (theory, f"{check.tolerance:.5g}")
        shown.add_row(
            check.what, f"{check.measured:.5g}", *allowed, "yes" if check.passed else "[bold red]NO[/]"
        )
    console.print(shown)
    return 0 if all(check.passed for check in finding.checks) else 1
