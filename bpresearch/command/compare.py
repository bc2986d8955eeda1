"""How do SGD, momentum and learning-rate schedules compare on a model and a data set?

First the hand-written chain rule is checked against jax.grad on this model and data. Then every
combination of the flags below is trained; a flag takes one value or many (--lr=0.01,0.1,
--lr=logspace:1e-3:1:7, --seed=0:5). With --task=FILE.py, data, model and loss are your own. Prints the
best setting of each optimizer and schedule and writes the results and a report, report/index.html, to
--workdir; the same command resumes a sweep that was stopped.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import jax
import xarray as xr
from absl import flags
from flax import nnx
from rich.console import Console

from bpresearch import chainrule, files, statistics, sweep, verify
from bpresearch.command.axes import positive
from bpresearch.command.running import start_from_flags
from bpresearch.command.start import output_file
from bpresearch.command.sweep import (
    axes_from_flags,
    define_sweep_flags,
    experiment_from_flags,
    sweep_from_flags,
    sweep_options,
    workdir_from_flags,
)
from bpresearch.command.target import checked_target
from bpresearch.command.task import define_task_flags, described
from bpresearch.functional import as_pair
from bpresearch.imports import demand

FLAGS = flags.FLAGS

options = sweep_options


def define_flags() -> None:
    """The flags of `bpresearch compare`."""
    define_task_flags()
    define_sweep_flags()
    flags.DEFINE_string("json", None, "file for the figures, as one flat object")
    flags.DEFINE_integer(
        "studies",
        1,
        "independent tuning studies, each with seeds (and, of a sampler, trials) of its own: what tuning "
        "gives, its luck included",
    )
    flags.DEFINE_bool(
        "cost",
        False,
        "time a step of each best setting, one run alone, the settings in turn: results over seconds too",
    )
    flags.DEFINE_bool(
        "report", True, "write the report, report/index.html in the workdir; --noreport does not"
    )


def main() -> int:
    demand("altair", "jinja2", "vl_convert")  # which are loaded while programs train
    axes = axes_from_flags()
    json_file = output_file("json")
    if FLAGS.cost and FLAGS.distributed:
        raise ValueError(
            "--cost: times one process alone; take it without --distributed, in the same workdir"
        )
    start_from_flags()
    experiment = experiment_from_flags()
    target = checked_target(experiment, axes)
    study_folders(Path())  # a number that is none is found before any work is done
    workdir = workdir_from_flags("compare_optimizers", experiment, axes)
    console = Console()
    console.print(described(experiment), markup=False)

    trains = not FLAGS.dry_run and FLAGS.replay is None
    folders = study_folders(workdir)
    with ThreadPoolExecutor() as beside:  # what needs no results is done while programs train
        checked = beside.submit(told_of_gradients, experiment, axes, console) if trains else None
        if checked and jax.process_count() > 1:
            checked.result()  # processes compute in the same order
        loaded = beside.submit(load_report) if trains else None
        studies = [
            sweep_from_flags(experiment, axes, at, study=k) for k, at in enumerate(folders.values(), 1)
        ]
        check = checked.result() if checked else None
        if loaded:
            loaded.result()
    from bpresearch import report

    results = studies[0]
    if check:
        files.write(workdir / "gradient_check.json", check.to_json())
    for name, of_study in zip(folders, studies, strict=True):
        console.print(report.table(of_study))
        console.print(f"{f'{name}: ' * (len(folders) > 1)}{statistics.verdict(of_study)}", markup=False)
    for warning in statistics.budget_warnings(results):
        console.print(warning, markup=False)
    figures = statistics.figures(results)
    if len(studies) > 1:
        console.print(report.studies_table(studies))
        console.print(statistics.studies_verdict(studies), markup=False)
        figures |= statistics.studies_figures(studies)
    seconds = {}
    if FLAGS.cost:
        times = [timed(experiment, axes, *study) for study in zip(studies, folders.values(), strict=True)]
        console.print(report.cost_table(results, times[0]))
        seconds = {key: time.median for key, time in times[0].items()}
        figures |= {f"{'.'.join(key)}.seconds_per_step": time for key, time in seconds.items()}
    if target:
        console.print(statistics.reaching(results, target, seconds=seconds), markup=False)
        figures |= statistics.target_figures(results, target, seconds=seconds)
    files.write_figures(json_file, figures)
    console.print(f"Results: {workdir}/results.zarr", markup=False, soft_wrap=True)
    if FLAGS.report:
        sweeps = [
            report.read(folder, sweep.read_confirmed(folder), name if len(studies) > 1 else "")
            for name, folder in folders.items()
        ]
        page = report.write(sweeps, workdir / "report", target=target)
        console.print(f"Report, for any browser: {page}", markup=False, soft_wrap=True)
    return 0


def timed(
    experiment: sweep.Experiment, axes: sweep.Axes, results: xr.Dataset, workdir: Path
) -> dict[tuple[str, str], sweep.StepTime]:
    """--cost: seconds a step of each best setting, which the workdir keeps for its report."""
    searched = FLAGS.sampler != "grid"
    drawn = sweep.drawn(experiment, axes, FLAGS.sampler, workdir) if searched else None
    times = sweep.time_best_settings(experiment, drawn or sweep.expand(axes, experiment.model), results)
    rows: dict[str, dict[str, sweep.StepTime]] = {}
    for (optimizer, schedule), time in times.items():
        rows.setdefault(optimizer, {})[schedule] = time
    files.write(workdir / "seconds_per_step.json", json.dumps(rows, indent=2))
    return times


def study_folders(workdir: Path) -> dict[str, Path]:
    """Each tuning study's name and folder: the first is in the workdir itself."""
    count = positive("studies")
    if count > 1 and FLAGS.slice is not None:
        raise ValueError(
            f"--studies={count}: takes no --slice; give each machine a study: --seed and --workdir"
        )
    others = {f"study {number}": workdir / f"study-{number}" for number in range(2, count + 1)}
    return {"study 1": workdir} | others


def load_report() -> None:
    """Loads what tables and the report are made with: these have intervals where there are several seeds."""
    report = import_module("bpresearch.report")
    if FLAGS.confirm_seeds > 1 or not FLAGS.seed.isdecimal():
        import_module("scipy.stats")
    if FLAGS.report:
        report.page.load()


def told_of_gradients(
    experiment: sweep.Experiment, axes: sweep.Axes, console: Console
) -> verify.Report | None:
    """The gradient check, told on the console."""
    check = check_gradients(experiment, axes)
    if check:
        console.print(check.summary(), markup=False)
    return check


def check_gradients(experiment: sweep.Experiment, axes: sweep.Axes) -> verify.Report | None:
    """The chain rule against jax.grad, in float64, on sixteen examples; None where it has no rule."""
    values = sweep.first_values(axes)
    first = sweep.expand({name: [value] for name, value in values.items()}, experiment.model)[0]
    training = experiment.training(first)
    examples = jax.tree.map(lambda array: array[:16], experiment.parts["train"])
    try:
        return verify.model(
            training.model(nnx.Rngs(0)), training.loss, *as_pair(training.loss, examples), dtype="float64"
        )
    except chainrule.NoRuleError as error:
        if chainrule.gradient in axes.get("gradient", [experiment.gradient]):
            raise
        print(f"The gradient is autodiff's, and was not checked: {error}")
        return None
