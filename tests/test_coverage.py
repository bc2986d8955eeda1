"""scripts/coverage.py as a user runs it."""

import json

SCRIPT = "scripts/coverage.py"


def test_counts(tmp_path, run_commands):
    file = tmp_path / "coverage.json"
    (done,) = run_commands(tmp_path, (SCRIPT, "--quick", f"--json={file}"))
    read = json.loads(file.read_text())
    assert read["names"] == read["with_rule"] + read["excused"] + read["missing"] > 200
    assert done.returncode == (1 if read["missing"] or read["primitives_missing"] else 0), done.stderr
    kinds = [read[f"primitives_{kind}"] for kind in ("with_rule", "excused", "missing")]
    assert read["primitives"] == sum(kinds) > 180 and kinds[0] >= 110
    names, primitives, *_ = done.stdout.splitlines()
    assert names.startswith(f"{read['names']} names: {read['with_rule']} with a rule")
    assert primitives.startswith(f"{read['primitives']} primitives: {kinds[0]} with a rule")


def test_a_file_that_cannot_be_written(tmp_path, run_commands):
    (done,) = run_commands(tmp_path, (SCRIPT, f"--json={tmp_path / 'no' / 'coverage.json'}"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("coverage.py: --json=") and done.stderr.count("\n") == 1
