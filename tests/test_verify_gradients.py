"""scripts/verify_gradients.py as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def verify_gradients(*arguments):
    return subprocess.run(
        [
            sys.executable,
            ROOT / "scripts" / "verify_gradients.py",
            "--dataset=diabetes",
            "--platform=cpu",
            *arguments,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )


def test_right(tmp_path):
    file = tmp_path / "report.json"
    done = verify_gradients("--model=linear", "--dtype=bfloat16", "--batch_size=8", f"--json={file}")
    assert done.returncode == 0, done.stderr
    assert "The gradient is right" in done.stdout
    assert "layers.1.kernel" in done.stdout
    read = json.loads(file.read_text())
    assert read["passed"] is True
    assert read["culprits"] == []
    assert {row["oracle"] for row in read["rows"]} == {
        "autodiff",
        "finite differences",
        "rounding",
        "rule",
        "behaviour",
    }
    assert list(tmp_path.iterdir()) == [file]


def test_planted_fault(tmp_path):
    page, file = tmp_path / "report.html", tmp_path / "report.json"
    done = verify_gradients(
        "--widths=4,4", "--dtype=float64", "--batch_size=8", "--plant=weight_not_transposed",
        "--every_coordinate=3", f"--html={page}", f"--json={file}",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "culprits: layers.3" in done.stdout
    text = page.read_text(encoding="utf-8")
    assert "the mistake is in the rule of layers.3" in text
    assert "mlp on 8 examples of diabetes, squared_error, float64" in text
    rows = json.loads(file.read_text())["rows"]
    looked = {row["path"]: row["detail"] for row in rows if row["oracle"] == "finite differences"}
    assert looked["layers.5.bias"].startswith("every coordinate (1)")
    assert looked["layers.1.kernel"].startswith("20 random directions")
    assert set(tmp_path.iterdir()) == {page, file}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--plant=pool_mean_for_max", "--plant=pool_mean_for_max: "),
        ("--dtype=float8", "--dtype=float8 is not one of float64, float32, bfloat16"),
        ("--json=/no/such/folder/report.json", "there is no folder /no/such/folder"),
        ("--html=/no/such/folder/report.html", "there is no folder /no/such/folder"),
        ("--every_coordinate=-1", "--every_coordinate=-1: takes an integer of at least 0"),
        ("--batch_size=1000000", "--batch_size=1000000: takes 1 to "),
    ],
)
def test_bad_flags(flag, message):
    done = verify_gradients(flag)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout
