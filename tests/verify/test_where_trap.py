"""A backward pass that is infinite where the forward pass is finite."""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bpresearch import chainrule, verify


def test_where_trap_names_the_layer():
    """Autodiff falls into the same trap, so only the values tell."""

    @chainrule.rule(safe_root)
    class SafeRootRule:
        def forward(layer, x):
            return safe_root(x), x

        def backward(layer, x, y_bar):
            return {}, jnp.where(x > 0, y_bar, 0) * 0.5 / jnp.sqrt(x)

    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), safe_root, nnx.Linear(3, 3, rngs=nnx.Rngs(1)))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 4)).astype(np.float32), rng.integers(0, 3, 5)
    report = verify.model(
        model,
        optax.losses.softmax_cross_entropy_with_integer_labels,
        x,
        y,
        dtype="float64",
        oracles=["rule", "behaviour"],
    )
    (row,) = (row for row in report.rows if row.passed is False)
    assert row.path == "finite"
    assert row.detail.endswith("from layers.1 on")


def safe_root(x):
    return jnp.where(x > 0, jnp.sqrt(x), 0.0)
