"""The report of a sweep, or of several side by side: index.html and its pictures."""

from collections.abc import Collection, Sequence
from pathlib import Path

import altair as alt
import numpy as np
import xarray as xr

from bpresearch import files
from bpresearch.report import comparisons, gradients, landscape, pictures, recorded, scaling, targets
from bpresearch.report.page import Section, Table, render, short
from bpresearch.report.style import save_drawings
from bpresearch.report.sweeps import Sweep, Sweeps, binned
from bpresearch.report.tables import best_rows, cell, cost_rows
from bpresearch.statistics import (
    Interval,
    Target,
    best_settings,
    budget_warnings,
    chosen_by,
    describe,
    differences,
    edge_warnings,
    metric_of,
    protocol,
    steps_to_target,
    verdict,
)

PICTURES = {
    "loss_curves": pictures.loss_curves,
    "generalisation_gap": pictures.generalisation_gap,
    "loss_over_seconds": pictures.loss_over_seconds,
    "learning_rate_sensitivity": pictures.learning_rate_sensitivity,
    "effective_learning_rate": pictures.effective_learning_rate,
    "importance": comparisons.importances,
    "shapes": scaling.shapes,
    "best_rates": scaling.best_rates,
    "horizon": scaling.horizon,
    "ranking": scaling.ranking,
    "interquartile_means": comparisons.interquartile_means,
    "intervals": comparisons.intervals,
    "budgets": comparisons.budgets,
    "profiles": comparisons.profiles,
    "time_to_target": targets.time_to_target,
    "target_profiles": targets.target_profiles,
    "all_runs": landscape.all_runs,
    "heat_maps": landscape.heat_maps,
    "parallel_coordinates": landscape.parallel_coordinates,
    "diverged": landscape.diverged,
}
"""The pictures of a report by name; each is a function of the sweeps, None where it has nothing to show."""

SECTIONS = {
    "verdict": ("Verdict", ()),
    "settings": ("Best settings", ()),
    "training": ("Training", ("loss_curves", "generalisation_gap")),
    "target": ("Steps to the target", ("time_to_target", "target_profiles")),
    "cost": ("Cost", ("loss_over_seconds",)),
    "tuning": ("Tuning", ("learning_rate_sensitivity", "effective_learning_rate", "importance", "budgets")),
    "scaling": ("Size, length and shape", ("shapes", "best_rates", "horizon", "ranking")),
    "comparison": ("Comparison", ("interquartile_means", "intervals", "profiles")),
    "runs": ("All runs", ("all_runs", "heat_maps", "parallel_coordinates")),
    "divergence": ("Runs without a result", ("diverged",)),
    "diagnostics": ("Diagnostics", ()),
    "gradient": ("Gradient check", ()),
    "protocol": ("Protocol, to copy", ()),
    "provenance": ("Where this comes from", ()),
}
"""The sections of a report and their pictures; `--only` takes both kinds of names."""

NAMES = (*SECTIONS, *PICTURES)
CURVES, BINS = 5000, 40
"""Runs whose loss curves the page holds, and points of each."""


def write(
    results: xr.Dataset | Sweep | Sequence[Sweep],
    folder: str | Path,
    *,
    title: str = "",
    only: Collection[str] = (),
    by: str = "optimizer",
    target: Target | None = None,
    drawings: bool = True,
) -> Path:
    """Writes the report of one or several sweeps: `index.html`, and every picture as PNG and SVG.

    Args:
        results: a sweep's results, a `Sweep` as `read` gives it, or several of them.
        folder: where to; it is made if need be.
        title: heading of the page; default: what was trained on what.
        only: names of sections (`SECTIONS`) and pictures (`PICTURES`) to show; default: all.
        by: what is compared, "optimizer" or "schedule".
        target: what training shall reach, as it was set before; None leaves out the pictures of it.
        drawings: whether to write the pictures as PNG and SVG too.

    Returns:
        The path of `index.html`.

    Raises:
        ValueError: a name in `only` is neither a section's nor a picture's, or results lack the target.
    """
    if isinstance(results, xr.Dataset):
        results = Sweep("results", results)
    sweeps = Sweeps([results] if isinstance(results, Sweep) else results, by, target)
    for name in only:
        if name not in NAMES:
            raise ValueError(f"{name} is no part of a report: {', '.join(NAMES)}")
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    sections = [_section(sweeps, name, only) for name in SECTIONS]
    legend = [(name, list(dict.fromkeys(sweeps.runs[name]))) for name in (sweeps.by, sweeps.stratum, "sweep")]
    text = render(
        title or _title(sweeps),
        [section for section in sections if section],
        legend=legend,
        tables={"runs": _runs_table(sweeps)},
        more={
            "axes": [name for name in sweeps.axes if name not in ("optimizer", "schedule")],
            "metric": sweeps.metric.title,
            "curves": _curves(sweeps),
        },
        drawn=(lambda name, spec: save_drawings(spec, folder, name)) if drawings else None,
    )
    return files.write(folder / "index.html", text)


def _title(sweeps: Sweeps) -> str:
    tasks = dict.fromkeys(zip(sweeps.runs.model, sweeps.runs.dataset, strict=True))
    return "; ".join(f"{model} on {dataset}" for model, dataset in list(tasks)[:4])


