"""The rule of connectionist temporal classification."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

pytestmark = pytest.mark.usefixtures("float64")  # Optax mixes dtypes

ctc, with_probs = optax.losses.ctc_loss, optax.losses.ctc_loss_with_forward_probs


@pytest.fixture
def batch(normal):
    """Five frames, four classes; repeated labels, padded labels and frames, also in the middle."""
    logits = 2 * normal(0, 4, 5, 4)
    paddings = jnp.array([[0.0] * 5, [0, 0, 0, 0, 1], [0, 0, 1, 0, 0], [0] * 5])
    labels = jnp.array([[1, 2, 3], [1, 1, 0], [2, 0, 0], [3, 3, 2]])
    label_paddings = jnp.array([[0.0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0]])
    return logits, paddings, labels, label_paddings


def test_every_option(batch, assert_rules_right):
    last_is_blank = (batch[0], batch[1], (batch[2] - 1) % 4, batch[3])
    problems = {
        "ctc": (ctc, batch, [0]),
        "ctc, another blank": (partial(ctc, blank_id=3), last_is_blank, [0]),
        "ctc, zero not quite zero": (partial(ctc, log_epsilon=-3.0), batch, [0]),
        "forward probabilities": (partial(with_probs, log_epsilon=-4.0), batch, [0]),
    }
    assert assert_rules_right(problems) <= 1e-12


def by_enumeration(logits, labels):
    """-log of the sum over all alignments, and its derivative: p - the posterior of each class."""
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    total, posterior = 0.0, np.zeros_like(logits)
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        collapsed = [k for k, _ in itertools.groupby(path) if k != 0]
        if collapsed == labels:
            p = np.exp(sum(log_p[t, k] for t, k in enumerate(path)))
            total += p
            posterior[np.arange(len(path)), path] += p
    return -np.log(total), np.exp(log_p) - posterior / total


def test_all_alignments(batch, ask_rule):
    logits, paddings, labels, label_paddings = batch

    @jax.jit
    def by_rule(*batch):
        values, back = ask_rule(ctc, *batch)
        return values, back(jnp.ones(4))[1]

    values, (z_bar, *none) = by_rule(*batch)
    for example in range(4):
        frames = np.asarray(paddings[example]) == 0
        wanted = [int(k) for k, pad in zip(labels[example], label_paddings[example], strict=True) if not pad]
        value, expected = by_enumeration(np.asarray(logits[example])[frames], wanted)
        np.testing.assert_allclose(values[example], value, rtol=1e-12)
        np.testing.assert_allclose(z_bar[example][frames], expected, rtol=1e-10, atol=1e-13)
        assert not np.any(z_bar[example][~frames])
    assert none[1] is None and not np.any(none[0]) and not np.any(none[2])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding(dtype, batch, assert_rules_sound_in):
    assert_rules_sound_in(dtype, {"ctc": (ctc, batch, [0])})


def test_a_model_trained_by_it(batch, random_model, assert_engines_agree):
    """The three targets are a tuple."""
    logits, *targets = batch
    model = random_model(lambda: nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    assert assert_engines_agree(model, ctc, logits, tuple(targets)) <= 1e-11


def test_torch(batch, ask_rule):
    torch = pytest.importorskip("torch")
    logits, paddings, labels, label_paddings = batch
    paddings = paddings.at[2].set(0)  # torch's frames are padded at the end only
    inputs = torch.tensor(np.asarray(logits), requires_grad=True)
    torch.nn.functional.ctc_loss(
        torch.log_softmax(inputs, -1).transpose(0, 1),
        torch.tensor(np.asarray(labels)),
        torch.tensor(np.asarray(5 - paddings.sum(1), int)),
        torch.tensor(np.asarray(3 - label_paddings.sum(1), int)),
        reduction="sum",
    ).backward()
    _, back = ask_rule(ctc, logits, paddings, labels, label_paddings)
    _, (z_bar, *_) = back(jnp.ones(4))
    np.testing.assert_allclose(z_bar, inputs.grad.numpy(), rtol=1e-10, atol=1e-12)
