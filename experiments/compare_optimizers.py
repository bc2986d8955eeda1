"""How do SGD, momentum and learning-rate schedules compare on a model and a data set?

First the hand-written chain rule is checked against jax.grad on this model and data. Then every
combination of the flags below is trained; a flag takes one value or many (--lr=0.01,0.1,
--lr=logspace:1e-3:1:7, --seed=0:5). Prints the best setting of each optimizer and schedule and writes the
results and a report, report/index.html, to --workdir; the same command resumes a sweep that was stopped.
"""

import optax
from absl import flags
from flax import nnx
from rich.console import Console

from bpresearch import analysis, files, report, sweep, verify
from bpresearch import command as shared

shared.define_task_flags()
shared.define_sweep_flags()
flags.DEFINE_string("json", None, "file for the figures, as one flat object")
flags.DEFINE_bool("report", True, "write the report, report/index.html in the workdir; --noreport does not")


def main() -> int:
    axes = shared.axes_from_flags()
    json_file = shared.output_file("json")
    shared.start_from_flags()
    experiment = shared.experiment_from_flags()
    workdir = shared.workdir_from_flags("compare_optimizers", experiment, axes)
    console = Console()

    check = check_gradients(experiment)
    console.print(check.summary(), markup=False)
    results = shared.sweep_from_flags(experiment, axes, workdir)
    files.write(workdir / "gradient_check.json", check.to_json())
    console.print(report.table(results))
    console.print(analysis.verdict(results), markup=False)
    for warning in analysis.budget_warnings(results):
        console.print(warning, markup=False)
    files.write_figures(json_file, analysis.figures(results))
    console.print(f"Results: {workdir}/results.zarr", markup=False, soft_wrap=True)
    if flags.FLAGS.report:
        page = report.write(report.read(workdir, sweep.read(workdir)), workdir / "report")
        console.print(f"Report, for any browser: {page}", markup=False, soft_wrap=True)
    return 0


def check_gradients(experiment: sweep.Experiment) -> verify.Report:
    """The chain rule against jax.grad, in float64, on sixteen examples."""
    data = experiment.dataset
    model = experiment.training({"optimizer": optax.sgd}).build(nnx.Rngs(0))
    return verify.model(
        model, experiment.loss_fn, data.x[:16], experiment.targets(data.y[:16]), dtype="float64"
    )


if __name__ == "__main__":
    shared.run(main)
