"""scripts/explain_gradient.py as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "explain_gradient.py"


def run(folder, *arguments):
    command = [sys.executable, SCRIPT, "--platform=cpu", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_weight_of_the_perceptron_is_explained(tmp_path):
    found = run(
        tmp_path, "--widths=6,5", "--activation=tanh", "--dataset=digits", "--weight=layers.1.kernel[20,5]",
        "--html=page.html", "--json=figures.json", "--examples=2",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "They agree" in found.stdout and "jax.grad" in found.stdout
    assert all(len(line) <= 80 for line in found.stdout.splitlines())
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["paths"] == 2 * 5 * 10
    assert abs(figures["sum_of_paths"] - figures["autodiff"]) < 1e-12
    page = (tmp_path / "page.html").read_text()
    assert "<script" in page and "layers.1.kernel[20,5]" in page and 'src="http' not in page


@pytest.mark.parametrize(
    ("flags", "messages"),
    [
        (("--widths=6", "--weight=layers.9.kernel[0,0]"), ("--weight=layers.9", "layers.1.kernel[64,6]")),
        (("--widths=6", "--weight=layers.1.kernel[64,0]"), ("--weight=layers.1.kernel[64,0]", "(64, 6)")),
        (("--widths=6", "--weight=layers.1.kernel"), ("--weight=layers.1.kernel:", "takes an element")),
        (("--model=resnet", "--channels=2", "--depth=1"), ("nnx.BatchNorm at layers.1", "mixes")),
    ],
)
def test_bad_input_is_one_line(tmp_path, flags, messages):
    found = run(tmp_path, *flags, "--dataset=digits")
    (line,) = found.stderr.splitlines()
    assert found.returncode == 2 and all(message in line for message in messages)
