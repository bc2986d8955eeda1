"""Results made up for the tests of analysis and report."""

import itertools

import numpy as np
import pytest
import xarray as xr


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
