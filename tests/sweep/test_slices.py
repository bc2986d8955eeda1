"""Slices of a sweep, joined, are the sweep."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bpresearch import models, optim, sweep
from tests.sweep.toy import axes, experiment

ROOT = Path(__file__).parents[2]


def test_the_slices_of_a_sweep_are_the_sweep_bit_for_bit(tmp_path):
    """Of several models, so that some axes are of no run of a slice."""
    several = axes(model=[models.linear, models.mlp], widths=[(8,)], optimizer=[optim.sgd, optim.momentum])
    whole = sweep.run(experiment(), several, tmp_path / "whole", quiet=True)
    folders = []
    for number in (3, 1, 2):
        folders.append(tmp_path / str(number))
        part = sweep.run(experiment(), several, folders[-1], slice=f"{number}/3", quiet=True)
        assert 10 <= part.sizes["run"] <= 11
    with pytest.raises(ValueError, match="slice 2 of 3 is missing"):
        sweep.merge(folders[:2], tmp_path / "merged")
    with pytest.raises(ValueError, match=r"slice 3 of 3 is in .* too"):
        sweep.merge([*folders, folders[0]], tmp_path / "merged")
    merged = sweep.merge(folders, tmp_path / "merged")
    for name in (*whole.data_vars, *whole.coords):
        np.testing.assert_array_equal(merged[name].values, whole[name].values, err_msg=str(name))
    configs = [json.loads((tmp_path / f / "config.json").read_text()) for f in ("whole", "merged")]
    assert configs[0]["experiment"] == configs[1]["experiment"]
    again = sweep.run(experiment(), several, tmp_path / "merged", quiet=True)  # nothing is left to do
    np.testing.assert_array_equal(again.train_loss, whole.train_loss)
    with pytest.raises(ValueError, match="holds results already"):
        sweep.merge(folders, tmp_path / "merged")


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "-1/3"])
def test_a_slice_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=f"slice={text}: takes a number and how many"):
        sweep.run(experiment(), axes(), slice=text, quiet=True)


def test_more_slices_than_runs_are_refused():
    with pytest.raises(ValueError, match="the sweep has only 16 runs"):
        sweep.run(experiment(), axes(), slice="1/17", quiet=True)


def test_folders_that_hold_no_slices_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no slice of a sweep"):
        sweep.merge([tmp_path / "none"], tmp_path / "merged")


ANY_ORDER = """
import sys
import jax.numpy as jnp
before = jnp.ones(2) + 1  # the script's own, before it joins
import bpresearch as bp
from bpresearch import platform
platform.start("cpu", cpu_devices=1)
platform.join()
platform.join()
platform.start("cpu", cpu_devices=1)
import jax
print(jax.process_count(), jax.process_index(), len(jax.devices()), float((jnp.ones(2) + 1).sum()))
"""


def test_slurms_variables_are_enough_to_join_in_any_order_of_calls():
    """One process, as in a job of one task: what JAX looks for, and what it finds."""
    slurm = {
        "SLURM_JOB_ID": "12345", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1",
        "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "1",
    }  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ANY_ORDER], capture_output=True, text=True,
        env=os.environ | slurm | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "1 0 1 4.0"
