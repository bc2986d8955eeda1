"""What a workdir holds, and who may write it: nothing is destroyed, whatever stands there."""

import fcntl
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from bpresearch import optim, sweep
from bpresearch.optim import schedules
from bpresearch.sweep import ask_and_tell, checkpoint, functions, store
from tests.sweep.toy import axes, experiment


def doubled(key, hyperparameters):
    return {"end": 2 * hyperparameters["scale"]}


AXES = sweep.grid(scale=[0.5, 1.0], seed=0)


def test_a_link_in_place_of_the_lock_is_refused_and_what_it_names_stays(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"--workdir=.*/w: cannot write there \(.*its lock is a link"):
        sweep.run(doubled, AXES, tmp_path / "w", quiet=True)
    assert (tmp_path / "mine").read_text() == "precious"


def test_what_a_kill_left_of_files_being_written_is_removed_and_nothing_else(tmp_path):
    left = [".config.json.123", ".flagfile.7", ".study.journal.99"]
    for name in (*left, ".mine.1", ".config.json.old"):
        (tmp_path / name).write_text("{")
    sweep.run(doubled, AXES, tmp_path, quiet=True)
    hidden = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert hidden == {".mine.1", ".config.json.old"}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"experiment":' * 100_000, "\0", "[]"])
def test_a_config_that_cannot_be_read_is_one_line(tmp_path, text):
    sweep.run(doubled, AXES, tmp_path, quiet=True)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"--workdir=.*: config.json cannot be read; take another") as error:
        sweep.run(doubled, AXES, tmp_path, quiet=True)
    assert "\n" not in str(error.value) and (tmp_path / "config.json").read_text() == text


def test_a_workdir_that_is_deleted_in_mid_run_is_told_of(tmp_path, monkeypatch):
    write = functions._write

    def after_deletion(group, rows, found):
        shutil.rmtree(tmp_path / "w")
        write(group, rows, found)

    monkeypatch.setattr(functions, "_write", after_deletion)
    with pytest.raises(ValueError, match=r"--workdir=.*/w: cannot write there \(it was removed while"):
        sweep.run(doubled, AXES, tmp_path / "w", quiet=True)


def test_a_search_holds_its_workdir_from_beginning_to_end(tmp_path, monkeypatch):
    pytest.importorskip("optuna")

    def searched(study, *arguments, **how):
        with store.locked(tmp_path), open(tmp_path / "lock") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as another process would
        return xr.Dataset(attrs={"seen": study.path})

    monkeypatch.setattr(ask_and_tell, "_searched", searched)
    drawn = axes(lr=sweep.Uniform(1e-3, 1.0, log=True))
    assert sweep.search(experiment(), drawn, trials=2, workdir=tmp_path).seen == tmp_path
    with open(tmp_path / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_checkpoint_that_a_kill_left_is_discarded_with_the_last_run(tmp_path):
    task, one_program = (
        experiment(steps=2, eval_every=2),
        axes(optimizer=[optim.momentum], schedule=[schedules.constant]),
    )
    sweep.run(task, one_program, tmp_path, quiet=True)
    checkpoint.save(tmp_path, {"w": jnp.ones(2)}, np.array([0]), 1)
    sweep.run(task, one_program, tmp_path, quiet=True)
    assert not (tmp_path / "checkpoints").exists()


def test_what_this_machine_has_no_memory_for_is_refused_with_what_it_would_need():
    wide = experiment(model_options={})
    for changes, message in (
        ({"widths": [(10**12,)]}, r"widths=1000000000000: .* would take [\d,]+ GiB, and this machine has"),
        ({"steps": [10**20]}, "steps=100000000000000000000: takes at most 2,147,483,647"),
        ({"seed": range(10**6), "lr": [0.1 * i for i in range(100)]}, r"400,000,000 combinations \(.*GiB"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep.run(wide, axes(**changes), quiet=True)


def test_a_workdir_insists_on_the_number_of_devices(tmp_path):
    task, one_program = experiment(steps=2), axes(optimizer=[optim.momentum], schedule=[schedules.constant])
    sweep.claim(tmp_path, task, one_program)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["experiment"]["devices"] == f"{jax.device_count()} x cpu"
    config["experiment"]["devices"] = "64 x cpu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"--workdir=.* on 64 x cpu devices, and here are \d x cpu, .*go on"):
        sweep.claim(tmp_path, task, one_program)
    del config["experiment"]["devices"]  # slices of several machines, merged
    (tmp_path / "config.json").write_text(json.dumps(config))
    sweep.claim(tmp_path, task, one_program)
