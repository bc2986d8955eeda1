"""Tables for the console."""

import xarray as xr
from rich.table import Table

from bpresearch.analysis import best_settings, chosen_by, mean_and_interval, metric_of, settings_of


def table(results: xr.Dataset) -> Table:
    """For each optimizer and schedule: its best setting and what that reaches on the test part.

    The mean over seeds with its 95 % interval; `diverged` counts all runs of that optimizer and schedule.
    A learning rate at the end of the swept range is marked, as a better one may lie beyond.
    """
    test, choosing = metric_of(results), chosen_by(results)
    chosen = choosing.title + (", for want of a validation part" if choosing == test else "")
    everything, best = settings_of(results), best_settings(results)
    batch_sizes = {setting.values["batch_size"] for setting in everything}
    grid = Table(title=f"Best learning rate by {chosen.replace(' (%)', '')}")
    for name in ("optimizer", "schedule"):
        grid.add_column(name)
    for name in (
        "lr",
        "momentum",
        *(["batch"] if len(batch_sizes) > 1 else []),
        test.title,
        "diverged",
    ):
        grid.add_column(name, justify="right")
    edge = False
    for key, setting in best.items():
        group = [s for s in everything if (s.values["optimizer"], s.values["schedule"]) == key]
        rates = sorted({s.values["lr"] for s in group})
        on_edge = len(rates) > 1 and setting.values["lr"] in (rates[0], rates[-1])
        edge |= on_edge
        diverged, count = sum(s.diverged for s in group), sum(len(s.runs) for s in group)
        momentum = setting.values.get("momentum")
        grid.add_row(
            *key,
            f"{setting.values['lr']:g}{'*' if on_edge else ''}",
            "-" if momentum is None else f"{momentum:g}",
            *([str(setting.values["batch_size"])] if len(batch_sizes) > 1 else []),
            test.format(mean_and_interval(setting.test)),
            f"{diverged} of {count}" if diverged else "0",
        )
    seeds = len(next(iter(best.values())).seeds)
    caption = f"Mean and 95 % interval over {seeds} seeds." if seeds > 1 else "One seed: no interval."
    grid.caption = caption + (" * at the edge of the range: sweep further." if edge else "")
    return grid
