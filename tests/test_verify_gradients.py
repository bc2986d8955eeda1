"""scripts/verify_gradients.py as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


BAD_FLAGS = {
    "--plant=pool_mean_for_max": "--plant=pool_mean_for_max: ",
    "--dtype=float8": "--dtype=float8 is not one of float64, float32, bfloat16",
    "--json=/no/such/folder/report.json": "--json=/no/such/folder/report.json: takes the name of a file in a",
    "--html=/no/such/folder/report.html": "--html=/no/such/folder/report.html: takes the name of a file in a",
    "--every_coordinate=-1": "--every_coordinate=-1: takes an integer of at least 0",
    "--batch_size=1000000": "--batch_size=1000000: takes 1 to ",
    "--seed=-1": "--seed=-1: takes an integer of at least 0",
}
ONE_BY_ONE = """
import contextlib, io, json, sys
from absl.testing import flagsaver
from bpresearch.command import start, verify

script, *given = sys.argv[1:]
verify.define_flags()
for flag in given:
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [script, "--dataset=diabetes", "--platform=cpu", flag]
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            start.run(verify.main)
        except SystemExit as done:
            code = done.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def test_bad_flags():
    """Each in turn, in one process: loading JAX takes longer than all of them."""
    done = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE, ROOT / "scripts" / "verify_gradients.py", *BAD_FLAGS],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, check=True,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for (code, out, err), message in zip(answers, BAD_FLAGS.values(), strict=True):
        assert code == 2
        assert message in err
        assert len(err.strip().splitlines()) == 1
        assert not out


def test_a_bad_flag_ends_the_command():
    done = verify_gradients("--dtype=float8")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("verify_gradients.py: --dtype=float8 is not one of")
