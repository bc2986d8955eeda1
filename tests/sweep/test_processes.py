"""Sweeps over several processes and devices give what one gives."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from bpresearch import optim, sweep
from tests.sweep.toy import axes, experiment

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
from bpresearch import platform, sweep
from tests.sweep.toy import axes, experiment
workdir, coordinator, process = sys.argv[1:]
platform.choose("cpu")
platform.join(coordinator, 2, int(process))
platform.start("cpu", cpu_devices=1)
for steps in (25, 30):
    try:
        results = sweep.run(experiment(steps=steps), axes(seed=range(3)), workdir, quiet=True)
        print(results.sizes["run"], float(results.train_loss.sum()))
    except ValueError as error:
        sys.exit(f"{steps} steps: {error}")
"""

SEARCH = """
import sys
from bpresearch import platform, sweep
from tests.sweep.toy import axes, experiment
workdir, coordinator, process = sys.argv[1:]
platform.choose("cpu")
platform.join(coordinator, 2, int(process))
platform.start("cpu", cpu_devices=1)
sweep.run(experiment(), axes(seed=range(3)), f"{workdir}/pruned", quiet=True, prune="halving")
for trials in (4, 5):  # the second search goes on where the first one ended
    drawn = axes(lr=sweep.Uniform(1e-3, 1.0, log=True))
    where = {"batch": 2, "workdir": f"{workdir}/searched", "quiet": True}
    found = sweep.search(experiment(), drawn, trials=trials, **where)
    print(found.sizes["run"])
try:
    sweep.search(experiment(steps=30), drawn, trials=3, **where)
except ValueError as error:
    print(error)
"""

STOPPED = """
import os, signal, sys
from bpresearch import optim, platform, sweep
from bpresearch.command import ending, start
from bpresearch.sweep import stream
import bpresearch.sweep.experiment as lengths
from bpresearch.optim.schedules import constant
from tests.sweep.toy import axes, experiment
workdir, coordinator, process = sys.argv[1:]
lengths.STEPS_IN_A_CHUNK = 2
del sys.argv[1:]
add, kinds = stream.Stream.add, [signal.SIGKILL, signal.SIGTERM]

def signalled(self, call):
    add(self, call)
    if int(process) and call.segments[-1].last == 4:
        os.kill(os.getpid(), kinds.pop())

def main():
    ending.tell_of_lost_processes("sweep")
    platform.choose("cpu")
    platform.join(coordinator, 2, int(process))
    platform.start("cpu", cpu_devices=1)
    how = {"quiet": True, "checkpoint_every": 0}
    task, one_program = experiment(eval_every=2), axes(optimizer=[optim.momentum], schedule=[constant])
    stream.Stream.add = signalled
    try:
        sweep.run(task, one_program, f"{workdir}/stopped", **how)
    except sweep.Interrupted as error:
        print(error, flush=True)
    stream.Stream.add = add
    print(os.listdir(f"{workdir}/stopped/checkpoints"), flush=True)
    sweep.run(task, one_program, f"{workdir}/stopped", **how)
    stream.Stream.add = signalled
    sweep.run(task, one_program, f"{workdir}/killed", **how)

start.run(main)
"""


