"""The rules of recurrent cells."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")


def step_sum(carry, y):
    """Both outputs of a step in one array, each weighted differently."""
    parts = [y, *jax.tree.leaves(carry)]
    return sum(jnp.asarray(weight, part.dtype) * part for weight, part in enumerate(parts, start=1))


@pytest.fixture
def one_step(random_model, normal):
    """`one_step(cell_type, **options)`: a model of one step, its inputs (carry, x) and targets."""

    def one_step(cell_type, **options):
        model = random_model(lambda: nnx.Sequential(cell_type(3, 2, **options, rngs=nnx.Rngs(0)), step_sum))
        h, c, x = normal(1, 4, 2), normal(2, 4, 2), normal(3, 4, 3)
        carry = (c, h) if "LSTM" in cell_type.__name__ else h
        return model, (carry, x), normal(4, 4, 2)

    return one_step


CELLS = {
    "simple": partial(nnx.SimpleCell),
    "simple residual": partial(nnx.SimpleCell, residual=True),
    "simple softplus": partial(nnx.SimpleCell, activation_fn=nnx.softplus),
    "gru": partial(nnx.GRUCell),
    "gru activations": partial(nnx.GRUCell, gate_fn=nnx.softplus, activation_fn=nnx.silu),
    "lstm": partial(nnx.LSTMCell),
    "optimized lstm": partial(nnx.OptimizedLSTMCell),
    "lstm activations": partial(nnx.OptimizedLSTMCell, gate_fn=nnx.tanh, activation_fn=nnx.softplus),
}


@pytest.mark.parametrize("name", CELLS)
def test_one_step(name, one_step, assert_engines_agree, assert_matches_finite_differences):
    cell = CELLS[name]
    model, inputs, y = one_step(cell.func, **cell.keywords)
    assert assert_engines_agree(model, optax.squared_error, inputs, y) <= 1e-12
    if name in ("simple residual", "gru", "optimized lstm"):
        assert_matches_finite_differences(model, optax.squared_error, inputs, y)


def test_an_lstm_remembers_what_its_forget_gate_keeps(gradient_by_rules):
    """With the gates i and o shut and open and f half open, c' = c / 2 and y = c': c_bar = y_bar / 2."""
    options = {"activation_fn": nnx.identity, "param_dtype": jnp.float64}
    model = nnx.Sequential(nnx.OptimizedLSTMCell(1, 1, **options, rngs=nnx.Rngs(0)), step_sum)
    cell = model.layers[0]
    cell.dense_i.kernel[...] = jnp.zeros((1, 4))
    cell.dense_h.kernel[...] = jnp.zeros((1, 4))
    cell.dense_h.bias[...] = jnp.array([-800.0, 0.0, 0.0, 800.0])
    carry, x = (jnp.array([[3.0]]), jnp.array([[5.0]])), jnp.array([[7.0]])
    loss, _, ((c_bar, h_bar), x_bar) = gradient_by_rules(model, optax.l2_loss, (carry, x), jnp.array([[0.0]]))
    # The weights of y, c' and h' are 1, 2 and 3, so the output is 6 * 3 / 2 and c_bar is 9 * 6 / 2.
    np.testing.assert_allclose(loss, 9.0**2 / 2)
    np.testing.assert_allclose([c_bar, h_bar, x_bar], [[[27.0]], [[0.0]], [[0.0]]], atol=1e-12)
