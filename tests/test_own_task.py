"""A task file of one's own, as docs/own_task.md describes it, from an empty folder."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

ROOT = Path(__file__).parents[1]
VAE = ROOT / "docs" / "digits_vae.py"
COMPARE, VERIFY = "experiments/compare_optimizers.py", "scripts/verify_gradients.py"
EXPLAIN = "scripts/explain_gradient.py"

TASK = """
from __future__ import annotations
from dataclasses import dataclass
import jax.numpy as jnp
import numpy as np
from flax import nnx
from beside import HALF

def data():
    x = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
    return {"train": x, "test": x[:20]}

@dataclass
class Form:
    width: int

def model(*, rngs, width=4, steps=1, bias=True):
    return nnx.Linear(3, Form(width).width, use_bias=bias, rngs=rngs)

def loss(model, batch):
    return jnp.sum((model(batch) - HALF) ** 2, axis=-1)
"""
FAULTY = TASK.replace("HALF) ** 2", "jnp.ones(7)) ** 2")
SPLIT = TASK.replace('"train": x,', '"train": x, "valid": x,')
OWN = """
import functools
import optax

def scaled(outputs, targets, by):
    return by * optax.losses.softmax_cross_entropy_with_integer_labels(outputs, targets)

loss = functools.partial(scaled, by=2.0)

def plain(learning_rate=None):
    return optax.sgd(learning_rate)

def rated(rate):
    return optax.sgd(rate)
