"""The rules of Dice losses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")

dice, binary = optax.losses.dice_loss, optax.losses.binary_dice_loss
generalized = optax.losses.multiclass_generalized_dice_loss


@pytest.fixture
def problems(normal):
    z, t = normal(0, 2, 3, 2, 4), nnx.softmax(normal(1, 2, 3, 2, 4))
    one, one_t = z[..., :1], t[..., :1]
    flat, flat_t = normal(2, 3, 5), nnx.sigmoid(normal(3, 3, 5))
    hard = jnp.asarray(np.eye(4)[np.random.default_rng(0).integers(0, 4, (2, 3, 2))])
    both = [0, 1]
    weights = jnp.array([[0.5, 2.0, 1.0, 0.1]])
    return {
        "dice": (dice, (z, t), both),
        "dice, weights of errors": (partial(dice, alpha=0.3, beta=0.9, smooth=0.2), (z, t), both),
        "dice, sum": (partial(dice, reduction="sum"), (z, t), both),
        "dice, each class": (partial(dice, reduction="none"), (z, t), both),
        "dice, one axis": (partial(dice, axis=1, reduction="none"), (z, t), both),
        "dice, all pixels": (partial(dice, axis=(0, 1, 2), class_weights=weights[0]), (z, t), both),
        "dice, no background": (partial(dice, ignore_background=True, reduction="none"), (z, t), both),
        "dice, mean without background": (partial(dice, ignore_background=True), (z, hard), both),
        "dice, one class": (partial(dice, ignore_background=True), (one, one_t), both),
        "dice, outputs without classes": (dice, (one[..., 0], one_t), both),
        "dice, targets without classes": (dice, (one, one_t[..., 0]), both),
        "dice, no pixels": (dice, (flat, flat_t), both),
        "binary": (binary, (flat, flat_t), both),
        "binary, with classes": (partial(binary, smooth=0.5), (one, one_t), both),
        "binary, images": (binary, (z, t), both),
        "binary, one without": (binary, (flat[..., None], flat_t), both),
        "generalized": (generalized, (z, t), both),
        "generalized, smooth": (partial(generalized, smooth=0.1, ignore_background=True), (z, t), both),
        "generalized, hard": (generalized, (z, hard), [0]),
    }


def test_every_option(problems, assert_rules_right):
    with jax.numpy_rank_promotion("allow"):  # Optax's generalized loss
        assert assert_rules_right(problems) <= 1e-12


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding(dtype, problems, assert_rules_sound_in):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        assert_rules_sound_in(dtype, {name: problems[name] for name in ("dice", "binary", "generalized")})


def test_probabilities(normal, ask_rule):
    """Optax looks at their sum, so this works outside `jit` only, as with autodiff."""
    p, t = nnx.softmax(normal(0, 2, 3, 4)), nnx.softmax(normal(1, 2, 3, 4))
    loss_fn = partial(dice, apply_softmax=False)
    values, back = ask_rule(loss_fn, p, t)
    _, (p_bar, _) = back(jnp.ones_like(values))
    np.testing.assert_allclose(p_bar, jax.grad(lambda p: jnp.sum(loss_fn(p, t)))(p), rtol=1e-11)


def test_torch(normal):
    torch = pytest.importorskip("torch")
    z, t = normal(0, 2, 5, 3), nnx.softmax(normal(1, 2, 5, 3))
    inputs, targets = torch.tensor(np.asarray(z), requires_grad=True), torch.tensor(np.asarray(t))
    p = torch.softmax(inputs, -1)
    coefficient = (2 * (p * targets).sum(1) + 2) / (p.sum(1) + targets.sum(1) + 2)
    torch.mean(1 - coefficient).backward()
    model = nnx.Sequential(nnx.identity)
    _, (_, z_bar) = chainrule.value_and_grad(model, dice, z, t, inputs=True)
    np.testing.assert_allclose(z_bar, inputs.grad.numpy(), rtol=1e-10, atol=1e-14)
