"""The quotient update against the formulas that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpresearch import optim

SCOPES = ("element", "layer", "global")


def steps(optimizer, cost, w, count):
    """Parameters after each step, from plain Python."""
    state, path = optimizer.init(w), [w]
    slope = jax.value_and_grad(cost)
    for _ in range(count):
        value, g = slope(w)
        updates, state = optimizer.update(g, state, w, value=value)
        w = optax.apply_updates(w, updates)
        path.append(w)
    return path


@pytest.mark.parametrize("scope", SCOPES)
def test_on_a_parabola_the_parameter_halves_at_every_step(float64, scope):
    path = steps(optim.quotient_update(scope=scope), lambda w: w**2, jnp.float64(3.0), 6)
    assert [float(w) for w in path] == [3.0 / 2**n for n in range(7)]


@pytest.mark.parametrize("cost", [lambda w: w**3, lambda w: jnp.exp(w) - 2, lambda w: (w - 1) ** 2 * (w + 2)])
def test_in_one_dimension_it_is_newtons_root_finding(float64, cost):
    w = jnp.float64(1.7)
    for found in steps(optim.quotient_update(), cost, w, 4)[1:]:
        w = w - cost(w) / jax.grad(cost)(w)
        assert float(found) == pytest.approx(float(w), rel=1e-12)


def test_the_scopes_share_norms_as_they_say(float64):
    rng = np.random.default_rng(0)
    grads = {
        "a": {"kernel": rng.normal(size=(2, 3)), "bias": rng.normal(size=3)},
        "b": {"kernel": rng.normal(size=(3, 1))},
    }
    layer = {k: sum((leaf**2).sum() for leaf in v.values()) for k, v in grads.items()}
    for scope in SCOPES:
        quotient = optim.quotient_update(0.5, scope=scope, damping=0.1)
        updates, _ = quotient.update(grads, quotient.init(grads), value=2.0)
        for name, leaves in grads.items():
            for leaf, g in leaves.items():
                norm = {"element": g**2, "layer": layer[name], "global": sum(layer.values())}[scope]
                np.testing.assert_allclose(updates[name][leaf], -0.5 * 2 * g / (norm + 0.1), rtol=1e-12)


def test_the_global_step_is_the_shortest_to_the_tangents_zero(float64):
    g, cost = jnp.array([3.0, -4.0]), 5.0
    quotient = optim.quotient_update(scope="global")
    (step, _) = quotient.update(g, quotient.init(g), value=cost)
    assert float(cost + g @ step) == pytest.approx(0)
    assert float(jnp.linalg.norm(step)) == pytest.approx(cost / 5)
    polyak = optax.polyak_sgd(max_learning_rate=1e9)
    theirs, _ = polyak.update(g, polyak.init(g), value=cost)
    np.testing.assert_allclose(step, theirs, rtol=1e-12)


def test_where_the_gradient_is_zero_nothing_moves():
    g = jnp.array([0.0, 2.0])
    quotient = optim.quotient_update()
    assert quotient.update(g, quotient.init(g), value=1.0)[0].tolist() == [0.0, -0.5]


def test_it_diverges_where_the_cost_has_no_zero_and_damping_bounds_the_step(float64):
    def cost(w):
        return w**2 + 1

    path = steps(optim.quotient_update(), cost, jnp.float64(0.01), 1)
    assert float(path[1]) == pytest.approx(0.01 - 1.0001 / 0.02)
    path = steps(optim.quotient_update(damping=1.0), cost, jnp.float64(0.01), 200)
    assert max(abs(float(w)) for w in path) < 2


def test_as_optimizers_of_a_sweep():
    for optimizer in (optim.quotient_element, optim.quotient_layer, optim.quotient_global):
        assert optim.hyperparameters(optimizer) == ("damping",)
        assert optim.hyperparameters(optimizer, required=True) == ()
        scope = optimizer.__name__.removeprefix("quotient_")
        g = {"w": jnp.array([1.0, 3.0])}
        ours, theirs = optimizer(0.3, 0.2), optim.quotient_update(0.3, scope=scope, damping=0.2)
        np.testing.assert_array_equal(
            ours.update(g, (), value=2.0)[0]["w"], theirs.update(g, (), value=2.0)[0]["w"]
        )


def test_an_unknown_scope_is_named():
    with pytest.raises(ValueError, match="element, layer, global"):
        optim.quotient_update(scope="everything")
