"""Attention against PyTorch's, on the same weights."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule
from bpresearch.functional import as_inputs
from bpresearch.models.attention import CausalAttention, MaskedAttention, dot_product_attention

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("float64")

FEATURES, HEADS = 6, 2


def matrices(tree):
    """Weights and biases of query, key and value in one array each, then the output's, as in PyTorch."""
    parts = [tree[name] for name in ("query", "key", "value")]
    weight = np.concatenate([np.asarray(p["kernel"]).reshape(FEATURES, FEATURES).T for p in parts])
    bias = np.concatenate([np.asarray(p["bias"]).ravel() for p in parts])
    out = np.asarray(tree["out"]["kernel"]).reshape(FEATURES, FEATURES).T
    return weight, bias, out, np.asarray(tree["out"]["bias"])


def attention(kind):
    options = {"attention_fn": dot_product_attention, "decode": False}
    return lambda: kind(HEADS, FEATURES, **options, rngs=nnx.Rngs(0))


def assert_as_torch(model, x, y, mask):
    """`x` are the inputs, one or two, and perhaps the mask; `mask` is PyTorch's, true where forbidden."""
    _, (grads, x_bar) = chainrule.value_and_grad(model, optax.squared_error, x, y, inputs=True)

    theirs = torch.nn.MultiheadAttention(FEATURES, HEADS, batch_first=True).double()
    parameters = theirs.in_proj_weight, theirs.in_proj_bias, theirs.out_proj.weight, theirs.out_proj.bias
    with torch.no_grad():
        for parameter, value in zip(parameters, matrices(nnx.to_pure_dict(nnx.state(model))), strict=True):
            parameter.copy_(torch.tensor(value))
    floating = [part for part in as_inputs(x) if part.dtype == float]
    inputs = [torch.tensor(np.array(part), requires_grad=True) for part in floating]
    outputs, _ = theirs(inputs[0], inputs[-1], inputs[-1], **mask, need_weights=False)
    torch.mean((outputs - torch.tensor(np.array(y))) ** 2).backward()

    expected = [parameter.grad.numpy() for parameter in (*parameters, *inputs)]
    found = [*matrices(grads), *as_inputs(x_bar)[: len(inputs)]]
    for right, ours in zip(expected, found, strict=True):
        assert np.abs(ours - right).max() <= 1e-10 * np.abs(right).max()


@pytest.mark.parametrize("causal", [False, True])
def test_over_itself(causal, random_model, normal):
    model = random_model(attention(CausalAttention if causal else nnx.MultiHeadAttention))
    mask = {"attn_mask": torch.triu(torch.ones(5, 5, dtype=torch.bool), diagonal=1)} if causal else {}
    assert_as_torch(model, normal(1, 3, 5, FEATURES), normal(2, 3, 5, FEATURES), mask)


def test_over_something_else_with_a_mask(random_model, normal):
    model = random_model(attention(MaskedAttention))
    allowed = np.arange(4) < np.array([4, 1, 3])[:, None]
    mask = jnp.asarray(np.broadcast_to(allowed[:, None, None], (3, 1, 5, 4)))
    x = normal(1, 3, 5, FEATURES), normal(3, 3, 4, FEATURES), mask
    assert_as_torch(model, x, normal(2, 3, 5, FEATURES), {"key_padding_mask": torch.tensor(~allowed)})