def _section(sweeps: Sweeps, name: str, only: Collection[str]) -> Section | None:
    heading, inside = SECTIONS[name]
    if not only or name in only:
        drawn = inside
    else:
        drawn = tuple(picture for picture in inside if picture in only)
        if not drawn:
            return None
    charts: dict[str, alt.TopLevelMixin] = {}
    for picture in drawn:
        chart = PICTURES[picture](sweeps)
        if chart is not None:
            charts[picture] = chart
    section = Section(name, heading, pictures=charts)
    whole = not only or name in only
    fill = FILL.get(name)
    if fill and whole:
        fill(sweeps, section)
    section.picks = "all_runs" in charts
    return section


def _verdict(sweeps: Sweeps, section: Section) -> None:
    prefix = {sweep.name: f"{sweep.name}: " if len(sweeps) > 1 else "" for sweep in sweeps}
    section.lead = [prefix[sweep.name] + verdict(sweep.results, sweeps.by) for sweep in sweeps]
    warnings = []
    for sweep in sweeps:
        best = list(best_settings(sweep.results).values())
        cautions = [*edge_warnings(sweep.results, best), *budget_warnings(sweep.results)]
        if min(len(setting.seeds) for setting in best) < 3:
            cautions.append("With fewer than three seeds, intervals say little.")
        if sweep.unfinished:
            cautions.append(f"{sweep.unfinished} runs have not finished and are not in here.")
        warnings += [prefix[sweep.name] + text for text in cautions]
    section.warnings = warnings


def _protocol(sweeps: Sweeps, section: Section) -> None:
    several = len(sweeps) > 1
    texts = [(f"{sweep.name}: " * several) + protocol(sweep.results, sweeps.by) for sweep in sweeps]
    section.text = list(dict.fromkeys(texts))


def _settings(sweeps: Sweeps, section: Section) -> None:
    rows = [(sweep, row) for sweep in sweeps for row in best_rows(sweep.results)]
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    chosen = " or ".join(dict.fromkeys(chosen_by(sweep.results).name for sweep in sweeps))
    fresh = all(s.fresh for sweep in sweeps for s in best_settings(sweep.results).values())
    caption = (
        f"Best by {chosen}; mean and 95 % interval over {'fresh ' * fresh}seeds. * at the edge of the swept "
        "range."
    )
    table = Table(caption, [*(["sweep"] if len(sweeps) > 1 else []), *names])
    for sweep, row in rows:
        cells = [*([sweep.name] if len(sweeps) > 1 else []), *(row.get(name, "-") for name in names)]
        table.add(cells, {"optimizer": row["optimizer"], "schedule": row["schedule"], "sweep": sweep.name})
    section.tables = [table]


def _target(sweeps: Sweeps, section: Section) -> None:
    if sweeps.target is None:
        return
    tables = []
    for sweep in sweeps:
        metric = sweeps.target.of(sweep.results)
        goal = metric.phrase(Interval(sweeps.target.value, np.nan, 1))
        name = f"{sweep.name}: " if len(sweeps) > 1 else ""
        table = Table(
            f"{name}Steps to {goal}, set before; runs that never get there are the slowest.",
            ["best setting", "runs that get there", "steps (median over runs)", "mean better from step on"]
            + ["seconds (median)"] * bool(sweep.seconds),
        )
        per_step = {key: times[0] for key, times in sweep.seconds.items()}
        for to_target in steps_to_target(sweep.results, sweeps.target, sweeps.by).values():
            steps = [f"{n:.0f}" if np.isfinite(n) else "never" for n in (to_target.median, to_target.held)]
            keys = {key: str(to_target.setting.values[key]) for key in ("optimizer", "schedule")}
            time = to_target.seconds(per_step)
            steps += [f"{time:.3g}" if np.isfinite(time) else "never"] if per_step else []
            table.add(
                [describe(to_target.setting), f"{to_target.reached} of {len(to_target.steps)}", *steps], keys
            )
        tables.append(table)
    level = f"{100 * sweeps.target.level:g} %"
    section.text = [
        f"The mean over seeds is better than the target by a one-sided t test, level {level}, from the step "
        "named on, to the end."
    ]
    section.tables = tables


def _cost(sweeps: Sweeps, section: Section) -> None:
    tables = []
    for sweep in sweeps:
        if sweep.seconds:
            name = f"{sweep.name}: " if len(sweeps) > 1 else ""
            rows = cost_rows(sweep.results, sweep.seconds)
            table = Table(f"{name}Seconds that training takes, one run alone.", list(rows[0]))
            for row in rows:
                keys = {"optimizer": row["optimizer"], "schedule": row["schedule"], "sweep": sweep.name}
                table.add(list(row.values()), keys)
            tables.append(table)
    section.tables = tables
    if tables:
        section.text = [
            "A step of each best setting was timed with one run alone on one device, without evaluations: "
            "the median over rounds in which the settings took turns, the fastest and the slowest round."
        ]


