"""The rules of cross entropies."""

from functools import partial

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


def test_labels_have_no_cotangent(normal, ask_rule):
    logits, labels = normal(0, 4, 3), jnp.array([0, 2, 1, 1])
    _, back = ask_rule(cross_entropy, logits, labels)
    _, (_, labels_bar) = back(jnp.ones(4))
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


def onehot(labels, classes):
    return jnp.asarray(np.eye(classes)[np.asarray(labels)])


@pytest.fixture
def problems(normal):
    """Every cross entropy with each of its options."""
    z, labels = normal(0, 4, 3), jnp.array([0, 2, 1, 1])
    hard = onehot(labels, 3)
    dense = jnp.abs(normal(1, 4, 3)) + 0.1  # does not sum to one
    wide, wide_dense = normal(2, 2, 3, 4), jnp.abs(normal(3, 2, 3, 4))
    some = jnp.array([[True, False, True], [False] * 3, [True] * 3, [False, True, False]])
    some_wide = jnp.asarray(np.random.default_rng(0).random((2, 3, 4)) < 0.7)
    t = jnp.asarray(np.random.default_rng(1).random((4, 3)))
    integer, dense_loss = cross_entropy, optax.softmax_cross_entropy
    poly, focal = optax.losses.poly_loss_cross_entropy, optax.losses.sigmoid_focal_loss
    smooth_labels, binary = optax.losses.smooth_labels, optax.losses.sigmoid_binary_cross_entropy
    return {
        "integer": (integer, (z, labels), [0]),
        "integer, first axis": (partial(integer, axis=0), (z, jnp.array([3, 0, 2])), [0]),
        "integer, middle axis": (partial(integer, axis=-2), (wide, jnp.array([[0, 2, 1, 1]] * 2)), [0]),
        "integer, two axes": (partial(integer, axis=(2, 0)), (wide, jnp.array([7, 0, 4])), [0]),
        "integer, where": (partial(integer, where=some.at[1, 0].set(True)), (z, labels), [0]),
        "integer, where examples": (partial(integer, where=jnp.array([True] * 4)), (z, labels), [0]),
        "integer, where, two axes": (
            partial(integer, axis=(0, 2), where=some_wide),
            (wide, jnp.array([5, 0, 7])),
            [0],
        ),
        "integer, counted from the end": (integer, (z, labels - 3), [0]),
        "dense": (dense_loss, (z, dense), [0, 1]),
        "dense, first axis": (partial(dense_loss, axis=0), (z, dense), [0, 1]),
        "dense, all axes": (partial(dense_loss, axis=None), (z, dense), [0, 1]),
        "dense, two axes": (partial(dense_loss, axis=(0, 2)), (wide, wide_dense), [0, 1]),
        "dense, where": (partial(dense_loss, axis=1, where=some_wide), (wide, wide_dense), [0, 1]),
        "dense, where examples": (partial(dense_loss, where=jnp.array([True] * 4)), (z, dense), [0, 1]),
        "dense, targets for all": (dense_loss, (z, dense[:1]), [0, 1]),
        "dense, outputs for all": (dense_loss, (z[:1], dense), [0, 1]),
        "smoothed": (dense_loss, (z, optax.losses.smooth_labels(hard, 0.2)), [0, 1]),
        "safe": (optax.losses.safe_softmax_cross_entropy, (z, dense), [0, 1]),
        "poly": (poly, (z, dense), [0, 1]),
        "poly, first axis": (partial(poly, epsilon=-1.0, axis=0), (z, hard), [0, 1]),
        "poly, where": (partial(poly, epsilon=0.5, where=some.at[1, 0].set(True)), (z, dense), [0, 1]),
        "poly, two axes": (partial(poly, axis=(1, 2), where=some_wide), (wide, wide_dense), [0, 1]),
        "binary": (binary, (z, t), [0, 1]),
        "binary, integers": (binary, (z, (t > 0.5).astype(jnp.int32)), [0]),
        "binary, targets for all": (binary, (z, t[:1]), [0, 1]),
        "focal": (focal, (z, t), [0, 1]),
        "focal, hard": (partial(focal, alpha=0.25), (z, (t > 0.5).astype(float)), [0]),
        "focal, integers": (partial(focal, alpha=0.7, gamma=1.0), (z, (t > 0.5).astype(jnp.int8)), [0]),
        "focal, weighted": (partial(focal, alpha=0.3, gamma=3.5), (z, t), [0, 1]),
        "focal, flat": (partial(focal, gamma=0.0), (z, t), [0, 1]),
        "focal, steep": (partial(focal, gamma=0.5), (3 * z, t), [0, 1]),
        "smooth labels": (partial(smooth_labels, alpha=0.2), (hard,), [0]),
        "smooth labels, where": (
            partial(optax.losses.smooth_labels, alpha=0.2, axis=0, where=some),
            (hard,),
            [0],
        ),
    }


MIXED = {"smooth labels, where"}  # Optax itself mixes dtypes


def test_every_option(problems, assert_rules_right):
    assert (
        assert_rules_right({name: problem for name, problem in problems.items() if name not in MIXED})
        <= 1e-12
    )


