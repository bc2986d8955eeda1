"""experiments/compare_schedules.py as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "experiments" / "compare_schedules.py"
SMALL = ["--model=linear", "--steps=10", "--seed=0:2", "--lr=0.1,0.01", "--batch_size=20", "--platform=cpu"]
SMALL += ["--schedule=constant,cosine", "--optimizer=sgd", "--workdir=w", "--quiet"]


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_schedules_are_compared_over_several_data_sets(tmp_path):
    found = run(tmp_path, *SMALL, "--dataset=spirals,digits", "--json=figures.json")
    assert (found.returncode, found.stderr) == (0, "")
    assert "spirals: Best: " in found.stdout and "digits: Best: " in found.stdout
    assert "Over all data sets" in found.stdout and "P(" in found.stdout
    assert all(len(line) <= 80 for line in found.stdout.splitlines())
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 0 < figures["constant.interquartile_mean"] < 2
    assert {"spirals.sgd.cosine.lr", "digits.sgd.constant.test_accuracy"} <= set(figures)
    page = (tmp_path / "w" / "report" / "index.html").read_text()
    assert "digits \\u00b7 sgd" in page and "How much tuning does each schedule need?" in page
    assert (tmp_path / "w" / "report" / "profiles.png").exists()


def test_a_data_set_that_is_not_there_is_one_line(tmp_path):
    found = run(tmp_path, *SMALL, "--dataset=spirals,digit")
    assert found.returncode == 2 and found.stdout == ""
    assert "did you mean digits?" in found.stderr and len(found.stderr.splitlines()) == 1
