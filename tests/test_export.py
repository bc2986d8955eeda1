"""scripts/export.py: what it writes, read back by others' readers."""

import struct

import jax
import numpy as np
import optax
import pandas as pd
import pytest

from bpresearch import diagnostics, models, optim, sweep
from bpresearch.data import Dataset
from bpresearch.optim import schedules


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(20, 2)).astype(np.float32), generator.integers(0, 2, 20).astype(np.int32)
    data = Dataset(name="toy", x=x, y=y, x_test=x, y_test=y, classes=2, description="")
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    measured = (diagnostics.gradient_norms,)
    task = sweep.Experiment(data, models.linear, loss, steps=5, eval_every=2, diagnostics=measured)
    axes = sweep.grid(optimizer=[optim.sgd, optim.momentum], schedule=schedules.cosine, lr=[0.1, 1e38])
    axes |= sweep.grid(momentum=0.9, batch_size=5, seed=0)
    sweep.run(task, axes, folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def results(workdir):
    return sweep.read(workdir)


@pytest.fixture
def export(run_commands, tmp_path):
    """`export(*flags)`."""
    return lambda *flags: run_commands(tmp_path, ("scripts/export.py", *flags))[0]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_hold_every_run_step_and_evaluation(tmp_path, export, workdir, results, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    found = export(f"--workdir={workdir}", f"--format={kind}", f"--out={tmp_path}")
    assert (found.returncode, found.stderr) == (0, "")
    read = pd.read_csv if kind == "csv" else pd.read_parquet
    runs, steps, evaluations = (
        read(tmp_path / f"{name}.{kind}") for name in ("runs", "steps", "evaluations")
    )
    assert runs.run.tolist() == [0, 1, 2, 3]
    assert runs.optimizer.tolist() == results.optimizer.values.tolist()
    np.testing.assert_array_equal(runs.momentum, results.momentum)
    np.testing.assert_array_equal(runs.diverged_at, results.diverged_at)
    np.testing.assert_allclose(runs.test_accuracy, results.test_accuracy[:, -1], rtol=1e-6)
    assert len(steps) == 4 * 5 and len(evaluations) == 4 * 4
    np.testing.assert_allclose(
        steps.pivot(index="run", columns="step", values="train_loss"), results.train_loss, rtol=1e-6
    )
    layer = evaluations.pivot(index="run", columns="step", values="gradient_norm/layers.1.bias")
    np.testing.assert_allclose(layer, results.gradient_norm.sel(layer="layers.1.bias"), rtol=1e-6)
    assert layer.columns.tolist() == [0, 2, 4, 5]


def events(path):
    """The events of a file of TensorFlow records: length, its checksum, data, its checksum."""
    from google_crc32c import value as crc32c
    from tensorboardX.proto.event_pb2 import Event

    def masked(data):
        crc = crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    text, place = path.read_bytes(), 0
    while place < len(text):
        (length,) = struct.unpack_from("<Q", text, place)
        data = text[place + 12 : place + 12 + length]
        assert struct.unpack_from("<I", text, place + 8)[0] == masked(text[place : place + 8])
        assert struct.unpack_from("<I", text, place + 12 + length)[0] == masked(data)
        yield Event.FromString(data)
        place += 16 + length


def test_event_files_hold_each_runs_curves_and_hyperparameters(tmp_path, export, workdir, results):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    for _ in range(2):  # the second time replaces what the first has written
        found = export(f"--workdir={workdir}", "--format=tensorboard", f"--out={tmp_path}", "--points=3")
        assert (found.returncode, found.stderr) == (0, "")
    folders = sorted((tmp_path / "tensorboard").iterdir())
    assert [folder.name for folder in folders] == [f"run_{run:05}" for run in range(4)]
    for run, folder in enumerate(folders):
        (file,) = folder.iterdir()
        scalars, settings = {}, {}
        for event in events(file):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "hparams":
                    data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                    for name, found in data.session_start_info.hparams.items():
                        settings[name] = found.string_value or found.number_value
                else:
                    scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
        assert settings["lr"] == results.lr.values[run]
        assert settings["optimizer"] == results.optimizer.values[run]
        assert ("momentum" in settings) == (settings["optimizer"] == "momentum")
        accuracy = results.test_accuracy.values[run]
        finite = np.isfinite(accuracy)
        expected = np.stack([results.eval_step.values, accuracy], 1)[finite]
        np.testing.assert_allclose(scalars["test_accuracy"], expected, rtol=1e-6)
        if finite.all():
            losses = results.train_loss.values[run]
            expected = [(2, losses[:2].mean()), (4, losses[2:4].mean()), (5, losses[4])]
            np.testing.assert_allclose(scalars["train_loss"], expected, rtol=1e-6)
            np.testing.assert_allclose(scalars["final/test_accuracy"], [(5, accuracy[-1])], rtol=1e-6)
            assert len(scalars["gradient_norm/layers.1.kernel"]) == 4
    assert (results.diverged_at.values > 0).any()


def test_slices_of_calls_are_joined_and_are_no_trainings_to_export_or_report(tmp_path, run_commands):
    for number, folder in enumerate(("whole", "elsewhere"), 1):
        path = tmp_path / folder / f"slice-{number}-of-2"
        sweep.run(lambda key, settings: {"end": jax.random.normal(key)}, {"seed": [0, 1, 2]}, path,
                  slice=f"{number}/2", quiet=True)  # fmt: skip
    merge = ("scripts/merge.py", "--workdir=whole,elsewhere/slice-2-of-2", "--out=both")
    merged, *refused = run_commands(
        tmp_path, merge, *((f"scripts/{name}.py", "--workdir=both") for name in ("export", "report"))
    )
    assert merged.stdout == "3 of 3 runs are finished, in both\n", merged.stderr
    for ended in refused:
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
        assert "--workdir=both: holds the results of a function, and no training" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=/nowhere"], "there is no results.zarr"),
        (["--workdir=x", "--format=xml"], "--format=xml is not one of tensorboard, parquet, csv"),
    ],
)
def test_bad_input_is_one_line(export, arguments, message):
    found = export(*arguments)
    assert found.returncode == 2 and message in found.stderr and found.stderr.count("\n") == 1
