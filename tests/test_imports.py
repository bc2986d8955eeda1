"""What is imported when, and what is said of what is not installed."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bpresearch as bp
from bpresearch.imports import EXTRA_OF, MissingExtraError, extra, missing

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bpresearch"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_every_room_is_a_part_and_every_part_loads():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= set(dir(bp)) == set(bp.__all__)
    for name in dir(bp):
        assert getattr(bp, name) is not None
    with pytest.raises(AttributeError, match="module 'bpresearch' has no attribute 'verfy'"):
        _ = bp.verfy


def test_the_extra_that_is_named_brings_the_module():
    packages = {"sklearn": "scikit-learn", "vl_convert": "vl-convert-python", "orbax": "orbax-checkpoint"}
    for module, name in EXTRA_OF.items():
        brought = [re.split("[<>=]", requirement)[0] for requirement in EXTRAS[name]]
        assert packages.get(module, module) in brought, module


def test_a_module_that_is_in_no_extra_is_an_error_as_usual():
    error = ModuleNotFoundError("No module named 'nothing'", name="nothing")
    assert missing(error, "this") is error
    with pytest.raises(MissingExtraError, match=r"this needs torch.*pip install 'bpresearch\[torch\]'"):
        raise missing(ModuleNotFoundError(name="torch.nn"), "this")
    assert extra("json", "this") is json


# A process in which nothing but the base install can be imported, as after `pip install bpresearch`.
BASE = """
import sys
from bpresearch.imports import EXTRA_OF

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRA_OF and not name.startswith("orbax"):  # Flax brings Orbax
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Lacking())
"""


def base(code, *arguments, folder=None):
    return subprocess.run(
        [sys.executable, "-c", BASE + code, *arguments], capture_output=True, text=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


COMMANDS = """
import os
from bpresearch.command.main import main
for given in (
    ["verify", "--dataset=spirals", "--model=linear", "--batch_size=4"], ["verify", "--dataset=digits"],
    ["report", "--workdir=x"], ["verfy"], ["--help"],
):
    sys.stdout.flush()
    if os.fork() == 0:
        sys.argv = ["/somewhere/bpresearch", *given]
        os.dup2(1, 2)
        main()
    print("ended with", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def test_commands_of_the_base_install(tmp_path):
    done = base(COMMANDS, folder=tmp_path)
    said = re.split(r"ended with (\d+)\n", done.stdout)
    answers = list(zip(said[::2], said[1::2], strict=False))
    verified, digits, report, wrong, usage = answers
    assert verified[1] == "0", verified[0]
    assert "two interleaved spirals" in verified[0] and "standardised: each feature" in verified[0]
    line = "bpresearch verify: --dataset=digits needs sklearn, which is not installed: "
    assert digits[1] == "2" and digits[0].startswith(line) and digits[0].count("\n") == 1
    assert "pip install 'bpresearch[data]'" in digits[0]
    assert report[1] == "2" and report[0].count("\n") == 1
    assert re.match(r"bpresearch report: .* needs \w+, which is not installed: pip install", report[0])
    assert wrong[1] == "2" and "verfy is not one of compare, verify" in wrong[0]
    assert "did you mean verify?" in wrong[0] and wrong[0].count("\n") == 1
    assert usage[1] == "0" and all(f"\n  {name} " in usage[0] for name in ("compare", "merge", "coverage"))


LIBRARY = """
import jax.numpy as jnp
import bpresearch as bp

bp.verify.assert_gradients(jnp.sin, jnp.arange(3.0))
assert "sign_wrong" in bp.verify.FAULTS  # of a module that nothing here imports
for part in ("chainrule", "models", "optim", "data"):
    getattr(bp, part)
print(bp.data.load("spirals").name)
bp.sweep.Task
try:
    bp.sweep.run
except ImportError as error:
    print(error)
"""


def test_the_library_of_the_base_install(tmp_path):
    done = base(LIBRARY, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    name, line = done.stdout.splitlines()
    assert name == "spirals"
    assert re.match(
        r"bpresearch\.sweep\.run needs \w+, which is not installed: pip install 'bpresearch\[", line
    )


def test_verifying_a_function_needs_neither_flax_nor_the_rules():
    code = "import sys, bpresearch as bp; bp.verify.assert_gradients; bp.verify.function; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"flax", "optax", "bpresearch.chainrule", "scipy.special"} & set(loaded.split())