def _comparison(sweeps: Sweeps, section: Section) -> None:
    tables = []
    for sweep in sweeps:
        first, others = differences(sweep.results, sweeps.by)
        test = metric_of(sweep.results)
        if not others:
            continue
        name = f"{sweep.name}: " if len(sweeps) > 1 else ""
        table = Table(
            f"{name}How much better {first.values[sweeps.by]} is, each {sweeps.by} at its best setting.",
            ["against", "paired by seed", "unpaired", "p (Holm)", "probability of improvement"],
        )
        for row in others:
            chance, low, high = row.improvement
            interval = "" if np.isnan(low) else f" ({low:.2f} to {high:.2f})"
            table.add(
                [
                    row.name,
                    test.format(row.paired, difference=True),
                    test.format(row.unpaired, difference=True),
                    "-" if np.isnan(row.p) else f"{row.p:.2g}",
                    f"{chance:.2f}{interval}",
                ]
            )
        tables.append(table)
    section.tables = tables


def _divergence(sweeps: Sweeps, section: Section) -> None:
    diverged, pruned = sweeps.lost
    section.text = [] if diverged else [f"None of {len(sweeps.runs):,} runs diverged."]
    if pruned:
        section.text += [
            f"{pruned:,} of {len(sweeps.runs):,} runs were pruned: ended early, as others were ahead."
        ]


def _diagnostics(sweeps: Sweeps, section: Section) -> None:
    section.pictures = dict(recorded.diagnostics(sweeps))


def _gradient(sweeps: Sweeps, section: Section) -> None:
    checked = [sweep for sweep in sweeps if sweep.check]
    for sweep in checked:
        verification = gradients.section(sweep.check)
        prefix = f"{sweep.name}: " if len(sweeps) > 1 else ""
        section.lead = [*section.lead, prefix + verification.lead[0]]
        section.text = [*section.text, *verification.text]
        if len(checked) == 1:
            section.chain, section.pictures = verification.chain, verification.pictures
            section.tables = verification.tables


def _provenance(sweeps: Sweeps, section: Section) -> None:
    tables = []
    for sweep in sweeps:
        table = Table(sweep.name, ["what", "value"], wrap=True)
        for key, value in _flat(sweep.provenance or dict(sweep.results.attrs)):
            table.add([key, value])
        fresh = sweep.results.fresh.values if "fresh" in sweep.results else np.zeros(len(sweep.results.run))
        for name, shown in (("seeds", fresh == 0), ("fresh seeds", fresh == 1)):
            seeds = sorted(set(sweep.results.seed.values[shown].tolist()))
            if seeds:
                table.add([name, ", ".join(map(str, seeds[:20])) + (", ..." if len(seeds) > 20 else "")])
        tables.append(table)
    section.tables = tables
    held = len(_kept(sweeps))
    section.text = [
        f"This page holds {len(sweeps.runs):,} runs, and of {held:,} of them the training loss, each as the "
        f"mean over at most {BINS} stretches of its steps. A picture that shows fewer runs says so. All "
        f"numbers are in the folder's results.zarr."
    ]


FILL = {
    "verdict": _verdict,
    "settings": _settings,
    "target": _target,
    "cost": _cost,
    "comparison": _comparison,
    "divergence": _divergence,
    "diagnostics": _diagnostics,
    "gradient": _gradient,
    "protocol": _protocol,
    "provenance": _provenance,
}


def _flat(value: object, path: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines of a name and a text."""
    if isinstance(value, dict):
        pairs = [_flat(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items()]
        return [pair for branch in pairs for pair in branch]
    if isinstance(value, list):
        text = ", ".join(cell(item) for item in value[:40]) + (", ..." if len(value) > 40 else "")
        return [(path, text or "-")]
    return [(path, cell(value))]


def _runs_table(sweeps: Sweeps) -> dict[str, object]:
    """Every run, for brushing and for the list of what is picked."""
    effective = sweeps.settings.effective_lr.to_numpy()
    runs = sweeps.runs.assign(effective_lr=effective[sweeps.runs.setting])
    constant = [n for n in ("model", "dataset", "loss") if n not in sweeps.axes]
    runs = runs.drop(columns=[name for name in constant if name in runs])
    columns = list(runs.columns)
    return {
        "columns": columns,
        "values": [[short(v) for v in runs[name].tolist()] for name in columns],
    }


def _kept(sweeps: Sweeps) -> list[int]:
    runs = sweeps.runs.run.to_numpy()
    return landscape.thinned(sweeps.runs, CURVES).run.tolist() if len(runs) > CURVES else runs.tolist()


def _curves(sweeps: Sweeps) -> dict[str, object]:
    """The training loss of single runs, for the pictures of loss curves to show when they are picked."""
    numbers, values, steps, first = set(_kept(sweeps)), {}, {}, 0
    for sweep in sweeps:
        at, losses = binned(sweep.results.train_loss.values, sweep.results.step.values, BINS)
        steps[sweep.name] = [short(float(step)) for step in at]
        for number, row in enumerate(losses.astype(np.float64).tolist()):
            if first + number in numbers:
                values[str(first + number)] = [short(value, 3) for value in row]
        first += len(losses)
    return {"steps": steps, "values": values}
