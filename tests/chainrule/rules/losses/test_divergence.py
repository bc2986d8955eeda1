"""The rules of Kullback-Leibler divergences."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")

kl, by_logs = optax.losses.kl_divergence, optax.losses.kl_divergence_with_log_targets
generalized = optax.losses.generalized_kl_divergence


@pytest.fixture
def problems(normal):
    z, u = nnx.log_softmax(normal(0, 4, 3)), nnx.log_softmax(normal(1, 4, 3))
    t = jnp.exp(u)
    where = jnp.array([[True, False, True], [False, True, True], [True] * 3, [False] * 3])
    both = [0, 1]
    return {
        "kl": (kl, (z, t), both),
        "kl, first axis": (partial(kl, axis=0), (z, t), both),
        "kl, all axes": (partial(kl, axis=None), (z, t), both),
        "kl, where": (partial(kl, where=where), (z, t), both),
        "kl, one target": (kl, (z, t[:1]), both),
        "by logs": (by_logs, (z, u), both),
        "by logs, where": (partial(by_logs, axis=(0, 1), where=where), (z, u), both),
        "generalized": (generalized, (z, 2 * t), both),
        "generalized, where": (partial(generalized, axis=0, where=where), (z, t), both),
    }


def test_every_option(problems, assert_rules_right):
    assert assert_rules_right(problems) <= 1e-12


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding(dtype, problems, assert_rules_sound_in):
    assert_rules_sound_in(dtype, {name: problems[name] for name in ("kl", "by logs", "generalized")})


def test_the_deprecated_name_has_the_same_rule(normal, ask_rule):
    z, t = normal(0, 4, 3), jnp.abs(normal(1, 4, 3))
    bars = []
    for loss_fn in (generalized, optax.losses.convex_kl_divergence):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            _, back = ask_rule(loss_fn, z, t)
        bars.append(back(jnp.ones(4))[1])
    jax.tree.map(np.testing.assert_array_equal, *bars)


def test_targets_of_zero(ask_rule):
    """0 log 0 is 0, and so is what it adds to the derivative by the targets; by predictions all is smooth."""
    z, t = jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([[0.0, 1.0]])
    for loss_fn, z_expected, t_expected in [
        (kl, [0, -1], [np.log(2), 1 + np.log(2)]),
        (generalized, [0.5, -0.5], [np.log(2) - 1, np.log(2)]),
    ]:
        values, back = ask_rule(loss_fn, z, t)
        _, (z_bar, t_bar) = back(jnp.ones(1))
        np.testing.assert_allclose(values, np.log(2), rtol=1e-14)
        np.testing.assert_allclose(z_bar[0], z_expected, atol=1e-15)
        np.testing.assert_allclose(t_bar[0], t_expected, rtol=1e-14)


def test_torch(normal):
    torch = pytest.importorskip("torch")
    divergence = partial(torch.nn.functional.kl_div, reduction="batchmean")
    z, t = nnx.log_softmax(normal(0, 6, 4)), nnx.softmax(normal(1, 6, 4))
    for loss_fn, target, twin in [
        (kl, t, divergence),
        (by_logs, jnp.log(t), partial(divergence, log_target=True)),
        (generalized, t, lambda z, t: divergence(z, t) + torch.mean(torch.sum(torch.exp(z) - t, 1))),
    ]:
        inputs = torch.tensor(np.asarray(z), requires_grad=True)
        twin(inputs, torch.tensor(np.asarray(target))).backward()
        model = nnx.Sequential(nnx.identity)
        _, (_, z_bar) = chainrule.value_and_grad(model, loss_fn, z, target, inputs=True)
        np.testing.assert_allclose(z_bar, inputs.grad.numpy(), rtol=1e-10, atol=1e-14)
