"""Tables for the console."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bpresearch.statistics import (
    Interval,
    axes_of,
    best_settings,
    budget_warnings,
    chosen_by,
    edges,
    mean_and_interval,
    metric_of,
    over_studies,
    settings_of,
    verdict,
)

WIDTH = 80
ALWAYS = ("optimizer", "schedule", "diverged", "pruned")
"""Columns that every table has, as it has the test metric."""


def best_rows(results: xr.Dataset) -> list[dict[str, str]]:
    """For each optimizer and schedule a row: its best setting and what that reaches on the test part.

    The columns are the optimizer, the schedule, the learning rate, momentum, what else differs between
    settings, the test metric (mean over seeds with its 95 % interval), the number of seeds, and how many of
    all runs of that optimizer and schedule diverged and, if any did, were pruned. A value at the end of its
    swept range has a star, as a better one may lie beyond. Where no run came to its end, there is no best.
    """
    test, best, everything = metric_of(results), best_settings(results), settings_of(results)
    values = {name for setting in best.values() for name in setting.values}
    hyper: list[str] = [name for name in ("lr", "momentum") if name in values]
    hyper += [n for n in axes_of(results) if n not in ("optimizer", "schedule", "dataset", "model", *hyper)]
    any_pruned = any(setting.pruned for setting in everything)
    rows = []
    for (optimizer, schedule), setting in best.items():
        group = [
            s for s in everything if (s.values["optimizer"], s.values["schedule"]) == (optimizer, schedule)
        ]
        count = sum(len(s.runs) for s in group)
        at_edge, shown = edges(results, setting), setting.values if setting.scored else {}
        row = {"optimizer": optimizer, "schedule": schedule}
        row |= {name: cell(shown.get(name)) + "*" * (name in at_edge) for name in hyper}
        row[test.title] = test.format(mean_and_interval(setting.test))
        row["seeds"] = str(len(setting.seeds))
        row["diverged"] = _of(sum(s.diverged for s in group), count)
        if any_pruned:
            row["pruned"] = _of(sum(s.pruned for s in group), count)
        rows.append(row)
    return rows


def table(results: xr.Dataset) -> Table:
    """`best_rows` for a console of 80 columns; the caption says what they leave no room for."""
    rows = best_rows(results)
    shown, left_out = _fitting(rows, [name for name in rows[0] if name != "seeds"])
    chosen = chosen_by(results)
    why = ", for want of a validation part" if chosen == metric_of(results) else ""
    better = "higher" if chosen.higher_is_better else "lower"
    grid = Table(title=f"Best settings by {chosen.name}, {better} is better{why}")
    for name in shown:
        title = {"batch_size": "batch"}.get(name, name)
        grid.add_column(escape(title), justify="left" if name in ("optimizer", "schedule") else "right")
    for row in rows:
        grid.add_row(*(escape(row[name]) for name in shown))
    counts = sorted({int(row["seeds"]) for row in rows})
    fresh = "fresh " * all(setting.fresh for setting in best_settings(results).values())
    over = f"{' or '.join(map(str, counts))} {fresh}seeds"
    caption = f"Mean and 95 % interval over {over}." if counts[-1] > 1 else f"One {fresh}seed: no interval."
    if any(cell.endswith("*") for row in rows for cell in row.values()):
        caption += " * at the edge of the range: sweep further."
    caption += f" Not shown: {', '.join(left_out)}." if left_out else ""
    grid.caption = escape(caption)
    return grid


def cost_rows(
    results: xr.Dataset, seconds: Mapping[tuple[str, str], Sequence[float]]
) -> list[dict[str, str]]:
    """What training takes at each best setting: a row for each optimizer and schedule that was timed.

    Args:
        results: of the sweep.
        seconds: of a step, by optimizer and schedule: the median over rounds, the fastest and the slowest.
    """
    best, rows = best_settings(results), []
    fastest = min(times[0] for times in seconds.values())
    for (optimizer, schedule), (median, low, high) in seconds.items():
        values = best[optimizer, schedule].values
        steps = int(values.get("steps", results.step[-1]))
        rows.append(
            {
                "optimizer": optimizer,
                "schedule": schedule,
                "ms a step": f"{1e3 * median:.4g} ({1e3 * low:.4g} to {1e3 * high:.4g})",
                "over the fastest": f"{median / fastest:.2f}",
                "s of a run": f"{median * steps:.3g}",
            }
        )
    return rows


def cost_table(results: xr.Dataset, seconds: Mapping[tuple[str, str], Sequence[float]]) -> Table:
    """`cost_rows` for a console; the caption says how they were measured."""
    rows = cost_rows(results, seconds)
    caption = "One run alone, without evaluations; median over rounds, fastest and slowest."
    grid = Table(title="Seconds that training takes", caption=caption)
    for name in rows[0]:
        grid.add_column(name, justify="left" if name in ("optimizer", "schedule") else "right")
    for row in rows:
        grid.add_row(*map(escape, row.values()))
    return grid


def studies_table(studies: Sequence[xr.Dataset], by: str = "optimizer") -> Table:
    """What each optimizer's tuning gives: median and mean over independent tuning studies."""
    test = metric_of(studies[0])
    caption = f"{len(studies)} studies; the mean with Student's 95 % interval over studies."
    grid = Table(title=f"{test.title} over tuning studies", caption=caption)
    grid.add_column(by)
    for name in ("median", "mean", "lowest", "highest"):
        grid.add_column(name, justify="right")
    for tuning in over_studies(studies, by):
        numbers = (tuning.median, float(tuning.values.min()), float(tuning.values.max()))
        median, low, high = (test.format(Interval(number, np.nan, 1)) for number in numbers)
        grid.add_row(escape(tuning.name), median, test.format(tuning.mean), low, high)
    return grid


def show(results: xr.Dataset, by: str = "optimizer") -> None:
    """Prints what a sweep says: its table of best settings, the verdict, and what to be wary of.

    Args:
        results: as `sweep.run` returns them or `sweep.read` reads them.
        by: what the verdict compares, "optimizer" or "schedule".
    """
    console = Console()
    console.print(table(results))
    for sentence in (verdict(results, by), *budget_warnings(results)):
        console.print(sentence, markup=False)


def _fitting(rows: list[dict[str, str]], names: list[str]) -> tuple[list[str], list[str]]:
    """The columns that fit, and those that do not; of the hyper-parameters the later ones give way first."""
    shown, left_out = list(names), list[str]()
    for name in [n for n in reversed(names) if n not in ALWAYS and not n.startswith("test ")]:
        widths = [max(len(name), *(len(row[name]) for row in rows)) + 3 for name in shown]
        if sum(widths) + 1 <= WIDTH:
            break
        shown.remove(name)
        left_out.insert(0, name)
    return shown, left_out


def cell(value: object) -> str:
    """A value of a setting in a table: five digits, `-` for none."""
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _of(part: int, count: int) -> str:
    return f"{part} of {count}" if part else "0"
