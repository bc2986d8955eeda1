"""A lost or damaged file of a store is noticed by all who read it, and named in one line."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import zarr

from bpresearch import sweep


def experiment(key, hyperparameters):
    return {
        "end": hyperparameters["scale"] * jnp.ones(()),
        "path": jnp.zeros(3),
        "text": jnp.float32(jnp.nan),
    }


AXES = sweep.grid(scale=[0.5, 1.0], kind=["a", "b"], seed=range(2))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "whole"
    sweep.run(experiment, AXES, path, quiet=True)
    return path


def files_of(workdir):
    root = workdir / "results.zarr"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_chunks_that_hold_nothing_are_written_too(workdir):
    """Zeros and NaN are what zarr would fill in."""
    assert {"path/c/0/0", "text/c/0", "kind/c/0", "finished/c/0"} <= set(files_of(workdir))


def test_every_file_that_is_lost_is_named_by_resuming_and_reading(workdir, tmp_path):
    for number, file in enumerate(files_of(workdir)):
        broken = tmp_path / str(number)
        shutil.copytree(workdir, broken)
        (broken / "results.zarr" / file).unlink()
        named = rf"--workdir={broken}: results.zarr cannot be read \(.*{file.removesuffix('/zarr.json')}"
        for reads in (sweep.read, lambda path: sweep.run(experiment, AXES, path, quiet=True)):
            with pytest.raises(ValueError, match=named if "/" in file else "cannot be read") as error:
                reads(broken)
            assert "\n" not in str(error.value)
        assert set(files_of(broken)) == set(files_of(workdir)) - {file}  # nothing is destroyed or made up


def test_a_lost_array_is_named(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "w")
    shutil.rmtree(tmp_path / "w" / "results.zarr" / "end")
    with pytest.raises(ValueError, match=r"end/zarr.json is missing"):
        sweep.read(tmp_path / "w")


def test_a_damaged_chunk_is_named(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "w")
    (tmp_path / "w" / "results.zarr" / "end/c/0").write_bytes(b"\0damaged")
    with pytest.raises(ValueError, match=r"--workdir=.*cannot be read \(end/c/0: "):
        sweep.read(tmp_path / "w")


def test_slices_that_lack_a_chunk_are_not_merged(tmp_path):
    for number in (1, 2):
        sweep.run(experiment, AXES, tmp_path / str(number), slice=f"{number}/2", quiet=True)
    (tmp_path / "2" / "results.zarr" / "end" / "c" / "0").unlink()
    with pytest.raises(ValueError, match=rf"--workdir={tmp_path / '2'}: .*end/c/0 is missing"):
        sweep.merge([tmp_path / "1", tmp_path / "2"], tmp_path / "whole")
    assert not (tmp_path / "whole" / "results.zarr").exists()


def test_an_append_that_a_kill_cut_short_is_done_again(workdir, tmp_path, monkeypatch):
    """At each file that it writes; what is read meanwhile are the runs before."""
    put, left = zarr.storage._local._put, []

    def killed(path, value, exclusive=False):
        if not left or not left.pop():  # this event and all after it
            raise RuntimeError("killed")
        return put(path, value, exclusive)

    runs = [dict(zip(AXES, values, strict=True)) for values in ((0.5, "a", 0), (1.0, "b", 1), (0.5, "b", 0))]
    sweep.run(experiment, runs[:2], tmp_path / "0", quiet=True)
    expected = sweep.run(experiment, runs, tmp_path / "all", quiet=True)
    for events in range(60):
        path = tmp_path / f"{events + 1}"
        shutil.copytree(tmp_path / "0", path)
        left[:] = [False] + [True] * events
        with monkeypatch.context() as patch:
            patch.setattr(zarr.storage._local, "_put", killed)
            try:
                sweep.run(experiment, runs, path, quiet=True)
                break
            except RuntimeError:
                pass
        read = sweep.read(path)
        assert read.sizes["run"] in (2, 3) and read.finished[:2].all()
        resumed = sweep.run(experiment, runs, path, quiet=True)
        for name, values in expected.variables.items():
            np.testing.assert_array_equal(resumed[name].values, values.values, err_msg=str(name))
    assert events > 15
