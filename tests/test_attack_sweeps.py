"""Flags and files at random are accepted, or refused in one line: a small part of the attack."""

import json

SCRIPT = "scripts/attack_sweeps.py"


def test_flags_and_files_at_random_are_answered(run_commands, tmp_path):
    few = ("--flags=60", "--files=60", "--damages=0", "--kills=0", "--json=figures.json")
    (found,) = run_commands(tmp_path, (SCRIPT, *few))
    assert found.returncode == 0, found.stdout + found.stderr  # the seed is in it
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["flags"], figures["flags_faults"], figures["files_faults"]) == (60, 0, 0)
