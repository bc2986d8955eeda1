"""Sweeps of any function of a key and hyper-parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch import sweep


def walk(key, hyperparameters):
    steps = jax.random.normal(key, (hyperparameters["length"],)) * hyperparameters["scale"]
    return {"end": jnp.sum(steps), "first": steps[:2], "count": jnp.int32(hyperparameters["length"])}


AXES = sweep.grid(scale=[0.5, 2.0], length=[10, 20], seed=range(3))


def test_every_run_is_the_functions_own_value_alone_and_in_company():
    found = sweep.run(walk, AXES, quiet=True)
    assert found.sizes == {"run": 12, "first_0": 2} and found["count"].dtype == np.int32
    one = jax.jit(lambda seed, scale: walk(jax.random.key(seed), {"length": 20, "scale": scale}))
    chosen = (found.length == 20) & (found.scale == 2.0) & (found.seed == 1)
    np.testing.assert_allclose(found.end.values[chosen], one(1, 2.0)["end"], rtol=1e-6)
    np.testing.assert_allclose(found["first"].values[chosen][0], one(1, 2.0)["first"], rtol=1e-6)
    alone = sweep.run(walk, sweep.grid(scale=2.0, length=20, seed=1), quiet=True)
    np.testing.assert_array_equal(alone.end, found.end.values[chosen])


def test_a_sweep_resumes_and_its_slices_join(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    whole = sweep.run(walk, AXES, "~/whole", quiet=True)
    again = sweep.run(walk, AXES, tmp_path / "whole", quiet=True)
    np.testing.assert_array_equal(whole.end, again.end)
    for number in (2, 1):
        sweep.run(walk, AXES, tmp_path / str(number), slice=f"{number}/2", quiet=True)
    merged = sweep.merge(["~/2", tmp_path / "1"], "~/both")
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "1", "2", "both"}
    for name in (*whole.data_vars, *whole.coords):
        np.testing.assert_array_equal(merged[name].values, whole[name].values)
    with pytest.raises(ValueError, match=r"axes\.scale"):
        sweep.run(walk, AXES | {"scale": [3.0]}, tmp_path / "whole", quiet=True)


def test_runs_in_a_list_are_appended(tmp_path):
    runs = [{"scale": 0.5, "length": 10, "seed": seed} for seed in range(3)]
    both = [sweep.run(walk, part, tmp_path, quiet=True).end.values for part in (runs[:2], runs[2:])]
    assert sweep.read(tmp_path).sizes["run"] == 3
    found = sweep.run(walk, runs, tmp_path, quiet=True)
    np.testing.assert_array_equal(found.end, np.concatenate(both))
    with pytest.raises(ValueError, match="other settings"):
        sweep.run(lambda key, hyperparameters: {"path": jnp.ones(3)}, runs, tmp_path, quiet=True)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"prune": "nonsense"}, "prune=nonsense is not one of"),
        ({"layout": "bogus"}, "layout=bogus is not one of"),
        ({"shard": "model"}, "shard=model is not one of"),
        ({"prune": "halving"}, "prune=halving: takes trainings, and walk is a function"),
        ({"source": {"sampler": "tpe"}}, "source=.*: takes trainings, and walk is a function"),
    ],
)
def test_options_of_trainings_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        sweep.run(walk, AXES, **option, quiet=True)


def test_what_a_function_must_give():
    with pytest.raises(ValueError, match="returns float: takes a dict"):
        sweep.run(lambda key, hyperparameters: 1.0, {"scale": [1.0]}, quiet=True)
    with pytest.raises(ValueError, match=r"path has shape \(2,\) and, with length=3, shape \(3,\)"):
        sweep.run(
            lambda key, hyperparameters: {"path": jnp.ones(hyperparameters["length"])},
            {"length": [2, 3]},
            quiet=True,
        )
