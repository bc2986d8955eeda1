"""experiments/compare_optimizers.py as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "experiments" / "compare_optimizers.py"
SMALL = ["--model=linear", "--dataset=spirals", "--steps=20", "--seed=0:2", "--lr=0.1,0.01"]
SMALL += ["--schedule=constant", "--optimizer=sgd,momentum", "--batch_size=50", "--platform=cpu"]


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_a_sweep_prints_its_verdict_and_leaves_results_and_pictures(tmp_path):
    found = run(tmp_path, *SMALL, "--json=figures.json", "--gradient=chainrule")
    assert found.returncode == 0, found.stderr
    assert "The gradient is right" in found.stdout
    assert "test accuracy" in found.stdout and "Best: " in found.stdout
    assert all(len(line) <= 80 for line in found.stdout.splitlines())
    (workdir,) = (tmp_path / "results").iterdir()
    results = xr.open_zarr(workdir / "results.zarr", consolidated=False)
    assert {"optimizer", "schedule", "lr", "momentum", "seed"} <= set(results.coords)
    assert results.sizes["run"] == 8 and bool(results.finished.all())
    assert np.isfinite(results.train_loss).all()
    config = json.loads((workdir / "config.json").read_text())
    assert config["experiment"]["gradient"] == "chainrule"
    for name in ("loss_curves", "learning_rate_sensitivity"):
        assert (workdir / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "<!doctype html>" in (workdir / "report" / "index.html").read_text()
    assert json.loads((workdir / "gradient_check.json").read_text())["passed"]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"sgd.constant.lr", "momentum.constant.test_accuracy"} <= set(figures)
    assert all(isinstance(value, int | float) for value in figures.values())

    again = run(tmp_path, *SMALL, "--gradient=chainrule", "--noreport")
    assert again.returncode == 0 and "compiling" not in again.stderr
    assert len(list((tmp_path / "results").iterdir())) == 1


def test_regression_is_compared_by_loss(tmp_path):
    found = run(
        tmp_path, "--model=mlp", "--widths=8", "--dataset=diabetes", "--steps=10", "--seed=0", "--lr=0.01",
        "--schedule=constant", "--optimizer=nesterov", "--batch_size=20", "--quiet", "--workdir=w",
        "--noreport",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "test loss" in found.stdout and "One seed" in found.stdout
    assert found.stderr == "" and not (tmp_path / "w" / "report").exists()


def test_help_shows_the_flags(tmp_path):
    found = run(tmp_path, "--help")
    assert found.returncode == 0
    for flag in ("--model", "--lr", "--workdir", "--gradient", "--json"):
        assert flag in found.stdout


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
    "--steps=-5": "at least 1",
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

DRIVER = """
import contextlib, io, os, runpy, sys
import bpresearch.flags, bpresearch.report, bpresearch.verify
for number, argument in enumerate(sys.argv[2:]):
    if os.fork() == 0:  # flags and JAX can be started once in a process
        sys.argv = [sys.argv[1], argument]
        with open(f"{number}.out", "w") as out, open(f"{number}.err", "w") as err:
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:  # a second is spared where Python does not take its modules apart
            sys.stdout.flush(), sys.stderr.flush(), os._exit(end.code)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def test_bad_input_is_one_line_that_names_the_flag_and_what_it_takes(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", DRIVER, SCRIPT, *BAD]
    driver = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    codes = driver.stdout.split()
    assert len(codes) == len(BAD)
    for number, (argument, message) in enumerate(BAD.items()):
        lines = (tmp_path / f"{number}.err").read_text().splitlines()
        assert (codes[number], len(lines)) == ("2", 1), (argument, codes[number], lines)
        flag = argument.partition("=")[0].lstrip("-")
        assert flag in lines[0] and message.lower() in lines[0].lower(), (argument, lines)
        assert (tmp_path / f"{number}.out").read_text() == "", argument
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", ["gpu", "tpu"])
def test_a_platform_that_is_not_there_is_one_line(tmp_path, name):
    found = run(tmp_path, *SMALL[:-1], f"--platform={name}")
    if found.returncode:  # this machine may have it
        assert found.returncode == 2
        assert found.stderr.splitlines()[-1].endswith(f"--platform={name}: this machine has cpu")
