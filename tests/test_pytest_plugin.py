"""The fixture, in a test file as a user writes one."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TEST_FILE = """
import sys
import jax
assert "bpresearch.verify" not in sys.modules  # the plugin leaves JAX's configuration to the test suite
import jax.numpy as jnp

@jax.custom_vjp
def sine(x):
    return jnp.sin(x)

sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, y_bar: (y_bar * jnp.cos(x),))

@jax.custom_vjp
def wrong(x):
    return jnp.sin(x)

wrong.defvjp(lambda x: (jnp.sin(x), x), lambda x, y_bar: (-y_bar * jnp.cos(x),))

def test_right(assert_gradients):
    assert_gradients(sine, jnp.array([0.3, 1.2]))

def test_wrong(assert_gradients):
    assert_gradients(wrong, jnp.array([0.3, 1.2]), oracles=["autodiff"])
"""


def test_fixture_in_a_test_suite(tmp_path):
    (tmp_path / "test_sine.py").write_text(TEST_FILE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "test_sine.py"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "x: its sign is wrong at every element" in done.stdout


def test_pytest_finds_the_plugin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"bpresearch": "bpresearch.pytest_plugin"}
