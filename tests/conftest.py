"""What the tests of several parts share: commands run, results made up, and layers side by side."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from flax import nnx

ROOT = Path(__file__).parents[1]

# Flags are parsed and JAX is started once in a process; what every script imports is imported once for all.
SERVER = """
import gc, json, os, runpy, sys
import absl.flags, matplotlib.pyplot, mnist1d, orbax.checkpoint, sklearn.datasets, zarr
import bpresearch.command
from bpresearch import autodiff, chainrule, data, models, optim, report, statistics, sweep, theory, verify

data.published_mnist1d()  # drawn once for all
gc.freeze()  # else each fork would copy what it looks through for garbage
for line in sys.stdin:
    folder, said, commands, environment = json.loads(line)
    for number, command in enumerate(commands):
        if os.fork() == 0:
            os.chdir(folder), os.environ.clear(), os.environ.update(environment)
            sys.argv, sys.path[0] = command, os.path.dirname(command[0])
            with open(f"{said}/{number}.out", "w") as out, open(f"{said}/{number}.err", "w") as err:
                os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2), os.dup2(os.open(os.devnull, 0), 0)
            runpy.run_path(command[0], run_name="__main__")
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


COMMANDS_HAVE = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "JAX_PLATFORMS": "cpu"}
"""Variables of the environment, beside those of the test itself."""


class Ended(NamedTuple):
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def command_server():
    """A process that has imported everything, and runs each command in a fork of itself."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | COMMANDS_HAVE,
    )  # fmt: skip
    with server:
        yield server
        server.stdin.close()


@pytest.fixture
def run_commands(command_server, tmp_path_factory):
    """`run_commands(folder, (script, *flags), ...)`: scripts one after another, as users type them there."""

    def run(folder: Path, *commands: tuple[str, ...]) -> list[Ended]:
        said = tmp_path_factory.mktemp("said")
        full = [[str(ROOT / script), *map(str, flags)] for script, *flags in commands]
        request = [str(folder), str(said), full, dict(os.environ | COMMANDS_HAVE)]
        print(json.dumps(request), file=command_server.stdin, flush=True)
        codes = [int(command_server.stdout.readline()) for _ in commands]
        texts = [
            [(said / f"{number}.{kind}").read_text() for kind in ("out", "err")]
            for number in range(len(commands))
        ]
        return [Ended(code, *text) for code, text in zip(codes, texts, strict=True)]

    return run


@pytest.fixture
def made_up():
    """`made_up(...)`: results whose accuracy is best at a known learning rate; seeds add known noise."""

    def make(
        optimizers=("sgd", "momentum"), schedules=("constant", "cosine"), rates=(0.01, 0.1, 1.0),
        seeds=3, best=0.1, accuracy=True, valid=True, diverged=lambda optimizer, rate, seed: False, steps=40,
    ):  # fmt: skip
        runs = list(itertools.product(optimizers, schedules, rates, range(seeds)))
        columns = list(zip(*runs, strict=True))
        gain = np.array([optimizers.index(o) for o in columns[0]])
        off = np.abs(np.log10(np.array(columns[2]) / best))
        score = 0.5 + 0.1 * gain - 0.1 * off + 0.01 * np.array(columns[3])
        marked = np.array([20 if diverged(o, r, s) else -1 for o, _, r, s in runs])
        step = np.arange(1, steps + 1)
        loss = (2 - score)[:, None] * np.exp(-step / steps)[None]
        loss[marked > 0, 19:] = np.nan
        final = np.where(marked > 0, np.nan, score)[:, None] * np.array([0.2, 1.0])
        variables = {"train_loss": (("run", "step"), loss), "diverged_at": ("run", marked)}
        for part in ("valid", "test") if valid else ("test",):
            variables[f"{part}_loss"] = (("run", "eval_step"), 2 - final)
            if accuracy:
                variables[f"{part}_accuracy"] = (("run", "eval_step"), final)
        text = lambda values: ("run", np.array(values, object))  # noqa: E731
        coordinates = {
            "optimizer": text(columns[0]), "schedule": text(columns[1]), "lr": ("run", np.array(columns[2])),
            "momentum": ("run", np.where(np.array(columns[0]) == "sgd", np.nan, 0.9)),
            "batch_size": ("run", np.full(len(runs), 10)), "seed": ("run", np.array(columns[3])),
            "model": text(["mlp"] * len(runs)), "dataset": text(["toy"] * len(runs)),
            "loss": text(["squared_error"] * len(runs)),
            "step": step, "eval_step": [0, steps], "run": np.arange(len(runs)),
        }  # fmt: skip
        return xr.Dataset(variables, coordinates)

    return make


@pytest.fixture
def strict_promotion():
    """Within the test, arrays of different dtypes never meet by accident."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def users_ranks():
    """Within the test, ranks are promoted, as in users' own code."""
    with jax.numpy_rank_promotion("allow"):
        yield


class SideBySide(nnx.Module):
    """Layers with one input, and all their outputs in one row of numbers."""

    def __init__(self, *layers):
        self.layers = nnx.List(layers)

    def __call__(self, *inputs):
        return jnp.concatenate([layer(*inputs).ravel() for layer in self.layers])


@pytest.fixture(scope="session")
def side_by_side():
    """`side_by_side(*layers)`: a model of many layers, for one compilation of all of them."""
    return SideBySide


@pytest.fixture(scope="session")
def equations():
    """`equations(jaxpr)`: the equations of a program, those of inner programs after the one they are in."""
    return _equations


def _equations(jaxpr):
    found = []
    for eqn in jaxpr.eqns:
        found.append(eqn)
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda value: hasattr(value, "eqns")):
            found += _equations(inner) if hasattr(inner, "eqns") else []
    return found
