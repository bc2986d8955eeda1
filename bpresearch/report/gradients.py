"""A verification of gradients as a page: errors by layer and parameter, the culprit, the chain of layers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from bpresearch.report.page import Section, Table, render
from bpresearch.report.style import WIDTH, parameters

BY_THEMSELVES = ("rule", "contract", "behaviour")
"""Oracles whose rows are not about a parameter or the input."""


def page(report: Mapping[str, Any], title: str = "Gradient check") -> str:
    """The page of a verification.

    Args:
        report: `passed`, `culprits`, `notes`, `hints` and `rows`, as `verify.Report.to_dict` gives them.
        title: heading of the page.
    """
    return render(title, [section(report)])


def section(report: Mapping[str, Any]) -> Section:
    """The verification as a part of a page: verdict, chain, heat map and table."""
    rows = report["rows"]
    wrong = [row for row in rows if row["passed"] is False]
    culprits = list(report.get("culprits", []))
    if report["passed"]:
        lead = f"The gradient is right: {len(rows)} comparisons."
    elif culprits:
        lead = f"The gradient is wrong: the mistake is in the rule of {', '.join(culprits)}."
    else:
        lead = f"The gradient is wrong at {', '.join(dict.fromkeys(row['path'] for row in wrong))}."
    said = [f"{row['path']}: {row['detail']}" for row in wrong if row["oracle"] in BY_THEMSELVES]
    verification = Section("gradient", "Gradient check", [lead])
    verification.warnings = [*dict.fromkeys([*said, *report.get("hints", ())])]
    verification.text = [
        *report.get("notes", ()),
        "The cotangent flows from the loss to the input. Each layer's own rule is checked by itself, "
        "with the right cotangent of its output, so that a mistake is found where it is made.",
    ]
    verification.chain = chain(report)
    verification.tables = [_table(rows)]
    if any(row.get("error") is not None for row in rows):
        verification.pictures = {"gradient_errors": error_map(report)}
    return verification


def chain(report: Mapping[str, Any]) -> Sequence[Mapping[str, object]]:
    """The layers from the loss back to the input, each with its parameters and what was found of them.

    A layer that only contains others is left out, unless it is the culprit.
    """
    culprits = set(report.get("culprits", []))
    links = []
    for layer, rules, leaves in by_layer(report["rows"]):
        contains = not leaves and any(
            other.startswith(f"{layer}.") for other, _, _ in by_layer(report["rows"])
        )
        if (contains or layer == "model") and layer not in culprits:
            continue
        state = "culprit" if layer in culprits else "right"
        text = "✗ culprit: its own rule is wrong" if layer in culprits else "✓ rule right" if rules else ""
        verdicts = [_leaf(name, rows) for name, rows in leaves.items()]
        links.append({"name": layer, "state": state, "verdict": text, "leaves": verdicts})
    return links


Layer = tuple[str, list[Mapping[str, Any]], dict[str, list[Mapping[str, Any]]]]
"""A layer's path, the rows of its rule, and those of each of its parameters."""


def by_layer(rows: Sequence[Mapping[str, Any]]) -> list[Layer]:
    """The rows in the order in which the cotangent flows: loss, last layer to first, input.

    The rules' rows stand in the order of the forward pass. What belongs to no layer is left out.
    """
    rules: dict[str, list[Mapping[str, Any]]] = {}
    leaves: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        if row["oracle"] == "rule":
            rules.setdefault(row["path"], []).append(row)
    for row in rows:
        if row["oracle"] not in BY_THEMSELVES:
            owner, leaf = _owner(row["path"], list(rules))
            leaves.setdefault(owner, {}).setdefault(leaf, []).append(row)
    order = [layer for layer in reversed(rules) if layer != "loss"]
    order += [owner for owner in leaves if owner not in rules and owner != "input"]
    ends = [["loss"] if "loss" in rules else [], ["input"] if "input" in leaves else []]
    return [(name, rules.get(name, []), leaves.get(name, {})) for name in [*ends[0], *order, *ends[1]]]


