"""Recurrences against PyTorch's, on the same weights."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("float64")

INPUTS, HIDDEN = 3, 2


def kernels(cell):
    """PyTorch's stacked matrices (W_i, W_h, b) of a cell: rows are gates, in its order."""
    if isinstance(cell, nnx.LSTMCell):
        inputs = [layer.kernel[...] for layer in (cell.ii, cell.if_, cell.ig, cell.io)]
        hidden = [layer.kernel[...] for layer in (cell.hi, cell.hf, cell.hg, cell.ho)]
        bias = [layer.bias[...] for layer in (cell.hi, cell.hf, cell.hg, cell.ho)]
        return [jnp.concatenate(parts, axis=-1).T for parts in (inputs, hidden, bias)]
    bias = cell.dense_h.bias if cell.dense_i.bias is None else cell.dense_i.bias
    return [cell.dense_i.kernel[...].T, cell.dense_h.kernel[...].T, bias[...]]


def gradients(grads):
    """The same of a cell's gradients."""
    if "ii" in grads:
        inputs = [grads[name]["kernel"] for name in ("ii", "if_", "ig", "io")]
        hidden = [grads[name]["kernel"] for name in ("hi", "hf", "hg", "ho")]
        bias = [grads[name]["bias"] for name in ("hi", "hf", "hg", "ho")]
        return [jnp.concatenate(parts, axis=-1).T for parts in (inputs, hidden, bias)]
    bias = grads["dense_i"].get("bias", grads["dense_h"].get("bias"))
    return [grads["dense_i"]["kernel"].T, grads["dense_h"]["kernel"].T, bias]


@pytest.mark.parametrize(
    ("cell_type", "torch_type"),
    [
        (nnx.SimpleCell, torch.nn.RNN),
        (nnx.GRUCell, torch.nn.GRU),
        (nnx.LSTMCell, torch.nn.LSTM),
        (nnx.OptimizedLSTMCell, torch.nn.LSTM),
    ],
)
def test_both_directions(cell_type, torch_type, random_model, normal):
    def build():
        cells = (cell_type(INPUTS, HIDDEN, rngs=nnx.Rngs(0)) for _ in range(2))
        return nnx.Bidirectional(*map(nnx.RNN, cells))

    model = random_model(build)
    x, y = normal(1, 4, 5, INPUTS), normal(2, 4, 5, 2 * HIDDEN)
    _, (grads, x_bar) = chainrule.value_and_grad(model, optax.squared_error, x, y, inputs=True)

    theirs = torch_type(INPUTS, HIDDEN, batch_first=True, bidirectional=True).double()
    names = {"forward_rnn": "_l0", "backward_rnn": "_l0_reverse"}
    with torch.no_grad():
        for name, end in names.items():
            for kind, value in zip(
                ("weight_ih", "weight_hh", "bias_ih"), kernels(getattr(model, name).cell), strict=True
            ):
                getattr(theirs, kind + end).copy_(torch.tensor(np.array(value)))
            getattr(theirs, "bias_hh" + end).zero_()
    their_x = torch.tensor(np.array(x), requires_grad=True)
    torch.mean((theirs(their_x)[0] - torch.tensor(np.array(y))) ** 2).backward()

    for name, end in names.items():
        for kind, found in zip(
            ("weight_ih", "weight_hh", "bias_ih"), gradients(grads[name]["cell"]), strict=True
        ):
            expected = getattr(theirs, kind + end).grad.numpy()
            assert np.abs(found - expected).max() <= 1e-10 * np.abs(expected).max(), (name, kind)
    expected = their_x.grad.numpy()
    assert np.abs(x_bar - expected).max() <= 1e-10 * np.abs(expected).max()
