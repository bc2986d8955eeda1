"""A verification report as one self-contained page, for light and dark screens."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #8886; --right: #1a7f37; --wrong: #cf222e; --open: #9a6700 }
@media (prefers-color-scheme: dark) { :root { --right: #3fb950; --wrong: #ff7b72; --open: #d29922 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0 0 1.5rem }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top }
td.number { text-align: right; white-space: nowrap }
.right { color: var(--right) }
.wrong { color: var(--wrong); font-weight: 600 }
.undecided { color: var(--open) }
.wide { overflow-x: auto }
"""
HEADINGS = ("leaf or layer", "shape", "oracle", "error", "tolerance", "verdict", "worst element", "remarks")


def page(report: Any, title: str = "Verification of a gradient") -> str:
    """The report as HTML: verdict and culprits first, then what is wrong, what is undecided and the rest.

    Everything that comes from the report is escaped, and nothing is loaded from elsewhere.
    """
    verdict = "right" if report.passed else "wrong"
    said = [*(f"culprit: {path}" for path in report.culprits), *report.hints, *report.notes]
    groups = (
        ("Wrong", [row for row in report.rows if row.passed is False]),
        ("Undecided", [row for row in report.rows if row.passed is None]),
        ("Right", [row for row in report.rows if row.passed is True]),
    )
    body = [f"<h1>{escape(title)}</h1>", f'<p class="{verdict}">{escape(report.summary())}</p>']
    body += ["<ul>", *(f"<li>{escape(line)}</li>" for line in said), "</ul>"] if said else []
    for heading, rows in groups:
        body += [f"<h2>{heading} ({len(rows)})</h2>", _table(rows)] if rows else []
    head = (
        f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(title)}</title>"
    )
    return f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>\n" + "\n".join(
        [*body, "</body></html>\n"]
    )


def _table(rows: Sequence[Any]) -> str:
    head = "".join(f"<th scope=col>{heading}</th>" for heading in HEADINGS)
    return f"<div class=wide><table><tr>{head}</tr>\n" + "\n".join(map(_row, rows)) + "\n</table></div>"


def _row(row: Any) -> str:
    verdict = {True: "right", False: "wrong", None: "undecided"}[row.passed]
    worst = ""
    if row.worst is not None and row.passed is not True:
        index, found, expected = row.worst
        ulps = f", {row.ulps:.2g} ulps apart" if math.isfinite(row.ulps) else ""
        worst = f"{list(index)}: {found:.9g}, expected {expected:.9g}{ulps}"
    remarks = "; ".join(part for part in (row.detail, row.hint) if part)
    shape = "\u00d7".join(map(str, row.shape)) or "scalar"
    cells = [f"<td>{escape(text)}</td>" for text in (row.path, shape, row.oracle)]
    cells += [f"<td class=number>{number:.2g}</td>" for number in (row.error, row.tolerance)]
    cells += [f'<td class="{verdict}">{verdict}</td>']
    cells += [f"<td>{escape(text)}</td>" for text in (worst, remarks)]
    return f"<tr>{''.join(cells)}</tr>"
