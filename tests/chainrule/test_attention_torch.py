"""Attention against PyTorch's, on the same weights."""

import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule
from bpresearch.models.attention import CausalAttention, dot_product_attention

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


@pytest.mark.parametrize("causal", [False, True])
def test_over_itself(causal, random_model, normal):
    kind = CausalAttention if causal else nnx.MultiHeadAttention
    model = random_model(
        lambda: kind(HEADS, FEATURES, attention_fn=dot_product_attention, decode=False, rngs=nnx.Rngs(0))
    )
    x, y = normal(1, 3, 5, FEATURES), normal(2, 3, 5, FEATURES)
    _, (grads, x_bar) = chainrule.value_and_grad(model, optax.squared_error, x, y, inputs=True)

    theirs = torch.nn.MultiheadAttention(FEATURES, HEADS, batch_first=True).double()
    parameters = theirs.in_proj_weight, theirs.in_proj_bias, theirs.out_proj.weight, theirs.out_proj.bias
    with torch.no_grad():
        for parameter, value in zip(parameters, matrices(nnx.to_pure_dict(nnx.state(model))), strict=True):
            parameter.copy_(torch.tensor(value))
    their_x = torch.tensor(np.array(x), requires_grad=True)
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), diagonal=1) if causal else None
    outputs, _ = theirs(their_x, their_x, their_x, attn_mask=mask, need_weights=False)
    torch.mean((outputs - torch.tensor(np.array(y))) ** 2).backward()

    expected = [parameter.grad.numpy() for parameter in parameters] + [their_x.grad.numpy()]
    for right, found in zip(expected, [*matrices(grads), np.asarray(x_bar)], strict=True):
        assert np.abs(found - right).max() <= 1e-10 * np.abs(right).max()
