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
shift
echo "$name $*" >> "$LOG"
for word; do
    case "$word" in --json=*) echo '{"ratio": 2}' > "${word#--json=}" ;; esac
done
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
    for file in [*ROOT.glob("experiments/*.py"), *ROOT.glob("scripts/benchmark*.py")]:
        (tmp_path / file.relative_to(ROOT)).touch()
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
    assert {path.suffix for path in (project / "results" / "reproduce").iterdir()} == {
        ".done",
        ".json",
        ".txt",
    }


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


def test_figures_that_pages_quote_are_written_with_what_was_measured_and_resumed(project):
    parts = ("--figures", "savings", "benchmark")
    done, ran = reproduce(project, *parts, fails="benchmark")
    assert ran == ["savings", "figures", "benchmark", "figures"] and "failed: benchmark(1)" in done.stderr
    said = [line for line in (project / "log").read_text().splitlines() if line.startswith("figures")]
    assert "--record=savings" in said[0] and "--command=scripts/run experiments/savings.py" in said[0]
    assert "--revision=unknown" in said[0] and "--exit_code=0" in said[0] and "--exit_code=1" in said[1]
    done, ran = reproduce(project, *parts)
    assert (done.returncode, ran) == (0, ["figures", "benchmark", "figures"])
    assert "savings: done before" in done.stdout
    assert "--workdir" not in (project / "log").read_text()  # which benchmarks do not take


def test_figures_at_reduced_size_are_refused(project):
    done, ran = reproduce(project, "--figures", "savings", QUICK="1")
    assert done.returncode == 2 and not ran and len(done.stderr.splitlines()) == 1
