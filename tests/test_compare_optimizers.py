"""experiments/compare_optimizers.py as a user types it."""

import json

import numpy as np
import xarray as xr
from flax import nnx

from bpresearch import data, losses, optim, sweep
from bpresearch.command import compare
from bpresearch.distribution import Uniform

SCRIPT = "experiments/compare_optimizers.py"
SMALL = ["--model=linear", "--dataset=spirals", "--steps=20", "--seed=0:2", "--lr=0.1,0.01"]
SMALL += ["--schedule=constant", "--optimizer=sgd,momentum", "--batch_size=50", "--platform=cpu"]
SMALL = ["--confirm_seeds=2", *SMALL]


def test_a_sweep_prints_its_verdict_and_leaves_results_and_pictures(run_commands, tmp_path):
    flags = ("--json=figures.json", "--gradient=chainrule", "--target=accuracy:0.3", "--cost")
    command = (SCRIPT, *SMALL, *flags)
    found, again = run_commands(tmp_path, command, (*command, "--noreport"))
    assert found.returncode == 0, found.stderr
    assert "The gradient is right" in found.stdout
    assert "test accuracy" in found.stdout and "Best: " in found.stdout
    assert all(len(line) <= 80 for line in found.stdout.splitlines())
    (workdir,) = (tmp_path / "results").iterdir()
    results = xr.open_zarr(workdir / "results.zarr", consolidated=False)
    assert {"optimizer", "schedule", "lr", "momentum", "seed"} <= set(results.coords)
    assert results.sizes["run"] == 8 and bool(results.finished.all())
    assert np.isfinite(results.train_loss).all()
    fresh = xr.open_zarr(workdir / "confirm" / "results.zarr", consolidated=False)
    assert fresh.sizes["run"] == 4 and set(fresh.seed.values.tolist()) == {10_000, 10_001}
    assert "over 2 fresh seeds" in found.stdout and "of 2 fresh seeds of its best setting" in " ".join(
        found.stdout.split()
    )
    config = json.loads((workdir / "config.json").read_text())
    assert config["experiment"]["gradient"] == "chainrule"
    for name in ("loss_curves", "learning_rate_sensitivity"):
        assert (workdir / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "<!doctype html>" in (workdir / "report" / "index.html").read_text()
    assert json.loads((workdir / "gradient_check.json").read_text())["passed"]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"sgd.constant.lr", "momentum.constant.test_accuracy"} <= set(figures)
    assert 0 <= figures["sgd.reached_target"] <= 1
    assert "Target, a valid accuracy of 30 % (one-sided t test at 5 %): " in " ".join(found.stdout.split())
    assert (workdir / "report" / "time_to_target.svg").exists()
    assert "ms a step" in found.stdout and figures["sgd.constant.seconds_per_step"] > 0
    assert (workdir / "report" / "loss_over_seconds.svg").exists()
    shown = fresh.test_accuracy.values[fresh.optimizer.values == "sgd", -1].mean()
    np.testing.assert_allclose(figures["sgd.constant.test_accuracy"], shown)
    assert all(isinstance(value, int | float) for value in figures.values())

    assert again.returncode == 0 and "compiling" not in again.stderr
    assert len(list((tmp_path / "results").iterdir())) == 1


def test_slices_are_merged_and_the_best_settings_trained_again(run_commands, tmp_path):
    command = (SCRIPT, *SMALL, "--optimizer=sgd", "--workdir=w", "--quiet", "--validation=0.2")
    first, second, merged = run_commands(
        tmp_path, (*command, "--slice=1/2"), (*command, "--slice=2/2"), ("scripts/merge.py", "--workdir=w")
    )
    assert "Slice 1/2: 2 runs are done" in first.stdout and second.returncode == 0, first.stderr
    assert not list((tmp_path / "w").glob("slice-*/confirm"))
    assert merged.returncode == 0, merged.stderr
    assert merged.stdout.startswith("4 of 4 runs are finished, in w\n") and "2 fresh seeds" in merged.stdout
    fresh = xr.open_zarr(tmp_path / "w" / "confirm" / "results.zarr", consolidated=False)
    assert fresh.sizes["run"] == 2 and bool(fresh.finished.all())


def test_tuning_studies_have_seeds_and_folders_of_their_own(run_commands, tmp_path):
    command = (SCRIPT, *SMALL, "--optimizer=sgd,momentum", "--workdir=w", "--quiet", "--studies=3")
    (found,) = run_commands(tmp_path, (*command, "--json=figures.json"))
    assert found.returncode == 0, found.stderr
    folders = [tmp_path / "w", tmp_path / "w" / "study-2", tmp_path / "w" / "study-3"]
    for number, folder in enumerate(folders):
        tuned, fresh = (
            xr.open_zarr(folder / path / "results.zarr", consolidated=False) for path in (".", "confirm")
        )
        assert set(tuned.seed.values.tolist()) == {2 * number, 2 * number + 1}
        assert set(fresh.seed.values.tolist()) == {10_000 * (number + 1), 10_000 * (number + 1) + 1}
    said = " ".join(found.stdout.split())
    assert "Over 3 independent tuning studies" in said and "Student's t test over studies" in said
    assert all(len(line) <= 80 for line in found.stdout.splitlines())
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"sgd.studies_median", "momentum.studies_half_width"} <= set(figures)
    assert "study 2: Best: " in (tmp_path / "w" / "report" / "index.html").read_text()


