"""scripts/attack_sweeps.py, with few of what it tries: the rest is long."""

import json


def test_flags_and_files_at_random_are_answered(tmp_path, run_commands):
    few = ("--flags=60", "--files=60", "--damages=0", "--kills=0", "--pairs=0", "--json=figures.json")
    (found,) = run_commands(tmp_path, ("scripts/attack_sweeps.py", *few))
    assert found.returncode == 0, found.stdout + found.stderr  # the seed is in it
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["flags"], figures["flags_faults"], figures["files_faults"]) == (60, 0, 0)
