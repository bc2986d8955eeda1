"""scripts/coverage.py as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def coverage(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "coverage.py", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )


def test_counts(tmp_path):
    file = tmp_path / "coverage.json"
    done = coverage("--quick", f"--json={file}")
    read = json.loads(file.read_text())
    assert read["names"] == read["with_rule"] + read["excused"] + read["missing"] > 200
    assert done.returncode == (1 if read["missing"] else 0), done.stderr
    assert done.stdout.splitlines()[0].startswith(f"{read['names']} names: {read['with_rule']} with a rule")


def test_a_file_that_cannot_be_written(tmp_path):
    done = coverage(f"--json={tmp_path / 'no' / 'coverage.json'}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("coverage.py: --json=") and done.stderr.count("\n") == 1
