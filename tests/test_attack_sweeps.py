"""Flags and files at random are accepted, or refused in one line: a small part of the attack."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_flags_and_files_at_random_are_answered(tmp_path):
    few = ["--flags=60", "--files=60", "--damages=0", "--kills=0", f"--json={tmp_path / 'figures.json'}"]
    found = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "scripts" / "attack_sweeps.py"), *few],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr  # the seed is in it
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["flags"], figures["flags_faults"], figures["files_faults"]) == (60, 0, 0)