"""
SMALL = ("--steps=6", "--lr=0.01", "--seed=0", "--batch_size=10", "--optimizer=sgd", "--schedule=constant")
SMALL += ("--quiet", "--noreport", "--platform=cpu")


@pytest.fixture
def folder(tmp_path):
    """A folder with task files in it."""
    (tmp_path / "beside.py").write_text("HALF = 0.5\n")
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "faulty.py").write_text(FAULTY)
    (tmp_path / "split.py").write_text(SPLIT)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "other.py").write_text(OWN.replace("by *", "by + 0 *"))
    (tmp_path / "missing.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "partly.py").write_text("def data():\n    return {}\n")
    return tmp_path


def test_a_task_is_compared_and_its_faults_are_shown_as_python_shows_them(run_commands, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    options = ("--width=2,3", "--model.steps=2", "--bias=false", "--json=figures.json")
    swept, changed, clash, faulty, missing, none, partly, unnamed = run_commands(
        folder,
        (COMPARE, "--task=task.py", *options, "--workdir=~/w", *SMALL),
        (COMPARE, "--task=task.py", "--width=2,x", "--workdir=w", *SMALL),
        (COMPARE, "--task=task.py", "--heads=2", "--workdir=w", *SMALL),
        (COMPARE, "--task=faulty.py", "--workdir=f", *SMALL),
        (COMPARE, "--task=missing.py"),
        (COMPARE, "--task=nowhere.py"),
        (COMPARE, "--task=partly.py", "--workdir=p"),
        (COMPARE, "--model=task.py:Net"),
    )
    assert swept.returncode == 0, swept.stderr
    assert "The gradient is right" in swept.stdout and "valid loss, lower is better" in swept.stdout
    results = xr.open_zarr(folder / "w" / "results.zarr", consolidated=False)
    assert results.width.values.tolist() == [2, 3] and set(results.model.values) == {"task"}
    assert results["model.steps"].values.tolist() == [2, 2] and np.isfinite(results.test_loss).all()
    assert json.loads((folder / "w" / "config.json").read_text())["experiment"]["source_sha256"]
    flagfile = (folder / "w" / "flagfile").read_text().split()
    assert "--bias=false" in flagfile and not any("json" in flag or "report" in flag for flag in flagfile)

    assert changed.returncode == 2 and "--width=2,x: cannot read it" in changed.stderr
    assert clash.returncode == 2 and "--heads is not a flag of --model=task" in clash.stderr
    assert faulty.returncode == 1, faulty.stderr
    assert 'faulty.py", line' in faulty.stderr and "jnp.ones(7)" in faulty.stderr
    assert faulty.stderr.splitlines()[-1].startswith("ValueError: Incompatible shapes")
    assert "bpresearch/" not in faulty.stderr and "_src" not in faulty.stderr
    assert missing.returncode == 2 and 'missing.py", line 1, in <module>' in missing.stderr
    assert "No module named 'a_module_that_is_not_there'" in missing.stderr
    for found, message in (
        (none, "--task=nowhere.py: there is no file"),
        (partly, "data: lacks the part 'train'"),
        (unnamed, "--model=task.py:Net: the file has no Net; it has data, Form, model, loss"),
    ):
        assert (found.returncode, len(found.stderr.splitlines())) == (2, 1), found.stderr
        assert message in found.stderr


def test_a_loss_and_an_optimizer_of_ones_own(run_commands, folder):
    small = ("--dataset=spirals", "--model=linear", "--platform=cpu")
    train = (COMPARE, *small, "--optimizer=own.py:plain", "--schedule=constant", "--steps=3", "--seed=0")
    train += ("--batch_size=50", "--quiet", "--replay=0")
    *trained, verified = run_commands(
        folder,
        (*train, "--loss=own.py:loss"),
        (*train, "--loss=other.py:loss"),
        (VERIFY, *small, "--batch_size=4", "--loss=own.py:loss"),
    )
    for ended in trained:
        assert ended.returncode == 0, ended.stderr
        assert "lr: 0.03" in ended.stdout  # the first of the flag's: None is no rate of the optimizer's own
    workdirs = {ended.stdout.splitlines()[-1] for ended in trained}
    assert len(workdirs) == 2 and all("does not hold this run" in line for line in workdirs)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "scaled(by=2.0)" in verified.stdout


def test_flags_that_would_do_nothing_and_optimizers_without_a_rate_are_one_line(run_commands, folder):
    cases = {
        ("--task=task.py", "--standardize=none"): "--standardize=none: --task=task.py has its own data",
        ("--task=task.py", "--data_dir=x"): "--data_dir=x: --task=task.py has its own data",
        ("--dataset=task.py:data", "--data_dir=x"): "--data_dir=x: --dataset=task.py:data has its own data",
        ("--task=split.py", "--validation=0.2"): "--validation=0.2: --task=split.py has its own part 'valid'",
        ("--optimizer=own.py:rated",): "--optimizer=own.py:rated: has no parameter learning_rate",
    }
    ended = run_commands(folder, *((COMPARE, *given) for given in cases))
    for found, message in zip(ended, cases.values(), strict=True):
        assert (found.returncode, len(found.stderr.splitlines())) == (2, 1), found.stderr
        assert message in found.stderr


def test_the_example_is_compared_verified_and_explained(run_commands, tmp_path):
    assert len(VAE.read_text().splitlines()) <= 40
    task = f"--task={VAE}"
    swept, verified, explained = run_commands(
        tmp_path,
        (
            COMPARE,
            task,
            "--latent=2,8",
            "--b1=0.5",
            "--steps=40",
            "--seed=0",
            "--platform=cpu",
            "--workdir=w",
        ),
        (VERIFY, task, "--latent=2", "--width=4", "--batch_size=4", "--json=v.json"),
        (EXPLAIN, task, "--latent=2", "--width=4", "--weight=decode.layers.2.bias[3]"),
    )
    assert swept.returncode == 0, swept.stderr
    results = xr.open_zarr(tmp_path / "w" / "results.zarr", consolidated=False)
    assert results.lr.values.tolist() == [0.003, 0.003]  # the optimizer's own
    assert (results.test_loss[:, -1] < results.test_loss[:, 0] - 5).all()
    np.testing.assert_allclose(results.test_nll + results.test_kl, results.test_loss, rtol=1e-5)
    assert (tmp_path / "w" / "report" / "index.html").exists()
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads((tmp_path / "v.json").read_text())["passed"]
    assert explained.returncode == 0, explained.stdout + explained.stderr


def test_the_python_in_the_documentation_runs():
    text = (ROOT / "docs" / "own_task.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    assert names["results"].sizes["run"] == 4 and float(names["best"].valid_loss[-1]) < 0.2
    spread = names["spread"]
    assert 3 < float(spread.sel(scale=1.0)) < 20
