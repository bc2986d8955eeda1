"""The rules of rotary position embeddings."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule

if not hasattr(nnx, "RoPE"):
    pytest.skip("this Flax has no RoPE", allow_module_level=True)

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:'.value' access is now deprecated"),  # by Flax itself
]


def test_a_rotation_back(normal, assert_rules_right, ask_rule):
    cached, plain = nnx.RoPE(embedding_size=4, max_seq_len=6), nnx.RoPE(theta=100.0)
    problems = {
        "cached": (cached, (normal(0, 2, 5, 4),), [0]),
        "as it comes": (plain, (normal(0, 3, 6),), [0]),
    }
    assert assert_rules_right(problems) <= 1e-12
    y, back = ask_rule(plain, normal(0, 3, 6))
    _, x_bar = back(y)
    np.testing.assert_allclose(x_bar, normal(0, 3, 6), rtol=1e-12)  # there and back


def test_given_positions(normal, assert_engines_agree):
    """As a keyword they are an option; among the inputs they have a derivative, and the layer is opened."""
    model, x, positions = nnx.RoPE(theta=100.0), normal(0, 3, 4), jnp.array([0.0, 2.0, 5.0])
    rule, _ = chainrule.rule_for(model)
    y, residuals = rule.forward(model, x, input_positions=positions)
    np.testing.assert_allclose(y, model(x, positions), rtol=1e-14)
    _, x_bar = rule.backward(model, residuals, y, input_positions=positions)
    np.testing.assert_allclose(x_bar, x, rtol=1e-12)
    assert assert_engines_agree(model, optax.squared_error, (x, positions), normal(1, 3, 4)) <= 1e-12


def test_attention_with_rotated_queries_and_keys(random_model, normal, assert_engines_agree):
    """Opened, for a module is among its options."""
    rope = nnx.RoPE(embedding_size=4, max_seq_len=6)
    options = {"attention_fn": partial(nnx.dot_product_attention_with_rope, rope=rope), "decode": False}
    options |= {"dropout_rate": 0.1, "deterministic": True}  # without a rate Flax rounds float64 to float32
    model = random_model(lambda: nnx.MultiHeadAttention(2, 8, **options, rngs=nnx.Rngs(0)))
    assert_engines_agree(model, optax.squared_error, normal(1, 2, 5, 8), normal(2, 2, 5, 8))
