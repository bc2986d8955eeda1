"""CONTRIBUTING.md: what it says, done in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()

# Runs in place of scripts/run, so that one process checks everything.
CHECKS = """
import runpy, sys
import jax, jax.numpy as jnp, numpy as np
import bpresearch as bp
from bpresearch.optim import hyperparameters
from bpresearch.verify.detection import cases

squareplus, x = jax.nn.squareplus, jnp.linspace(-2.0, 2.0, 5)
assert bp.chainrule.coverage({"jax.nn": jax.nn}).with_rule.count("jax.nn.squareplus") == 1
case = cases.case_of(squareplus)
assert case.name == "squareplus" and cases.faults_of(case)
given = case.model, case.loss_fn, case.x, case.y
both = [engine.value_and_grad(*given)[1] for engine in (bp.chainrule, bp.autodiff)]
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *both)

@jax.custom_vjp
def square(x):
    return x * x

for factor in (2, 1):
    square.defvjp(lambda x: (x * x, x), lambda x, y_bar: (factor * x * y_bar,))
    (row,) = bp.verify.function(square, x, oracles=["linearization"]).rows
    assert (row.oracle, row.passed) == ("linearization", factor == 2)
assert "linearization" in bp.verify.FUNCTION_ORACLES

make = bp.optim.BY_NAME["normalized_sgd"]
update, _ = make(0.1).update(jnp.array([3.0, 4.0]), make(0.1).init(x))
np.testing.assert_allclose(update, [-0.06, -0.08], rtol=1e-6)
assert hyperparameters(make) == ("eps",)

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def examples() -> dict[str, str]:
    """The Python of the page, by the file that the line before each block names."""
    return dict(re.findall(r"`(\w+/[\w/]+[.]py)`:\n\n```python\n(.*?)```", TEXT, re.DOTALL))


def test_what_the_page_says_is_picked_up(tmp_path):
    for folder in ("bpresearch", "experiments", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    assert len(examples()) == TEXT.count("```python") == 4
    for name, code in examples().items():
        file = tmp_path / name
        if not file.exists():
            file.write_text(code)
            continue
        listed = file.read_text().replace("__all__ = [", '__all__ = [\n    "normalized_sgd",', 1)
        file.write_text(f"{listed}\n\n{code}")
    (tmp_path / "checks.py").write_text(CHECKS)
    run = tmp_path / "scripts" / "run"
    run.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/checks.py" "$@"\n')
    done = subprocess.run(
        [tmp_path / "scripts" / "reproduce", "halving"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONWARNINGS": "ignore", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "results" / "reproduce"
    assert '"ratio": 0.5' in (out / "halving.json").read_text()
    assert (out / "halving" / "halving.png").exists()


def test_examples_are_formatted_as_the_house_is():
    for name, code in examples().items():
        done = subprocess.run(
            [sys.executable, "-m", "ruff", "format", "--diff", "--stdin-filename", name, "-"],
            input=code, capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
