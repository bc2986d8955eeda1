"""The rules of regression losses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")

REGRESSION = {"squared_error": optax.squared_error, "l2_loss": optax.l2_loss}
similarity, distance = optax.losses.cosine_similarity, optax.losses.cosine_distance


@pytest.fixture
def outputs():
    """A model that hands its input to the loss: its x_bar is the derivative of the loss."""
    return nnx.Sequential(nnx.identity)


@pytest.mark.parametrize(("name", "factor"), [("squared_error", 2), ("l2_loss", 1)])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3, 4)])
def test_regression_losses(name, factor, shape, outputs, assert_engines_agree, normal):
    loss_fn, x, y = REGRESSION[name], normal(0, *shape), normal(1, *shape)
    loss, (_, x_bar) = chainrule.value_and_grad(outputs, loss_fn, x, y, inputs=True)
    difference = np.asarray(x) - np.asarray(y)
    np.testing.assert_allclose(loss, factor / 2 * np.mean(difference**2), rtol=1e-13)
    np.testing.assert_allclose(x_bar, factor * difference / x.size, rtol=1e-13)
    assert_engines_agree(outputs, loss_fn, x, y)


@pytest.mark.parametrize("name", REGRESSION)
def test_targets_have_the_opposite_cotangent(name, normal, ask_rule):
    x, y, y_bar = normal(0, 4), normal(1, 4), normal(2, 4)
    _, back = ask_rule(REGRESSION[name], x, y)
    _, (x_bar, target_bar) = back(y_bar)
    expected = jax.vjp(REGRESSION[name], x, y)[1](y_bar)
    np.testing.assert_allclose(x_bar, expected[0], rtol=1e-14)
    np.testing.assert_allclose(target_bar, expected[1], rtol=1e-14)


@pytest.mark.parametrize("name", REGRESSION)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_regression_rounding(name, dtype, outputs, assert_sound_in, normal):
    assert_sound_in(dtype, outputs, REGRESSION[name], normal(0, 64, 3), normal(1, 64, 3))


@pytest.mark.parametrize("name", REGRESSION)
def test_targets_of_another_precision(name, outputs, assert_sound_in, normal):
    """The cotangent of bfloat16 outputs is bfloat16 although the targets are float32."""
    x, y = normal(0, 64, 3, dtype=jnp.bfloat16), normal(1, 64, 3, dtype=jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        assert_sound_in(None, outputs, REGRESSION[name], x, y)


@pytest.fixture
def problems(normal):
    o, t = normal(0, 4, 3), normal(1, 4, 3)
    where = jnp.array([[True, False, True], [False, True, True], [True] * 3, [True, False, False]])
    both = [0, 1]
    return {
        "squared error": (optax.squared_error, (o, t), both),
        "squared error, no targets": (optax.squared_error, (o,), [0]),
        "l2": (optax.l2_loss, (o, t), both),
        "huber": (optax.huber_loss, (o, t), both),
        "huber, targets for all": (optax.huber_loss, (o, t[:1]), both),
        "huber, narrow": (partial(optax.huber_loss, delta=0.3), (o, t), both),
        "huber, no targets": (optax.huber_loss, (2 * o,), [0]),
        "log cosh": (optax.log_cosh, (3 * o, t), both),
        "similarity": (similarity, (o, t), both),
        "similarity, first axis": (partial(similarity, axis=0, where=where), (o, t), both),
        "similarity, all axes": (partial(similarity, axis=None), (o, t), both),
        "similarity, clipped": (partial(similarity, epsilon=2.5), (o, t), both),
        "similarity, one target": (similarity, (o, t[:1]), both),
        "distance": (distance, (o, t), both),
        "distance, where": (partial(distance, where=where, epsilon=1e-3), (o, t), both),
    }


def test_every_option(problems, assert_rules_right):
    assert assert_rules_right(problems) <= 1e-12


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding(dtype, problems, assert_rules_sound_in):
    names = "huber, narrow", "log cosh", "similarity", "distance, where"
    with jax.numpy_dtype_promotion("standard"):
        assert_rules_sound_in(dtype, {name: problems[name] for name in names})


def test_the_huber_loss_clips_the_error(outputs):
    """At the kinks of its second derivative and at 0, too, its slope is the clipped error."""
    x = jnp.array([-3.0, -0.5, -0.25, 0.0, 0.25, 0.5, 7.0])
    loss_fn = partial(optax.huber_loss, delta=0.5)
    _, (_, x_bar) = chainrule.value_and_grad(outputs, loss_fn, x, jnp.zeros(7), inputs=True)
    np.testing.assert_array_equal(7 * x_bar, [-0.5, -0.5, -0.25, 0, 0.25, 0.5, 0.5])


def test_log_cosh_of_large_errors(outputs):
    x = jnp.array([-800.0, 0.0, 800.0])
    loss, (_, x_bar) = chainrule.value_and_grad(outputs, optax.log_cosh, x, jnp.zeros(3), inputs=True)
    np.testing.assert_allclose(3 * loss, 2 * (800 - np.log(2)), rtol=1e-14)
    np.testing.assert_array_equal(3 * x_bar, [-1, 0, 1])


def test_a_vector_as_long_as_the_smallest_norm(ask_rule):
    """Half way between a norm that counts and one that does not: half, as in autodiff."""
    o, t = jnp.array([[2.0, 0.0]]), jnp.array([[3.0, 4.0]])
    loss_fn = partial(similarity, epsilon=4.0)
    _, back = ask_rule(loss_fn, o, t)
    _, (o_bar, _) = back(jnp.ones(1))
    np.testing.assert_allclose(o_bar, [[(0.6 - 0.6 / 2) / 2, 0.8 / 2]], rtol=1e-14)
    np.testing.assert_allclose(o_bar, jax.grad(lambda o: loss_fn(o, t)[0])(o), rtol=1e-14)


def test_a_loss_without_targets(outputs, normal, assert_engines_agree):
    for nothing in (None, ()):
        assert assert_engines_agree(outputs, optax.l2_loss, normal(0, 4, 3), nothing) <= 1e-12


def test_torch(outputs, normal):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    z, t = normal(0, 6, 4), normal(1, 6, 4)
    for loss_fn, twin in [
        (optax.squared_error, functional.mse_loss),
        (optax.l2_loss, lambda x, y: functional.mse_loss(x, y) / 2),
        (optax.huber_loss, functional.huber_loss),
        (partial(optax.huber_loss, delta=0.4), partial(functional.huber_loss, delta=0.4)),
        (optax.log_cosh, lambda x, y: torch.mean(torch.log(torch.cosh(x - y)))),
        (similarity, lambda x, y: torch.mean(functional.cosine_similarity(x, y, dim=1))),
        (distance, lambda x, y: functional.cosine_embedding_loss(x, y, torch.ones(6))),
    ]:
        inputs = torch.tensor(np.asarray(z), requires_grad=True)
        twin(inputs, torch.tensor(np.asarray(t))).backward()
        _, (_, z_bar) = chainrule.value_and_grad(outputs, loss_fn, z, t, inputs=True)
        np.testing.assert_allclose(z_bar, inputs.grad.numpy(), rtol=1e-10, atol=1e-11)
