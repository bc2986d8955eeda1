"""How do learning-rate schedules compare, at an equal tuning budget, on one task or several?

Every schedule gets the same learning rates, seeds and optimizers; each is judged at its best settings. With
several data sets (--dataset=mnist1d,digits) the comparison goes over all of them: interquartile means,
performance profiles and probabilities of improvement, with intervals. A flag takes one value or many, as in
compare_optimizers.py; the same command resumes what was stopped.
"""

from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from bpresearch import command as shared
from bpresearch import files, report, statistics, sweep

shared.define_task_flags()
shared.define_sweep_flags()
flags.FLAGS.set_default("optimizer", "momentum")
flags.DEFINE_string("json", None, "file for the figures, as one flat object")
flags.DEFINE_bool("report", True, "write the report, report/index.html in the workdir; --noreport does not")


def main() -> int:
    axes = shared.axes_from_flags()
    json_file = shared.output_file("json")
    datasets = shared.values("dataset", flags.FLAGS.dataset, str)
    shared.start_from_flags()
    experiments = {name: experiment_on(name) for name in datasets}
    first = next(iter(experiments.values()))
    workdir = shared.workdir_from_flags("compare_schedules", first, axes)
    folders = {name: workdir / name if len(datasets) > 1 else workdir for name in datasets}
    console = Console()

    results = {}
    for name, experiment in experiments.items():
        results[name] = shared.sweep_from_flags(experiment, axes, folders[name], by="schedule")
        console.print(report.table(results[name]))
        console.print(f"{name}: {statistics.verdict(results[name], by='schedule')}", markup=False)
    console.print(over_all(list(results.values())))
    files.write_figures(json_file, figures(results))
    if flags.FLAGS.report:
        sweeps = [report.read(folder, sweep.read_confirmed(folder), name) for name, folder in folders.items()]
        page = report.write(sweeps, Path(workdir) / "report", by="schedule")
        console.print(f"Report, for any browser: {page}", markup=False, soft_wrap=True)
    return 0


def experiment_on(dataset: str) -> sweep.Experiment:
    """The experiment that the flags describe, on one of the data sets."""
    flags.FLAGS["dataset"].value = dataset
    return shared.experiment_from_flags()


def over_all(results: list) -> Table:
    """Each schedule over all data sets and optimizers: a score of 0 is untrained, of 1 the best of all."""
    scores = statistics.several(results, by="schedule", stratum="optimizer")
    best = max(scores, key=lambda name: statistics.interquartile_mean(scores[name]))
    table = Table(title="Over all data sets and optimizers", caption="95 % intervals.")
    table.add_column("schedule")
    table.add_column("interquartile mean of the score", justify="right")
    table.add_column(f"P({best} is better)", justify="right")
    table.add_column(f"{best} is ahead by", justify="right")
    for name, own_scores in scores.items():
        mean = statistics.interquartile_mean_interval(own_scores)
        chance = statistics.probability_of_improvement_interval(scores[best], own_scores)
        ahead = statistics.over_tasks(
            [np.array([x.mean() - y.mean()]) for x, y in zip(scores[best], own_scores, strict=True)]
        )
        half = "" if np.isnan(ahead.half_width) else f" ± {ahead.half_width:.2f}"
        against = ["-", "-"] if name == best else [ranged(chance), f"{ahead.mean:.2f}{half}"]
        table.add_row(name, ranged(mean), *against)
    return table


def ranged(bounds: statistics.Range) -> str:
    """`0.96 (0.94 to 0.97)`."""
    interval = "" if bounds.low != bounds.low else f" ({bounds.low:.2f} to {bounds.high:.2f})"
    return f"{bounds.estimate:.2f}{interval}"


def figures(results: dict) -> dict[str, float]:
    """Each data set's figures, and each schedule's interquartile mean over all of them."""
    scores = statistics.several(list(results.values()), by="schedule", stratum="optimizer")
    flat = {
        f"{name}.{key}": v for name, runs in results.items() for key, v in statistics.figures(runs).items()
    }
    return flat | {
        f"{name}.interquartile_mean": statistics.interquartile_mean(s) for name, s in scores.items()
    }


if __name__ == "__main__":
    shared.run(main, shared.sweep_options)
