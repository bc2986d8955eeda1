"""Tables for the console."""

import xarray as xr
from rich.markup import escape
from rich.table import Table

from bpresearch.analysis import (
    axes_of,
    best_settings,
    chosen_by,
    edges,
    mean_and_interval,
    metric_of,
    settings_of,
)

WIDTH = 80


def table(results: xr.Dataset) -> Table:
    """For each optimizer and schedule: its best setting and what that reaches on the test part.

    The mean over seeds with its 95 % interval; `diverged` counts all runs of that optimizer and schedule.
    A value at the end of its swept range is marked, as a better one may lie beyond. Momentum and what else
    differs between settings has a column each, as far as 80 columns allow; the caption names the others.
    """
    test, choosing = metric_of(results), chosen_by(results)
    chosen = choosing.title + (", for want of a validation part" if choosing == test else "")
    best, everything = best_settings(results), settings_of(results)
    values = {name: None for setting in best.values() for name in setting.values}
    first = ("lr", "momentum")
    hyper: list[str] = [name for name in first if name in values]
    hyper += [n for n in axes_of(results) if n not in ("optimizer", "schedule", "dataset", "model", *hyper)]
    rows: list[dict[str, str]] = []
    at_edge = False
    for (optimizer, schedule), setting in best.items():
        found = edges(results, setting)
        at_edge |= bool(found)
        group = [s for s in everything if s.values["optimizer"] == optimizer]
        group = [s for s in group if s.values["schedule"] == schedule]
        diverged, count = sum(s.diverged for s in group), sum(len(s.runs) for s in group)
        cells = {name: _cell(setting.values.get(name)) + "*" * (name in found) for name in hyper}
        row = {"optimizer": optimizer, "schedule": schedule, **cells}
        row[test.title] = test.format(mean_and_interval(setting.test))
        row["diverged"] = f"{diverged} of {count}" if diverged else "0"
        rows.append(row)
    shown, left_out = _fitting(rows, hyper)
    grid = Table(title=f"Best settings by {chosen.replace(' (%)', '')}")
    for name in shown:
        title = {"batch_size": "batch"}.get(name, name)
        grid.add_column(escape(title), justify="left" if name in ("optimizer", "schedule") else "right")
    for row in rows:
        grid.add_row(*(escape(row[name]) for name in shown))
    seeds = len(next(iter(best.values())).seeds)
    caption = f"Mean and 95 % interval over {seeds} seeds." if seeds > 1 else "One seed: no interval."
    caption += " * at the edge of the range: sweep further." if at_edge else ""
    caption += f" Not shown: {', '.join(left_out)}." if left_out else ""
    grid.caption = escape(caption)
    return grid


def _fitting(rows: list[dict[str, str]], hyper: list[str]) -> tuple[list[str], list[str]]:
    """The columns that fit, and the hyper-parameters that do not; the later ones give way first."""
    shown, left_out = list(rows[0]), list[str]()
    for name in reversed(hyper):
        widths = [max(len(name), *(len(row[name]) for row in rows)) + 3 for name in shown]
        if sum(widths) + 1 <= WIDTH:
            break
        shown.remove(name)
        left_out.insert(0, name)
    return shown, left_out


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
