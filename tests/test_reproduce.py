"""scripts/reproduce, in a folder whose experiments are a shell script."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUN = """#!/bin/sh
name=$(basename "$1" .py)
echo "$name $2" >> "$LOG"
[ "$name" != "$FAILS" ]
"""


@pytest.fixture
def project(tmp_path):
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    shutil.copy(ROOT / "scripts" / "reproduce", scripts)
    (scripts / "run").write_text(RUN)
    (scripts / "run").chmod(0o755)
    (tmp_path / "experiments").mkdir()
    for file in (ROOT / "experiments").glob("*.py"):
        (tmp_path / "experiments" / file.name).touch()
    return tmp_path


def reproduce(project, *names, fails="", **environment):
    log = project / "log"
    log.write_text("")
    environment = {**os.environ, "LOG": str(log), "FAILS": fails, **environment}
    command = [project / "scripts" / "reproduce", *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done, [line.split()[0] for line in log.read_text().splitlines()]


def test_what_failed_runs_again_and_what_is_done_does_not(project):
    done, ran = reproduce(project, fails="savings")
    assert sorted(ran) == sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))
    assert done.returncode == 1 and "failed: savings(1)" in done.stderr
    done, ran = reproduce(project)
    assert (done.returncode, ran) == (0, ["savings"])
    assert {path.suffix for path in (project / "results" / "reproduce").iterdir()} == {".done", ".txt"}


def test_one_experiment_at_reduced_size(project):
    done, ran = reproduce(project, "savings", QUICK="1", OUT=str(project / "elsewhere"))
    assert (done.returncode, ran) == (0, ["savings"])
    assert "savings --quick" in (project / "log").read_text()
    assert (project / "elsewhere" / "savings-quick.done").exists()


def test_an_unknown_name_is_one_line(project):
    done, ran = reproduce(project, "saving")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and not ran
    assert re.match("scripts/reproduce: saving is none of: .*savings", line)