def both(arguments):
    """Exit codes and outputs of two processes of Python; `arguments(coordinator, number)` are each one's."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        coordinator = f"localhost:{found.getsockname()[1]}"
    environment, pipe = os.environ | {"PYTHONPATH": str(ROOT)}, subprocess.PIPE
    processes = [
        subprocess.Popen([sys.executable, *command], env=environment, stdout=pipe, stderr=pipe, text=True)
        for command in (arguments(coordinator, number) for number in range(2))
    ]
    outputs = [process.communicate(timeout=400) for process in processes]
    return [process.returncode for process in processes], outputs


def in_both(script, workdir):
    return both(lambda coordinator, number: ["-c", script, str(workdir), coordinator, str(number)])


def test_two_processes_give_the_results_of_one_bit_for_bit(tmp_path):
    codes, outputs = in_both(SCRIPT, tmp_path / "two")
    assert codes == [1, 1], outputs  # the second sweep's: the workdir holds other settings
    assert "30 steps: " in outputs[0][1] and "steps: 25 there, 30 here" in outputs[0][1], outputs
    assert "30 steps: the first process cannot begin" in outputs[1][1], outputs
    assert outputs[0][0].splitlines()[-1] == outputs[1][0].splitlines()[-1]  # both have all results
    one = sweep.run(experiment(), axes(seed=range(3)), quiet=True)
    two = xr.open_zarr(tmp_path / "two" / "results.zarr", consolidated=False)
    assert two.sizes["run"] == 24 and bool(two.finished.all())
    for name, values in one.data_vars.items():
        np.testing.assert_array_equal(two[name].values, values.values, err_msg=name)


def test_two_processes_that_a_signal_stopped_or_that_lost_one_go_on_bit_for_bit(tmp_path):
    codes, outputs = in_both(STOPPED, tmp_path)
    assert codes == [2, -signal.SIGKILL], outputs
    assert "0 of 4 runs are done, saved in " in outputs[0][0] and "0-4" in outputs[0][0], outputs
    assert outputs[0][1].startswith("-c: another process of the sweep has ended; what is saved is whole")
    assert len(outputs[0][1].splitlines()) == 1, outputs
    task = experiment(eval_every=2)
    one_program = axes(optimizer=[optim.momentum], schedule=[optim.schedules.constant])
    one = sweep.run(task, one_program, quiet=True)
    assert (tmp_path / "killed" / "checkpoints").exists()
    sweep.run(task, one_program, tmp_path / "killed", quiet=True)
    for name in ("stopped", "killed"):
        two = sweep.read(tmp_path / name)
        for variable, values in one.data_vars.items():
            np.testing.assert_array_equal(two[variable].values, values.values, err_msg=str(variable))


@pytest.mark.full
def test_pruning_and_searches_are_the_same_in_two_processes(tmp_path):
    pytest.importorskip("optuna")
    codes, outputs = in_both(SEARCH, tmp_path)
    assert codes == [0, 0], outputs
    for said, refusal in zip(
        outputs, ("steps: 25 there, 30 here", "the first process cannot go on"), strict=True
    ):
        assert said[0].splitlines()[-3:-1] == ["8", "10"] and refusal in said[0].splitlines()[-1], outputs
    pruned = sweep.run(experiment(), axes(seed=range(3)), quiet=True, prune="halving")
    drawn = axes(lr=sweep.Uniform(1e-3, 1.0, log=True))
    searched = sweep.search(experiment(), drawn, trials=5, batch=2, quiet=True)
    assert (pruned.pruned_at.values > 0).any()
    for name, one in (("pruned", pruned), ("searched", searched)):
        two = xr.open_zarr(tmp_path / name / "results.zarr", consolidated=False)
        for variable, values in one.data_vars.items():
            np.testing.assert_array_equal(two[variable].values, values.values, err_msg=str(variable))
    np.testing.assert_array_equal(searched.lr, two.lr)


@pytest.mark.full
def test_a_script_with_distributed_runs_in_each_process(tmp_path):
    flags = "--dataset=spirals --steps=20 --lr=0.1,0.01 --seed=0 --schedule=cosine --noreport --platform=cpu"
    flags += " --confirm_seeds=1"
    command = [
        str(ROOT / "experiments/compare_optimizers.py"),
        *flags.split(),
        "--distributed",
        "--processes=2",
    ]

    def arguments(coordinator, number):
        own = [f"--coordinator={coordinator}", f"--process={number}", f"--workdir={tmp_path / str(number)}"]
        return [*command, *own]

    codes, said = both(arguments)
    assert codes == [0, 0], said
    assert "Best settings" in said[0][0] and "Best settings" not in said[1][0], said
    assert "--lr=0.1,0.01" in (tmp_path / "0" / "flagfile").read_text()
    assert not (tmp_path / "1").exists()  # it needs no workdir
    results = xr.open_zarr(tmp_path / "0" / "results.zarr", consolidated=False)
    assert bool(results.finished.all()) and np.isfinite(results.train_loss).all()
    fresh = xr.open_zarr(tmp_path / "0" / "confirm" / "results.zarr", consolidated=False)
    assert fresh.sizes["run"] == 3 and bool(fresh.finished.all())


def test_batches_spread_over_devices_train_as_on_one_within_rounding():
    settings = {"optimizer": optim.momentum, "seed": range(2)}
    whole = sweep.run(experiment(), axes(**settings), quiet=True, layout="map")
    spread = sweep.run(experiment(), axes(**settings), quiet=True, shard="data")
    np.testing.assert_allclose(spread.train_loss, whole.train_loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(spread.test_loss, whole.test_loss, rtol=1e-5, atol=1e-6)


def test_each_device_computes_its_part_of_a_batch_and_sums_are_exchanged():
    from bpresearch.sweep.layout import planned

    task = experiment()
    runs = sweep.expand(axes(optimizer=optim.momentum, seed=0), task.model)
    text = planned(task, runs, task.examples(), shard="data").advance.as_text()
    assert "all-reduce" in text
    assert "f32[5,8]" in text  # activations of half a batch of ten in the layer of width eight


def test_batches_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"shard=data: --batch_size=9 does not divide by the 2 devices"):
        sweep.run(experiment(), axes(batch_size=9), quiet=True, shard="data")
