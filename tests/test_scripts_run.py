"""scripts/run and scripts/test, as a user types them, on a small project and without a network."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENT = f".venv-{sys.version_info[0]}.{sys.version_info[1]}"

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "small"
version = "0.1.0"
dependencies = []

[project.optional-dependencies]
report = []
test = []
torch = []

[tool.ruff]
"""
# Builds a wheel that only puts the project on the path: a real backend would have to be downloaded.
BACKEND = """
import os, zipfile

def build_editable(directory, settings=None, metadata=None):
    name, info = "small-0.1.0-py3-none-any.whl", "small-0.1.0.dist-info"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as wheel:
        wheel.writestr("small.pth", os.getcwd())
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 0.1.0\\n"
                       + "".join(f"Provides-Extra: {name}\\n" for name in ("report", "test", "torch"))
                       + open("requires.txt").read())
        wheel.writestr(f"{info}/WHEEL",
                       "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""
HELLO = """
import small_module, sys
print("hello", *sys.argv[1:])
sys.exit(7)
"""


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "a small project"
    (folder / "experiments").mkdir(parents=True)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "constraints.txt").write_text("")
    (folder / "requires.txt").write_text("")
    (folder / "backend.py").write_text(BACKEND)
    (folder / "small_module.py").write_text("")
    (folder / "experiments" / "hello.py").write_text(HELLO)
    return folder


def start(project, script, *arguments, **variables):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "EXTRAS"))}
    offline = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PYTHON": sys.executable}
    return subprocess.Popen(
        [project / "scripts" / script, *arguments],
        cwd=project.parent,
        env={**inherited, **offline, **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run(project, script, *arguments, **variables):
    """Exit code, standard output and the lines of standard error."""
    process = start(project, script, *arguments, **variables)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors.splitlines()


def test_the_environment_through_its_life(project):
    hello = ("experiments/hello.py", "two words")
    expected = (7, "hello two words\n")

    # A set-up that is killed half way,
    killed = start(project, "run", *hello)
    assert "about a minute, once" in killed.stderr.readline()
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()

    # is done again by two calls at once, of which one waits for the other.
    both = [start(project, "run", *hello) for _ in range(2)]
    said = []
    for process in both:
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == expected
        said += errors.splitlines()
    assert sum("not finished" in line for line in said) == 1
    assert sum("is ready after" in line for line in said) == 1

    # Then calls say nothing and leave everything alone; also where the linter's settings change.
    with (project / "pyproject.toml").open("a") as file:
        file.write("line-length = 100\n")
    assert run(project, "run", *hello) == (*expected, [])

    # Other versions are noticed, and an extra that was added stays.
    (project / "constraints.txt").write_text("numpy==1.0\n")
    code, output, errors = run(project, "run", *hello, EXTRAS="torch")
    assert (code, output) == expected
    assert errors[0] == f"The pinned versions have changed: updating {ENVIRONMENT}."
    assert run(project, "run", *hello, EXTRAS="torch") == (*expected, [])
    assert run(project, "run", *hello) == (*expected, [])
    assert (project / ENVIRONMENT / "installed.txt").read_text().startswith("report torch\n")

    # Without a registry there is one line, and the environment is what it was before.
    (project / "requires.txt").write_text("Requires-Dist: numpy\n")
    (project / "constraints.txt").write_text("numpy==2.0\n")
    nowhere = {"PIP_NO_INDEX": "", "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "1"}
    code, _, errors = run(project, "run", *hello, **nowhere)
    assert code == 2
    assert "package registry cannot be reached" in errors[-1] and len(errors) == 2
    (project / "constraints.txt").write_text("numpy==1.0\n")
    assert run(project, "run", *hello) == (*expected, [])


@pytest.mark.parametrize("arguments", [(), ("experiments/nothing.py",), ("scripts",)])
def test_a_file_that_is_not_there(project, arguments):
    code, output, (line,) = run(project, "run", *arguments)
    assert (code, output) == (2, "")
    assert "experiments/hello.py" in line and "environment.py" not in line


def interpreter(folder: Path, script: str) -> str:
    """A program that is not a Python that would do."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize("script", ["run", "test"])
@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("echo 3.8", "Python 3.8, and 3.11 or later is needed"),
        ("echo 2.7", "Python 2.7, and 3.11 or later is needed"),
        ("echo no such version >&2; echo try another >&2; exit 127", "does not run"),
    ],
)
def test_a_python_that_will_not_do(project, tmp_path, script, says, words):
    python = interpreter(tmp_path, says)
    code, output, (line,) = run(project, script, "experiments/hello.py", PYTHON=python)
    assert (code, output) == (2, "")
    assert line.startswith(f"scripts/{script}: {python}") and words in line


def test_a_python_that_is_not_installed(project):
    code, _, (line,) = run(project, "run", "experiments/hello.py", PYTHON="python9.9")
    assert code == 2 and "python9.9 is not on this machine" in line


def test_an_unknown_extra(project):
    code, _, (line,) = run(project, "run", "experiments/hello.py", EXTRAS="tset")
    assert code == 2 and "EXTRAS=tset: the project's extras are report, test, torch" in line


def test_an_environment_that_somebody_else_made_is_left_alone(project):
    (project / ENVIRONMENT).mkdir()
    (project / ENVIRONMENT / "theirs").write_text("")
    code, _, (line,) = run(project, "run", "experiments/hello.py")
    assert code == 2 and "move it away or delete it" in line
    assert (project / ENVIRONMENT / "theirs").exists()


def test_help_shows_how_to_use_them(project):
    for script in ("run", "test"):
        code, output, errors = run(project, script, "--help")
        assert (code, errors) == (0, [])
        assert f"scripts/{script}" in output and "PYTHON=" in output
