"""What bpresearch's speed is measured against trains the same runs as bpresearch does."""

import ast
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpresearch import autodiff, models, optim, train

FILE = Path(__file__).parents[1] / "scripts" / "hundred_lines.py"
_specification = importlib.util.spec_from_file_location("hundred_lines", FILE)
hundred_lines = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(hundred_lines)

OURS = {
    "default": (models.mlp, {"widths": (100, 100)}),
    "mlp": (models.mlp, {"widths": (128, 128)}),
    "mnist1d.residual_mlp": (models.residual_mlp, {}),
    "mnist1d.cnn": (models.cnn, {"padding": 1}),
    "mnist1d.bidirectional_gru": (models.bidirectional_gru, {}),
}
STEPS, BATCH, RATES = 4, 8, (0.01, 0.1)


def runs(name):
    """Seeds, rates and orders of two runs, and the data."""
    generator = np.random.default_rng(0)
    shape = hundred_lines.MODELS[name][0]
    x = jnp.asarray(generator.normal(size=(30, *shape)), jnp.float32)
    y = jnp.asarray(generator.integers(0, 10, 30), jnp.int32)
    orders = generator.integers(0, 30, (len(RATES), STEPS, BATCH)).astype(np.int32)
    return jnp.arange(len(RATES)), jnp.asarray(RATES, jnp.float32), jnp.asarray(orders), x, y


@pytest.mark.parametrize("name", OURS)
def test_the_losses_are_those_of_our_training(name):
    seeds, rates, orders, x, y = runs(name)
    model, options = OURS[name]
    training = train.Training(
        lambda rngs: model(x.shape[1:], 10, **options, rngs=rngs),
        optax.losses.softmax_cross_entropy_with_integer_labels,
        autodiff.gradient,
        optim.momentum,
    )

    @jax.jit
    def ours(seed, rate, order):
        fixed = {"momentum": 0.9}
        table = {"learning_rate": jnp.full(STEPS, rate)}
        run = train.start(training, seed, fixed)
        return train.train(training, run, (x, y), order, table, fixed, 1, STEPS)[1]

    expected = [ours(*run) for run in zip(seeds, rates, orders, strict=True)]
    theirs = hundred_lines.trainer(name, "scan")(seeds, rates, orders, x, y)
    np.testing.assert_allclose(theirs, expected, rtol=1e-5)
    assert theirs[1, -1] != theirs[1, 0]


@pytest.mark.parametrize("form", ["vmap", "spread_vmap", "spread_scan"])
def test_every_form_gives_the_same_losses(form):
    found = runs("default")
    one_by_one = hundred_lines.trainer("default", "scan")(*found)
    np.testing.assert_allclose(hundred_lines.trainer("default", form)(*found), one_by_one, rtol=1e-5)


def test_it_imports_jax_flax_and_optax_alone():
    names = set()
    for node in ast.walk(ast.parse(FILE.read_text())):
        names |= {name.name for name in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
    assert {name.partition(".")[0] for name in names} == {"itertools", "collections", "jax", "flax", "optax"}
