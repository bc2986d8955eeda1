"""The rules of losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from bpresearch import autodiff, chainrule

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")

cross_entropy = optax.softmax_cross_entropy_with_integer_labels
REGRESSION = {"squared_error": optax.squared_error, "l2_loss": optax.l2_loss}


@pytest.fixture
def outputs():
    """A model that hands its input to the loss: its x_bar is the derivative of the loss."""
    return nnx.Sequential(nnx.identity)


def numpy_softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@settings(max_examples=15)
@given(
    batch=st.lists(st.integers(1, 3), max_size=3),
    classes=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_cross_entropy_is_softmax_minus_one_hot(batch, classes, seed, outputs, gradient_by_rules, normal):
    logits = 3 * normal(seed, *batch, classes)
    labels = jnp.asarray(np.random.default_rng(seed).integers(0, classes, batch))
    loss, _, z_bar = gradient_by_rules(outputs, cross_entropy, logits, labels)
    softmax, onehot = numpy_softmax(np.asarray(logits)), np.eye(classes)[np.asarray(labels)]
    np.testing.assert_allclose(z_bar, (softmax - onehot) / labels.size, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(loss, -np.mean(np.log((softmax * onehot).sum(-1))), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_cross_entropy_as_autodiff(batch, outputs, assert_engines_agree, normal):
    labels = jax.random.randint(jax.random.key(1), batch, 0, 5)
    assert assert_engines_agree(outputs, cross_entropy, normal(0, *batch, 5), labels) <= 1e-14


def test_labels_have_no_cotangent(normal):
    logits, labels = normal(0, 4, 3), jnp.array([0, 2, 1, 1])
    _, residuals = chainrule.forward(cross_entropy, logits, labels)
    _, (_, labels_bar) = chainrule.backward(cross_entropy, residuals, jnp.ones(4))
    assert labels_bar is None


@pytest.mark.parametrize("label_dtype", [jnp.int8, jnp.uint8, jnp.int32, jnp.int64])
def test_labels_of_any_integer_type(label_dtype, outputs, assert_engines_agree, normal):
    labels = jnp.array([0, 2, 1, 1], label_dtype)
    assert_engines_agree(outputs, cross_entropy, normal(0, 4, 3), labels)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_logits(dtype, outputs):
    """A certain and right answer has gradient zero, a certain and wrong one +1 and -1."""
    logits = jnp.array([[1e3, -1e3, 0], [1e3, -1e3, 0], [-1e3, 1e3, -1e3]], dtype)
    labels = jnp.array([0, 1, 1])
    for engine in (autodiff, chainrule):
        _, (_, z_bar) = engine.value_and_grad(outputs, cross_entropy, logits, labels, inputs=True)
        np.testing.assert_allclose(3 * z_bar.astype(float), [[0, 0, 0], [1, -1, 0], [0, 0, 0]], rtol=0.01)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [0.1, 1, 10, 50])
def test_cross_entropy_rounding(dtype, scale, outputs, assert_sound_in, normal):
    labels = jax.random.randint(jax.random.key(1), (32,), 0, 10)
    assert_sound_in(dtype, outputs, cross_entropy, scale * normal(0, 32, 10), labels)


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
def test_targets_have_the_opposite_cotangent(name, normal):
    x, y, y_bar = normal(0, 4), normal(1, 4), normal(2, 4)
    _, residuals = chainrule.forward(REGRESSION[name], x, y)
    _, (x_bar, target_bar) = chainrule.backward(REGRESSION[name], residuals, y_bar)
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


def test_finite_differences(outputs, assert_matches_finite_differences, normal):
    labels = jnp.array([0, 2, 1, 1])
    assert_matches_finite_differences(outputs, cross_entropy, normal(0, 4, 3), labels)
    for loss_fn in REGRESSION.values():
        assert_matches_finite_differences(outputs, loss_fn, normal(0, 4, 3), normal(1, 4, 3))


def test_torch(outputs, normal):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    z, t, labels = normal(0, 6, 4), normal(1, 6, 4), jnp.array([0, 3, 1, 2, 2, 0])
    for loss_fn, target, twin in [
        (cross_entropy, labels, functional.cross_entropy),
        (optax.squared_error, t, functional.mse_loss),
        (optax.l2_loss, t, lambda x, y: functional.mse_loss(x, y) / 2),
    ]:
        inputs = torch.tensor(np.asarray(z), requires_grad=True)
        twin(inputs, torch.tensor(np.asarray(target))).backward()
        _, (_, z_bar) = chainrule.value_and_grad(outputs, loss_fn, z, target, inputs=True)
        np.testing.assert_allclose(z_bar, inputs.grad.numpy(), rtol=1e-10, atol=1e-16)
