"""Sweeps lose nothing: stopped, killed, damaged, out of disk."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
import zarr

from bpresearch import sweep
from bpresearch.sweep import blocks, checkpoint, execute, layout, stream
from bpresearch.sweep.store import locked
from tests.sweep.toy import axes, experiment

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results():
    return sweep.run(experiment(), axes(), quiet=True)


def test_finished_runs_are_not_done_again(tmp_path, results, monkeypatch):
    first = sweep.run(experiment(), axes(), tmp_path / "w", quiet=True)
    stored = xr.open_zarr(tmp_path / "w" / "results.zarr", consolidated=False)
    np.testing.assert_array_equal(stored.train_loss, results.train_loss)
    monkeypatch.setattr(execute, "_train", None)  # nothing is left to train
    again = sweep.run(experiment(), axes(), tmp_path / "w", quiet=True)
    xr.testing.assert_identical(again.drop_attrs(), first.drop_attrs())
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    assert config["experiment"]["steps"] == 25
    assert {"versions", "device", "git_revision", "command"} <= set(config["provenance"])


def test_a_stopped_sweep_goes_on_where_it_was(tmp_path, monkeypatch):
    results = sweep.run(experiment(), axes(), quiet=True, layout="map")
    monkeypatch.setattr(layout, "RUNS_IN_A_BLOCK", 4)
    train, calls = blocks.Job.train, []

    def stop_at_the_third(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise sweep.Interrupted
        train(*arguments, **options)

    monkeypatch.setattr(blocks.Job, "train", stop_at_the_third)
    with pytest.raises(sweep.Interrupted, match=r"8 of 16 runs are done, saved in .*same command"):
        sweep.run(experiment(), axes(), tmp_path / "w", quiet=True, layout="map")
    calls[:] = [1] * 3
    resumed = sweep.run(experiment(), axes(), tmp_path / "w", quiet=True, layout="map")
    assert len(calls) == 3 + 2
    for name in ("train_loss", "test_loss", "valid_accuracy", "diverged_at"):
        np.testing.assert_array_equal(resumed[name], results[name])


def test_a_workdir_with_another_sweep_is_refused_with_the_difference(tmp_path):
    sweep.run(experiment(), axes(seed=0), tmp_path, quiet=True)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"workdir=.*other settings \(steps: 25 there, 30 here\)"):
        sweep.run(experiment(steps=30), axes(seed=0), tmp_path, quiet=True)
    for how, there, here in (("layout", "auto", "map"), ("shard", "runs", "data")):
        with pytest.raises(ValueError, match=f'{how}: "{there}" there, "{here}" here'):
            sweep.run(experiment(), axes(seed=0), tmp_path, quiet=True, **{how: here})
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_workdir_in_use_is_refused(tmp_path):
    def hold():
        with locked(tmp_path):
            pass

    with locked(tmp_path), ThreadPoolExecutor(1) as another:
        hold()  # as a search does, which holds it for all of its sweeps
        with pytest.raises(ValueError, match=r"workdir=.* is in use"):
            another.submit(hold).result()
    ThreadPoolExecutor(1).submit(hold).result()


@pytest.mark.parametrize("file", ["config.json", "results.zarr/zarr.json", "results.zarr/train_loss/c/0/0"])
def test_a_damaged_workdir_is_one_line_and_stays_as_it_is(tmp_path, file):
    sweep.run(experiment(), axes(seed=0), tmp_path, quiet=True)
    (tmp_path / file).write_bytes(b"\0damaged")
    with pytest.raises(ValueError, match=r"workdir=.*cannot be read.*take another folder") as error:
        sweep.run(experiment(), axes(seed=0), tmp_path, quiet=True)
    assert "\n" not in str(error.value)
    assert (tmp_path / file).read_bytes() == b"\0damaged"


def test_an_unusable_workdir_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"workdir=.*cannot write there"):
        sweep.run(experiment(), axes(seed=0), tmp_path / "file", quiet=True)


def test_a_signal_stops_the_sweep_and_it_says_how_to_go_on(tmp_path):
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from tests.sweep import toy as t
        from bpresearch import platform, sweep
        platform.start("cpu")
        one_program = dict(optimizer=t.optim.momentum, schedule=t.schedules.constant, lr=0.1)
        try:
            sweep.run(t.experiment(steps=400_000), t.axes(**one_program), {str(tmp_path / "w")!r})
        except sweep.Interrupted as error:
            print(error)
            sys.exit(130)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:  # wait for the first sign of training
        if "%" in line:
            break
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on" in output
    assert time.monotonic() - begun < 60


def same(found, expected):
    for name, values in expected.data_vars.items():
        np.testing.assert_array_equal(found[name].values, values.values, err_msg=name)


def interrupted_after(monkeypatch, calls):
    """Makes a sweep stop, as by a signal, after some calls of its programs."""
    add, seen = stream.Stream.add, []

    def counted(self, call):
        seen.append(call)
        add(self, call)
        if len(seen) == calls:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(stream.Stream, "add", counted)
    return seen


@pytest.mark.full
def test_a_stopped_block_goes_on_from_its_last_chunk(tmp_path, monkeypatch):
    task = experiment(eval_every=2)  # thirteen segments: the first call does one, the others more
    whole = sweep.run(task, axes(), quiet=True)
    with monkeypatch.context() as patch:
        interrupted_after(patch, 1)
        with pytest.raises(
            sweep.Interrupted, match=r"0 of 16 runs are done, saved in .*same command goes on"
        ):
            sweep.run(task, axes(), tmp_path, quiet=True)
    stored = xr.open_zarr(tmp_path / "results.zarr", consolidated=False)
    np.testing.assert_array_equal(stored.train_loss[:8, :2], whole.train_loss[:8, :2])  # streamed already
    assert np.isnan(stored.train_loss[:, 2:]).all() and not stored.finished.any()
    seen = interrupted_after(monkeypatch, 0)
    same(sweep.run(task, axes(), tmp_path, quiet=True), whole)
    assert seen[0].segments[0].first == 3
    assert not (tmp_path / "checkpoints").exists()


def test_a_damaged_checkpoint_is_one_line_and_stays_as_it_is(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(patch, 1)
        with pytest.raises(sweep.Interrupted):
            sweep.run(experiment(), axes(), tmp_path, quiet=True)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    files = [path for path in (folder / "state").rglob("*") if path.is_file() and path.stat().st_size > 200]
    for path in files:
        path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(ValueError, match=r"checkpoint 0-\d+ cannot be read .*start again") as error:
        sweep.run(experiment(), axes(), tmp_path, quiet=True)
    assert "\n" not in str(error.value) and {path: path.read_bytes() for path in files} == before


def test_a_checkpoint_of_other_runs_or_shapes_is_not_taken(tmp_path):
    state = {"w": jnp.arange(6.0).reshape(2, 3)}
    checkpoint.save(tmp_path, state, np.array([3, 4]), 7)
    found, step = checkpoint.restore(tmp_path, state, np.array([3, 4]))
    np.testing.assert_array_equal(found, [state["w"]])
    assert step == 7
    assert checkpoint.restore(tmp_path, state, np.array([3, 5])) is None
    assert checkpoint.restore(tmp_path, {"w": np.zeros((4, 3))}, np.array([3, 4])) is None


def test_a_full_disk_is_one_line_and_what_is_saved_stays(tmp_path, monkeypatch):
    results = sweep.run(experiment(), axes(), quiet=True, layout="map")
    monkeypatch.setattr(layout, "RUNS_IN_A_BLOCK", 4)
    put, written = zarr.storage._local._put, []

    def full(path, value, exclusive=False):
        if "finished/c" in str(path):
            written.append(path)
        if "train_loss/c" in str(path) and len(written) == 3:  # as the runs are appended, and by two blocks
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(path, value, exclusive)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage._local, "_put", full)
        with pytest.raises(ValueError, match=r"workdir=.* cannot write there \(No space left") as error:
            sweep.run(experiment(), axes(), tmp_path, quiet=True, layout="map")
    assert "\n" not in str(error.value)
    stored = xr.open_zarr(tmp_path / "results.zarr", consolidated=False).load()
    assert stored.finished.sum() == 8
    same(stored.isel(run=stored.finished.values), results.isel(run=stored.finished.values))
    same(sweep.run(experiment(), axes(), tmp_path, quiet=True, layout="map"), results)


def test_a_killed_sweep_gives_the_undisturbed_bits(tmp_path):
    script = ROOT / "scripts" / "check_resume.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, script, "--kills=2", f"--json={tmp_path / 'figures.json'}"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert json.loads((tmp_path / "figures.json").read_text())["kills"] == 2


def test_a_flag_that_only_the_killed_process_finds_wrong():
    script = ROOT / "scripts" / "check_resume.py"
    command = [sys.executable, script, "--platform=abacus"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr == "check_resume.py: --platform=abacus is not one of cpu, gpu, tpu\n"