def test_options_with_which_optax_mixes_dtypes(problems, assert_rules_right):
    with jax.numpy_dtype_promotion("standard"):
        assert assert_rules_right({name: problems[name] for name in MIXED}) <= 1e-12


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding(dtype, problems, assert_rules_sound_in):
    names = "integer, where", "dense", "safe", "poly", "binary", "focal, weighted", "focal, steep"
    with jax.numpy_dtype_promotion("standard"):
        assert_rules_sound_in(dtype, {name: problems[name] for name in names})


def test_an_example_without_any_class_has_no_gradient(normal, ask_rule):
    """Autodiff gives NaN there; the loss is the constant 0."""
    z, nothing = normal(0, 2, 3), jnp.array([[False] * 3, [True] * 3])
    for loss_fn, targets in [
        (cross_entropy, jnp.array([1, 2])),
        (optax.softmax_cross_entropy, jnp.ones((2, 3))),
    ]:

        def by_rule(z, loss_fn=loss_fn, targets=targets):
            values, back = ask_rule(partial(loss_fn, where=nothing), z, targets)
            _, (z_bar, _) = back(jnp.ones(2))
            return values, z_bar

        values, z_bar = jax.jit(by_rule)(z)
        assert values[0] == 0 and not np.any(z_bar[0]) and np.all(z_bar[1] != 0)


def test_a_class_that_cannot_be(normal, ask_rule):
    """Logits of minus infinity: the safe cross entropy takes 0 log 0 as 0."""
    z, t = normal(0, 1, 3).at[0, 1].set(-jnp.inf), jnp.array([[0.25, 0.0, 0.75]])
    values, back = ask_rule(optax.losses.safe_softmax_cross_entropy, z, t)
    _, (z_bar, _) = back(jnp.ones(1))
    p = numpy_softmax(np.asarray(z))
    np.testing.assert_allclose(z_bar, p - np.asarray(t), rtol=1e-13)
    np.testing.assert_allclose(values[0], -np.sum(np.asarray(t)[0, ::2] * np.log(p[0, ::2])), rtol=1e-13)


def test_certain_and_right_binary_answers_have_tiny_gradients_not_zero(ask_rule):
    """1 - s(40) is 0 in float32, but s(-40) is not."""
    z, t = jnp.array([40.0, -40.0], jnp.float32), jnp.array([1.0, 0.0], jnp.float32)
    _, back = ask_rule(optax.losses.sigmoid_binary_cross_entropy, z, t)
    _, (z_bar, _) = back(jnp.ones_like(z))
    np.testing.assert_allclose(z_bar, [-np.exp(-40), np.exp(-40)], rtol=1e-6)


def test_finite_differences(outputs, assert_matches_finite_differences, normal):
    assert_matches_finite_differences(outputs, cross_entropy, normal(0, 4, 3), jnp.array([0, 2, 1, 1]))


def test_torch(normal):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    z, labels, t = normal(0, 6, 4), jnp.array([0, 3, 1, 2, 2, 0]), jax.nn.sigmoid(normal(1, 6, 4))
    smooth = optax.losses.smooth_labels(onehot(labels, 4), 0.3)
    distribution = nnx.softmax(normal(2, 6, 4))

    def focal(z, t):  # Lin et al.'s definition
        p = torch.sigmoid(z)
        wrong = torch.where(t == 1, 1 - p, p)
        weight = torch.where(t == 1, 0.25, 0.75)
        return weight * wrong**2 * functional.binary_cross_entropy_with_logits(z, t, reduction="none")

    for loss_fn, target, twin in [
        (cross_entropy, labels, functional.cross_entropy),
        (
            partial(cross_entropy, axis=0),
            jnp.array([0, 5, 2, 2]),
            lambda z, t: functional.cross_entropy(z.T, t),
        ),
        (optax.softmax_cross_entropy, distribution, functional.cross_entropy),
        (optax.losses.safe_softmax_cross_entropy, distribution, functional.cross_entropy),
        (
            optax.softmax_cross_entropy,
            smooth,
            lambda z, t: functional.cross_entropy(z, torch.argmax(t, 1), label_smoothing=0.3),
        ),
        (optax.losses.sigmoid_binary_cross_entropy, t, functional.binary_cross_entropy_with_logits),
        (
            partial(optax.losses.sigmoid_focal_loss, alpha=0.25),
            jnp.round(t),
            lambda z, t: torch.mean(focal(z, t)),
        ),
        (
            partial(optax.losses.poly_loss_cross_entropy, epsilon=1.5),
            distribution,
            lambda z, t: (
                functional.cross_entropy(z, t) + 1.5 * torch.mean(torch.sum(t * (1 - torch.softmax(z, 1)), 1))
            ),
        ),
    ]:
        inputs = torch.tensor(np.asarray(z), requires_grad=True)
        twin(inputs, torch.tensor(np.asarray(target))).backward()
        model = nnx.Sequential(nnx.identity)
        _, (_, z_bar) = chainrule.value_and_grad(model, loss_fn, z, target, inputs=True)
        np.testing.assert_allclose(z_bar, inputs.grad.numpy(), rtol=1e-10, atol=1e-14)