def _owner(path: str, layers: list[str]) -> tuple[str, str]:
    """The innermost layer that holds a parameter, and the parameter's name in it."""
    if path == "input":
        return path, "gradient with respect to it"
    holding = [layer for layer in layers if path.startswith(f"{layer}.")]
    owner = max(holding, key=len) if holding else path.rpartition(".")[0] or path
    return owner, path.removeprefix(f"{owner}.")


def _leaf(name: str, rows: list[Mapping[str, Any]]) -> dict[str, str]:
    wrong = any(row["passed"] is False for row in rows)
    errors = ", ".join(f"{row['oracle']} {_number(row['error'])}" for row in rows)
    return {"name": name, "state": "wrong" if wrong else "right", "text": f"{'✗' if wrong else '✓'} {errors}"}


def error_map(report: Mapping[str, Any]) -> alt.TopLevelMixin:
    """A heat map of error over tolerance: a row for each layer's parameter, a column for each oracle.

    Its colour is the logarithm: below zero passes. What fails has a cross, a culprit is named.
    """
    culprits = set(report.get("culprits", []))
    cells = []
    for layer, rules, leaves in by_layer(report["rows"]):
        name = f"▶ {layer} (culprit)" if layer in culprits else layer
        cells += [(name, row) for row in rules]
        cells += [(f"{layer}: {leaf}", row) for leaf, rows in leaves.items() for row in rows]
    frame = pd.DataFrame(
        {
            "where": where,
            "oracle": {"rule": "the layer's own rule"}.get(row["oracle"], row["oracle"]),
            "error": _number(row["error"]),
            "tolerance": _number(row["tolerance"]),
            "ratio": _ratio(row),
            "mark": {True: "", False: "× ", None: "? "}[row["passed"]],  # noqa: RUF001
            "detail": row.get("detail", ""),
        }
        for where, row in cells
    )
    order = list(dict.fromkeys(frame["where"]))
    x = alt.X("oracle:N", sort=list(dict.fromkeys(frame.oracle)), title=None)
    x["axis"] = alt.Axis(labelAngle=0, orient="top", labelLimit=140)
    y = alt.Y("where:N", sort=order, title=None, axis=alt.Axis(labelLimit=260))
    colour = alt.Color(
        "ratio:Q",
        title="log10 (error / tolerance)",
        scale=alt.Scale(scheme="blueorange", domain=[-4, 4], clamp=True),
        legend=alt.Legend(orient="bottom", gradientLength=220),
    )
    tip = [alt.Tooltip(f"{name}:N") for name in ("where", "oracle", "error", "tolerance", "detail")]
    base = alt.Chart(frame).encode(x=x, y=y, tooltip=tip)
    text = alt.expr("datum.mark + datum.error")
    contrast = alt.condition("abs(datum.ratio) > 3", alt.value("white"), alt.value("black"))
    return (
        alt.layer(
            base.mark_rect(stroke="#888888", strokeWidth=0.4).encode(color=colour),
            base.mark_text(fontSize=11, text=text).encode(color=contrast),
        )
        .properties(
            title=alt.TitleParams(
                "Where is the error?",
                subtitle="Relative error of each comparison; blue: within the tolerance, orange: beyond it",
            ),
            width=WIDTH - 240,
            height=22 * len(order),
            usermeta={"room": 240},
        )
        .add_params(*parameters())
    )


def _ratio(row: Mapping[str, Any]) -> float:
    error, tolerance = float(row["error"] or 0), float(row["tolerance"] or 0)
    if math.isnan(error):
        return 4.0
    smallest = 1e-300
    logarithm = math.log10(max(error, smallest) / max(tolerance, smallest))
    return max(-4.0, min(4.0, logarithm))


def _number(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    return f"{float(value):.1e}" if float(value) else "0"


def _table(rows: list[Mapping[str, Any]]) -> Table:
    table = Table("Every comparison.", ["where", "shape", "oracle", "error", "tolerance", "verdict"])
    for row in rows:
        verdict = {True: "right", False: "WRONG", None: "undecided"}[row["passed"]]
        shape = "x".join(map(str, row.get("shape", ()))) or "scalar"
        cells = [row["path"], shape, row["oracle"], _number(row["error"]), _number(row["tolerance"]), verdict]
        table.add(cells, wrong=row["passed"] is False)
    return table
