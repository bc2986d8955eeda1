"""The experiments of the theory as a user types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bpresearch import sweep

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def run(folder, name, *arguments):
    command = [sys.executable, EXPERIMENTS / f"{name}.py", "--platform=cpu", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_an_experiment_leaves_its_figures_and_picture_and_says_that_theory_holds(tmp_path):
    found = run(tmp_path, "deepobs_quadratic", "--quick", "--json=figures.json")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Measured against theory" in found.stdout and "NO" not in found.stdout
    assert all(len(line) <= 80 for line in found.stdout.splitlines())
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert all(isinstance(value, int | float) for value in figures.values())
    assert round(figures["initial_loss"], 4) == 353.4468
    (workdir,) = (tmp_path / "results").iterdir()
    assert (workdir / "deepobs_quadratic.png").read_bytes().startswith(b"\x89PNG")


def test_a_check_that_fails_is_exit_code_one(tmp_path):
    """A mean over two runs is no expectation, so that the noisy quadratic model must seem wrong."""
    found = run(tmp_path, "convergence_rates", "--condition=10", "--batch_size=4", "--runs=2")
    assert found.returncode == 1, found.stdout + found.stderr
    assert [line.split("│")[-2].strip() for line in found.stdout.splitlines() if "batch 4" in line] == ["NO"]
    assert found.stderr == ""


def test_the_table_of_mnist1d_has_every_model_and_both_orders_of_the_points(tmp_path):
    flags = ("--steps=2", "--seed=0:2", "--notune", "--json=figures.json", "--workdir=here")
    found = run(tmp_path, "mnist1d_table", *flags)
    assert found.returncode == 0, found.stdout + found.stderr
    assert all(len(line) <= 80 for line in found.stdout.splitlines())
    figures = json.loads((tmp_path / "figures.json").read_text())
    models = ("linear", "residual_mlp", "cnn", "bidirectional_gru")
    parts = {f"{model}.{part}" for model in models for part in ("plain", "shuffled")}
    assert figures.keys() == {f"{part}.{of}" for part in parts for of in ("mean", "deviation", "best")}
    assert all(figures[f"{part}.best"] >= figures[f"{part}.mean"] for part in parts)
    assert (tmp_path / "here" / "mnist1d_table.png").read_bytes().startswith(b"\x89PNG")
    order = data_of(tmp_path / "here" / "linear-shuffled", "test_accuracy")
    assert not (order == data_of(tmp_path / "here" / "linear-plain", "test_accuracy")).all()


def data_of(workdir, name):
    return sweep.read(workdir)[name].values


SMALL = {
    "heavy_tails": ("--quick",),
    "catapult": ("--quick", "--multiple=1.5,3", "--examples=100"),
    "schedule_theory": ("--horizon=50", "--steps=8", "--width=4", "--lr=0.1,0.2,0.4", "--seed=0"),
    "adaptive_edge": ("--b1=0.5", "--lr=0.01", "--steps=100", "--examples=30", "--width=4"),
    "weight_averages": ("--steps=50", "--runs=500", "--updates=4", "--lr=0.1,0.2", "--seed=0:2"),
    "critical_batch": ("--batch_size=16,64,256", "--lr=0.2,0.4", "--seed=0", "--target=2", "--updates=200"),
    "width_transfer": ("--width=4,8,16", "--lr=0.01,0.1,0.3", "--seed=0:2", "--steps=10"),
    "double_descent": ("--width=4,8", "--seed=0:2", "--epochs=1"),
}
"""The second part of the theory at a size that takes seconds: what these networks learn in it is no check."""


@pytest.mark.full
def test_the_theorys_second_part_leaves_figures_and_pictures(tmp_path, run_commands):
    ended = run_commands(
        tmp_path,
        *(
            (f"experiments/{name}.py", *flags, "--platform=cpu", f"--json={name}.json", f"--workdir={name}")
            for name, flags in SMALL.items()
        ),
    )
    for name, found in zip(SMALL, ended, strict=True):
        assert found.returncode == 0 or (found.returncode == 1 and "NO" in found.stdout), (name, found.stderr)
        assert "Measured against theory" in found.stdout and json.loads(
            (tmp_path / f"{name}.json").read_text()
        )
        assert all(len(line) <= 80 for line in found.stdout.splitlines())
        assert list((tmp_path / name).glob("*.png"))
    assert [found.returncode for found in ended[:2]] == [0, 0]


def test_bad_input_is_one_line(tmp_path, run_commands):
    cases = {
        ("savings", "--depth=8"): "at least two depths",
        ("step_fidelity", "--momentum=1"): "below 1",
        ("convergence_rates", "--condition=uniform:10:100"): "takes a list or a range",
        ("minibatch_averaging", "--seed=3"): "at least two seeds",
        ("mnist1d_table", "--seed=3"): "at least two seeds",
        ("deepobs_quadratic", "--workdir="): "is empty",
        ("schedule_theory", "--lr=0.1,0.2"): "at least three rates",
        ("adaptive_edge", "--steps=10"): "at least 100",
        ("heavy_tails", "--target=9"): "between 0 and log(classes)",
        ("weight_averages", "--seed=3"): "at least two seeds",
        ("critical_batch", "--batch_size=8,16"): "at least three",
        ("width_transfer", "--width=64,128"): "at least three",
        ("double_descent", "--seed=3"): "at least two seeds",
    }
    ended = run_commands(tmp_path, *((f"experiments/{name}.py", flag) for name, flag in cases))
    for found, ((_, flag), message) in zip(ended, cases.items(), strict=True):
        (line,) = found.stderr.splitlines()
        assert found.returncode == 2 and flag.partition("=")[0] in line and message in line
