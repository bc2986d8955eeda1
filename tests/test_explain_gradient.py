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
    ("weight", "message"),
    [("layers.9.kernel[0,0]", "layers.1.kernel[64,6]"), ("layers.1.kernel[64,0]", "(64, 6)")],
)
def test_bad_input_is_one_line(tmp_path, weight, message):
    found = run(tmp_path, f"--weight={weight}", "--dataset=digits", "--widths=6")
    (line,) = found.stderr.splitlines()
    assert found.returncode == 2 and message in line and weight in line
