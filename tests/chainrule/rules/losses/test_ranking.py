"""The rules of losses that compare items with each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule

pytestmark = pytest.mark.usefixtures("float64")  # Optax mixes dtypes in both losses

ranking, ntxent = optax.losses.ranking_softmax_loss, optax.losses.ntxent


@pytest.fixture
def problems(normal):
    z, t = normal(0, 4, 3), jnp.abs(normal(1, 4, 3))
    where = jnp.array([[True, False, True], [False, True, True], [True] * 3, [True, False, False]])
    weights = jnp.abs(normal(2, 4, 3))
    x, labels = normal(3, 5, 3), jnp.array([0, 1, 0, 1, 0])
    return {
        "mean": (ranking, (z, t), [0, 1]),
        "one list": (ranking, (z[0], t[0]), [0, 1]),
        "integers": (ranking, (z, jnp.array([[2, 0, 1]] * 4)), [0]),
        "where": (partial(ranking, where=where), (z, t), [0, 1]),
        "sum": (partial(ranking, where=where, weights=weights, reduce_fn=jnp.sum), (z, t), [0, 1]),
        "each": (partial(ranking, weights=weights, reduce_fn=None), (z, t), [0, 1]),
        "each, where": (partial(ranking, where=where, reduce_fn=None), (z, t), [0, 1]),
        "ntxent": (partial(ntxent, temperature=0.5), (x, labels), [0]),
        "ntxent, cold": (ntxent, (x, jnp.array([0, 1, 0, 2, 1])), [0]),
    }


def test_every_option(problems, assert_rules_right):
    assert assert_rules_right(problems) <= 1e-11


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding(dtype, problems, assert_rules_sound_in):
    assert_rules_sound_in(dtype, {name: problems[name] for name in ("mean", "each, where", "ntxent")})


@pytest.mark.parametrize("reduce_fn", [jnp.mean, jnp.sum, None])
def test_a_list_without_items_counts_for_nothing(reduce_fn, normal, ask_rule):
    z, t = normal(0, 2, 3), jnp.abs(normal(1, 2, 3))
    where = jnp.array([[False] * 3, [True] * 3])
    loss_fn = partial(ranking, where=where, reduce_fn=reduce_fn)

    def by_rule(z):
        values, back = ask_rule(loss_fn, z, t)
        return back(jnp.ones_like(values))[1][0]

    alone = jax.grad(lambda z: ranking(z, t[1]))(z[1])
    np.testing.assert_allclose(jax.jit(by_rule)(z), [np.zeros(3), alone], rtol=1e-12)


def test_another_reduction_goes_by_primitives(normal, assert_engines_agree):
    loss_fn = partial(ranking, reduce_fn=jnp.max)
    z, t = normal(0, 4, 3), jnp.abs(normal(1, 4, 3))
    with pytest.raises(chainrule.DoesNotApply):
        chainrule.rule_for(ranking)[0].forward(ranking, z, t, reduce_fn=jnp.max)
    assert assert_engines_agree(nnx.Sequential(nnx.identity), loss_fn, z, t) <= 1e-12


def test_two_pairs_by_hand(ask_rule):
    """Four unit vectors, orthogonal across pairs and equal within: q = e^(1/tau) / (e^(1/tau) + 2)."""
    x = 3 * jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    value, back = ask_rule(partial(ntxent, temperature=0.5), x, jnp.array([0, 0, 1, 1]))
    _, (x_bar, labels_bar) = back(jnp.ones(()))
    np.testing.assert_allclose(value, np.log(1 + 2 * np.exp(-2)), rtol=1e-13)
    # What pulls an embedding towards the other pair is at a right angle: two negatives, seen from both sides.
    pull = 2 * 2 * (1 / (np.exp(2) + 2)) / 4 / 0.5 / 3
    np.testing.assert_allclose(x_bar, pull * np.array([[0, 1], [0, 1], [1, 0], [1, 0]]), atol=1e-15)
    assert labels_bar is None


def test_without_a_positive_pair_there_is_no_gradient(normal, ask_rule):
    x, labels = normal(0, 3, 4), jnp.arange(3)
    value, back = ask_rule(ntxent, x, labels)
    assert jnp.isnan(value)
    _, (x_bar, _) = back(jnp.ones(()))
    np.testing.assert_array_equal(x_bar, jax.grad(ntxent)(x, labels))
    np.testing.assert_array_equal(x_bar, 0)


def test_embeddings_are_vectors(normal):
    with pytest.raises(chainrule.DoesNotApply, match=r"not \(3, 4, 2\)"):
        chainrule.rule_for(ntxent)[0].forward(ntxent, normal(0, 3, 4, 2), jnp.array([0, 0, 1]))


def test_torch(normal):
    torch = pytest.importorskip("torch")
    z, t = normal(0, 6, 4), nnx.softmax(normal(1, 6, 4))
    inputs = torch.tensor(np.asarray(z), requires_grad=True)
    torch.nn.functional.cross_entropy(inputs, torch.tensor(np.asarray(t))).backward()
    model = nnx.Sequential(nnx.identity)
    _, (_, z_bar) = chainrule.value_and_grad(model, ranking, z, t, inputs=True)
    np.testing.assert_allclose(z_bar, inputs.grad.numpy(), rtol=1e-10, atol=1e-14)

    # NT-Xent of two views of each example is a cross entropy over the similarities to all others.
    x = torch.tensor(np.asarray(normal(2, 6, 3)), requires_grad=True)
    unit = torch.nn.functional.normalize(x)
    others = (unit @ unit.T / 0.2).masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf)
    torch.nn.functional.cross_entropy(others, torch.tensor([1, 0, 3, 2, 5, 4])).backward()
    labels = jnp.array([0, 0, 1, 1, 2, 2])
    loss_fn = partial(ntxent, temperature=0.2)
    _, (_, x_bar) = chainrule.value_and_grad(
        model, loss_fn, jnp.asarray(x.detach().numpy()), labels, inputs=True
    )
    np.testing.assert_allclose(x_bar, x.grad.numpy(), rtol=1e-10, atol=1e-12)
