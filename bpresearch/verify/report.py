"""What a verification found: rows, culprits, and a table of both."""

import json
import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from bpresearch import files

VALUES = frozenset(
    {"autodiff", "forward mode", "adjoint", "complex step", "finite differences", "taylor", "kinks"}
    | {"second order"}
)
"""The oracles that look at the values of the derivative."""


@dataclass(frozen=True)
class Row:
    """One comparison of one leaf with one oracle.

    Attributes:
        path: where the leaf is: `layers.1.kernel` for a parameter, `input` for the model's input; for the
            oracle `rule` the path of the layer, or `loss`; for `contract` and `behaviour` the clause.
        shape: shape of the leaf; of the layer's output for the oracle `rule`.
        oracle: what it was compared with, or what was asked: one of `verify.ORACLES` (of a model) or
            `verify.FUNCTION_ORACLES`.
        error: relative error; for `rounding` a ratio to autodiff's own error.
        tolerance: the largest error that passes.
        passed: True, False, or None where the oracle cannot resolve the answer ("undecided").
        detail: what was looked at, or why nothing was decided.
        worst: index of the element that is most wrong, the value found there and the value expected.
        hint: what the error looks like, where it has a known shape.
        eps: machine precision of the values, whose units of the last place are counted.

    >>> report = bp.verify.function(jnp.sin, jnp.arange(3.0), oracles=["taylor"])
    >>> [(row.path, row.oracle, row.passed, row.detail) for row in report.rows]
    [('x', 'taylor', True, 'order 2.00')]
    """

    path: str
    shape: tuple[int, ...]
    oracle: str
    error: float
    tolerance: float
    passed: bool | None
    detail: str = ""
    worst: tuple[tuple[int, ...], float, float] | None = None
    hint: str = ""
    eps: float = math.ulp(1.0)

    @property
    def ulps(self) -> float:
        """Distance of the worst element's two values in units of the last place of the larger one."""
        if self.worst is None:
            return math.nan
        _, actual, expected = self.worst
        largest = max(abs(actual), abs(expected))
        if not math.isfinite(actual - expected):
            return math.inf
        unit = max(self.eps * 2.0 ** math.floor(math.log2(largest)), math.ulp(0.0)) if largest else 1.0
        return abs(actual - expected) / unit

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON types; a number that JSON does not have (NaN, infinity) becomes a string."""
        row = {
            "path": self.path,
            "shape": list(self.shape),
            "oracle": self.oracle,
            "error": _plain(self.error),
            "tolerance": _plain(self.tolerance),
            "passed": self.passed,
            "detail": self.detail,
            "hint": self.hint,
        }
        if self.worst is not None:
            index, actual, expected = self.worst
            row |= {
                "index": list(index),
                "found": _plain(actual),
                "expected": _plain(expected),
                "ulps": _plain(self.ulps),
            }
        return row


@dataclass(frozen=True)
class Report:
    """The outcome of a verification. `str()` is a table, `to_json()` the same for programs.

    Attributes:
        rows: every comparison made.
        culprits: paths of the layers whose own rule is wrong, in the order of the forward pass.
        notes: remarks on the verification as a whole, one sentence each.
        hints: what the errors look like, where they have a known shape.

    >>> report = bp.verify.function(jnp.sin, jnp.arange(3.0), oracles=["finite differences"])
    >>> report.passed, [row.oracle for row in report.rows]
    (True, ['finite differences'])
    """

    rows: tuple[Row, ...]
    culprits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()

    @property
    def passed(self) -> bool | None:
        """True: right, as for each leaf an independent oracle resolved the answer. False: wrong. None:
        undecided, as for some leaf none could tell.
        """
        if self.culprits or any(row.passed is False for row in self.rows):
            return False
        decided: dict[str, bool] = {}
        for row in self.rows:
            if row.oracle in VALUES:
                decided[row.path] = decided.get(row.path, False) or row.passed is True
        if decided:
            return True if all(decided.values()) else None
        others = [row.passed for row in self.rows if row.passed is not None]
        return all(others) if others else None

    @property
    def open_leaves(self) -> tuple[str, ...]:
        """The leaves for which no oracle of values could tell."""
        of: dict[str, set[bool | None]] = {}
        for row in self.rows:
            if row.oracle in VALUES:
                of.setdefault(row.path, set()).add(row.passed)
        return tuple(path for path, verdicts in of.items() if verdicts == {None})

    @property
    def undecided(self) -> tuple[Row, ...]:
        """The comparisons whose oracle could not resolve the answer."""
        return tuple(row for row in self.rows if row.passed is None)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return {
            "passed": self.passed,
            "culprits": list(self.culprits),
            "notes": list(self.notes),
            "hints": list(self.hints),
            "rows": [row.to_dict() for row in self.rows],
        }

    def to_json(self) -> str:
        """The report as a JSON text with keys `passed`, `culprits`, `notes`, `hints` and `rows`."""
        return json.dumps(self.to_dict(), indent=2)

    def save_html(self, path: str | Path, title: str = "Verification of a gradient") -> None:
        """Writes the text of the report as a page: what `str()` gives.

        With a picture of the errors and every comparison in a table: `scripts/verify_gradients.py --html`, or
        `bpresearch.report.gradients.page(report.to_dict())`.
        """
        head = '<meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        head += f"<title>{escape(title)}</title>"
        body = f"<h1>{escape(title)}</h1>\n<pre>\n{escape(str(self))}\n</pre>"
        page = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'
        files.write(Path(path), page)

    def summary(self) -> str:
        """The verdict in one sentence."""
        return _sentence(self)

    def __str__(self) -> str:
        return format_report(self)


def _plain(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


_SHORT = {"finite differences": "fin.diff", "complex step": "complex", "forward mode": "forward"}
_WIDTH = 80


def format_report(report: Report) -> str:
    """The report as text of 80 columns: one line per leaf, a column per oracle, the verdict below."""
    of: dict[str, list[Row]] = {"rule": [], "contract": [], "behaviour": [], "": []}
    for row in report.rows:
        of.get(row.oracle, of[""]).append(row)
    lines, said = _table(of[""], "parameter" if of["rule"] else "argument"), []
    for oracle, heading in (("rule", "layer"), ("contract", "contract"), ("behaviour", "behaviour")):
        wrong = [row for row in of[oracle] if row.passed is False]
        if wrong:
            lines += ["", *_table(wrong, heading)]
            said += [f"{row.path}: {row.detail}" for row in wrong]
    said += [_worst(row) for row in of[""] if row.passed is False and row.worst]
    said += report.hints
    if report.culprits:
        said.append(f"culprits: {', '.join(report.culprits)}")
    said = ["", *said] if said else []
    said += ["", *report.notes, _sentence(report)]
    return "\n".join(
        [*lines, *(textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in said)]
    ).strip()


def _worst(row: Row) -> str:
    """The element that is most wrong, with both values and their distance in units of the last place."""
    index, actual, expected = row.worst or ((), math.nan, math.nan)
    where = f"{row.path}[{', '.join(map(str, index))}]" if index else row.path
    ulps = f", {row.ulps:.2g} ulps apart" if math.isfinite(row.ulps) else ""
    return f"{where} is {actual:.9g}, by {row.oracle} {expected:.9g}{ulps}"


def _sentence(report: Report) -> str:
    """The verdict in one sentence."""
    values = [row for row in report.rows if row.oracle in VALUES]
    if report.passed is None:
        if not report.rows:
            return "Nothing is decided: no comparison was made."
        if not values:
            return "Nothing is decided: no oracle of values was asked."
        return f"Undecided: no oracle could tell at {_list(report.open_leaves)}: {_reasons(report)}."
    if report.passed and not values:
        of = dict.fromkeys(row.oracle for row in report.rows)
        return f"Right as far as asked: {_list(tuple(of))} alone, not the derivative's values."
    if report.passed:
        checked = [f"{len(report.rows)} comparisons"]
        checked += [f"{len(report.undecided)} of them undecided"] if report.undecided else []
        for oracle in ("autodiff", "finite differences"):
            right = [row for row in report.rows if row.oracle == oracle and row.passed]
            errors = [row.error for row in right if not _is_zero(row)]
            checked += (
                [f"{oracle} agree{'s' * (oracle == 'autodiff')} to {max(errors):.0e}"] if errors else []
            )
        return f"The gradient is right: {', '.join(checked)}."
    if report.culprits:
        return f"The gradient is wrong: the mistake is in the rule of {', '.join(report.culprits)}."
    wrong = [row for row in report.rows if row.passed is False]
    paths = tuple(dict.fromkeys(row.path for row in wrong))
    chained = any(row.oracle == "rule" for row in report.rows)
    return (
        f"The gradient is wrong at {_list(paths)}{', though no rule of a layer is' if chained else ''}."
        + _of_a_solver(report, wrong)
    )


def _of_a_solver(report: Report, wrong: list[Row]) -> str:
    """What to do where differences alone disagree, and by little, as with a solver that stops early."""
    worst = max((row.error for row in wrong), default=math.inf)
    agrees = any(row.oracle == "autodiff" and row.passed for row in report.rows)
    if not agrees or {row.oracle for row in wrong} - {"finite differences", "taylor"} or not worst < 1e-2:
        return ""
    return f" Only differences of values disagree, by {worst:.0e}: give `tolerance` if a solver is as rough."


def _list(paths: tuple[str, ...]) -> str:
    return ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")


def _reasons(report: Report) -> str:
    """Why nothing was decided at the first of the open leaves, by each oracle."""
    path = report.open_leaves[0]
    rows = [row for row in report.rows if row.oracle in VALUES and row.path == path]
    return "; ".join(f"{row.oracle}: {row.detail or 'unresolved'}" for row in rows[:4])


def _table(rows: Iterable[Row], heading: str) -> list[str]:
    """One line per path, one column per oracle with its error, and a verdict."""
    by_path: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_path.setdefault(row.path, {})[row.oracle] = row
    if not by_path:
        return []
    oracles = list(dict.fromkeys(oracle for by_oracle in by_path.values() for oracle in by_oracle))
    titles = [_SHORT.get(oracle, oracle) for oracle in oracles]
    shapes = {p: "x".join(map(str, next(iter(r.values())).shape)) or "scalar" for p, r in by_path.items()}
    shape_width = max(5, *(len(s) for s in shapes.values()))
    columns = [max(7, len(title)) for title in titles]
    path_width = max(len(heading), *(len(p) for p in by_path))
    room = _WIDTH - shape_width - 2 - sum(c + 2 for c in columns) - 2 - len("undecided")
    path_width = max(8, min(path_width, room))
    head = [f"{heading:<{path_width}}", f"{'shape':<{shape_width}}"]
    head += [f"{title:>{c}}" for title, c in zip(titles, columns, strict=True)]
    lines = ["  ".join([*head, "verdict"])]
    for path, by_oracle in by_path.items():
        name = path if len(path) <= path_width else "..." + path[3 - path_width :]
        cells = [f"{name:<{path_width}}", f"{shapes[path]:<{shape_width}}"]
        for oracle, width in zip(oracles, columns, strict=True):
            cells.append(f"{_number(by_oracle.get(oracle)):>{width}}")
        lines.append("  ".join([*cells, _verdict(by_oracle.values())]))
    return lines


def _is_zero(row: Row) -> bool:
    """Whether the leaf is zero within what rounding does, so that an error has no size to be relative to."""
    return bool(row.passed and row.tolerance >= 1 and row.oracle in VALUES)


def _number(row: Row | None) -> str:
    if row is None:
        return "-"
    if _is_zero(row):
        return "zero"
    if row.passed is None and row.error != row.error:
        return "?"
    if row.oracle == "rounding":
        return f"{row.error:.2f}" if row.error < 1e4 else f"{row.error:.1e}"
    return f"{row.error:.1e}"


def _verdict(rows: Iterable[Row]) -> str:
    verdicts = [row.passed for row in rows]
    if False in verdicts:
        return "WRONG"
    return "undecided" if None in verdicts and True not in verdicts else "right"
