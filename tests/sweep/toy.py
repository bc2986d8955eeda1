"""A task small enough to be swept in a second."""

import numpy as np
import optax

from bpresearch import models, optim, sweep
from bpresearch.data import Dataset
from bpresearch.optim import schedules


def dataset(classes=3):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(90, 4)).astype(np.float32)
    rule = x @ generator.normal(size=(4, 3))
    y = rule.argmax(1).astype(np.int32) if classes else rule[:, :1].astype(np.float32)
    return Dataset(
        name="toy",
        x=x[:60],
        y=y[:60],
        x_test=x[60:],
        y_test=y[60:],
        classes=classes,
        description="",
    )


def experiment(**changes):
    settings = {
        "data": dataset(),
        "model": models.mlp,
        "model_options": {"widths": (8,)},
        "loss": optax.losses.softmax_cross_entropy_with_integer_labels,
        "steps": 25,
        "eval_every": 10,
    }
    return sweep.Experiment(**(settings | changes))


def axes(**changes):
    base = {
        "optimizer": [optim.sgd, optim.momentum],
        "schedule": [schedules.constant, schedules.cosine],
    }
    base |= {"lr": [0.1, 0.01], "momentum": 0.9, "batch_size": 10, "seed": range(2)}
    return sweep.grid(**(base | changes))