def test_regression_is_compared_by_loss_and_help_shows_the_flags(run_commands, tmp_path):
    found, helped = run_commands(tmp_path, (
        SCRIPT, "--model=mlp", "--widths=8", "--dataset=diabetes", "--steps=10", "--seed=0", "--lr=0.01",
        "--schedule=constant", "--optimizer=nesterov", "--batch_size=20", "--quiet", "--workdir=w",
        "--noreport",
    ), (SCRIPT, "--help"))  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "test loss" in found.stdout and "One seed" in found.stdout
    assert found.stderr == "" and not (tmp_path / "w" / "report").exists()
    assert helped.returncode == 0
    for flag in ("--model", "--lr", "--workdir", "--gradient", "--json"):
        assert flag in helped.stdout


def test_what_a_sweep_takes_is_told_without_training_and_a_run_is_trained_again(run_commands, tmp_path):
    command = (SCRIPT, *SMALL, "--workdir=w", "--quiet", "--noreport")
    dry, empty, trained, same, none = run_commands(
        tmp_path, (*command, "--dry_run"), (*command, "--replay=3"), command, (*command, "--replay=3"),
        (*command, "--replay=8"),
    )  # fmt: skip
    assert dry.returncode == 0 and "8 runs of 20 steps, 2 programs" in dry.stdout, dry.stderr
    assert "4 fresh runs of the best settings follow" in dry.stdout
    assert empty.returncode == 0 and "w does not hold this run yet" in empty.stdout, empty.stderr
    assert "compiling" not in trained.stderr and trained.returncode == 0
    assert same.returncode == 0 and "lr: 0.01" in same.stdout, same.stderr
    assert same.stdout.splitlines()[-1] == "the same as in w, bit for bit"
    assert none.returncode == 2 and none.stderr.endswith("--replay=8: the results have runs 0 to 7\n")
    results = xr.open_zarr(tmp_path / "w" / "results.zarr", consolidated=False)
    ended = float(results.train_loss[3, -1])
    assert f"train_loss at the end: {ended:.6g}" in same.stdout


def test_the_gradient_is_checked_at_the_lower_end_of_a_distribution():
    def model(*, rngs, width):
        return nnx.Linear(2, width, rngs=rngs)

    of_any_width = sweep.Experiment(data.load("spirals"), model, losses.named("cross_entropy"))
    axes = sweep.grid(optimizer=optim.sgd, schedule=optim.schedules.constant, lr=Uniform(0.01, 1.0), seed=0)
    report = compare.check_gradients(of_any_width, axes | {"width": [Uniform(3, 64)]})
    assert report.passed and "kernel" in {row.path for row in report.rows}


BAD = {
    "--model=mpl": "did you mean mlp",
    "--dataset=mnist": "mnist1d",
    "--optimizer=adma": "did you mean adam",
    "--b1=0.9": "not a flag of --optimizer=sgd,momentum,nesterov",
    "--warmup=1": "below 1",
    "--weight_decay=": "is empty",
    "--clip_norm=-1": "at least 0",
    "--momentum_schedule=up": "constant, cosine",
    "--schedule=cosin": "did you mean cosine",
    "--loss=mae": "squared_error",
    "--activation=rely": "relu",
    "--precision=float16": "float32, float64, bfloat16",
    "--gradient=numeric": "autodiff, chainrule",
    "--confirm_seeds=-1": "at least 0",
    "--studies=0": "at least 1",
    "--target=accuracy": "accuracy:0.65",
    "--target=f1:0.5": "measure accuracy, loss",
    "--factor_out=lr": "needs --sampler",
    "--prune=wilcoxon": "take at least 4",
    "--steps=-5": "at least 1",
    "--mup=width": "such as width:64",
    "--mup=depth:2": "such as width:64",
    "--steps=0": "at least 1",
    "--steps=many": "steps",
    "--batch_size=0": "at least 1",
    "--batch_size=100000": "3600 training examples",
    "--platform=quantum": "cpu, gpu, tpu",
    "--lr=": "is empty",
    "--lr=abc": "logspace",
    "--lr=-1": "at least 0",
    "--momentum=1.5": "below 1",
    "--seed=-1": "at least 0",
    "--seed=3:3": "0:5",
    "--eval_every=-1": "at least 0",
    "--validation=1.5": "below 1",
    "--widths=0": "positive",
    "--width=3": "not a flag of --model=mlp",
    "--workdir=": "is empty",
    "--layout=rows": "auto, map, vmap",
    "--shard=model": "runs, data",
    "--memory_fraction=0": "above 0",
    "--coordinator=here:1": "without --distributed",
    "--workdir=/dev/null/x": "cannot write",
    "--json=/nowhere/x.json": "folder that exists",
    "--data_dir=x": "takes none",
    "--dataset=npz": "--data_dir",
    "--unknown=1": "unknown",
    "stray": "stray",
}


def test_bad_input_is_one_line_that_names_the_flag_and_what_it_takes(run_commands, tmp_path):
    ended = run_commands(tmp_path, *((SCRIPT, argument) for argument in BAD))
    for (argument, message), found in zip(BAD.items(), ended, strict=True):
        lines = found.stderr.splitlines()
        assert (found.returncode, len(lines)) == (2, 1), (argument, found.returncode, lines)
        flag = argument.partition("=")[0].lstrip("-")
        assert flag in lines[0] and message.lower() in lines[0].lower(), (argument, lines)
        assert found.stdout == "", argument
    assert not list(tmp_path.iterdir())


def test_a_platform_that_is_not_there_is_one_line(run_commands, tmp_path):
    commands = [(SCRIPT, *SMALL[:-1], f"--platform={name}") for name in ("gpu", "tpu")]
    for (*_, flag), found in zip(commands, run_commands(tmp_path, *commands), strict=True):
        if found.returncode:  # this machine may have it
            assert found.returncode == 2
            assert found.stderr.splitlines()[-1].endswith(f"{flag}: this machine has cpu")
