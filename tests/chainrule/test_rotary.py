"""The rules of rotary position embeddings."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpresearch import chainrule

if not hasattr(nnx, "RoPE"):
    pytest.skip("this Flax has no RoPE", allow_module_level=True)

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:'.value' access is now deprecated"),  # by Flax itself
]


def test_a_rotation_back(normal, assert_rules_right):
    cached, plain = nnx.RoPE(embedding_size=4, max_seq_len=6), nnx.RoPE(theta=100.0)
    positions = jnp.array([0.0, 2.0, 5.0])
    problems = {
        "cached": (cached, (normal(0, 2, 5, 4),), [0]),
        "as it comes": (plain, (normal(0, 3, 6),), [0]),
        "given positions": (plain, (normal(0, 3, 4), positions), [0]),
    }
    assert assert_rules_right(problems) <= 1e-12
    y, residuals = chainrule.forward(plain, normal(0, 3, 6))
    _, x_bar = chainrule.backward(plain, residuals, y)
    np.testing.assert_allclose(x_bar, normal(0, 3, 6), rtol=1e-12)  # there and back


def test_attention_with_rotated_queries_and_keys(normal, assert_rules_right):
    rope = nnx.RoPE(embedding_size=4, max_seq_len=6)
    attention = partial(nnx.dot_product_attention_with_rope, rope=rope, dropout_rate=0.1, deterministic=True)
    inputs = normal(0, 2, 5, 3, 4), normal(1, 2, 5, 3, 4), normal(2, 2, 5, 3, 2)
    assert assert_rules_right({"attention": (attention, inputs, [0, 1, 2])}) <= 1e-11
