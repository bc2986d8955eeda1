"""The rules of losses with a margin."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule

pytestmark = pytest.mark.usefixtures("float64")  # Optax's sparsemax mixes dtypes

losses = optax.losses


@pytest.fixture
def problems(normal):
    o, labels = normal(0, 4, 3), jnp.array([0, 2, 1, 1])
    signs = jnp.array([[1.0, -1.0, 1.0]] * 2 + [[-1.0, 1.0, -1.0]] * 2)
    a, p, n = normal(1, 2, 3, 4), normal(2, 2, 3, 4), normal(3, 2, 3, 4)
    triplet, all_ = losses.triplet_margin_loss, [0, 1, 2]
    return {
        "hinge": (losses.hinge_loss, (o, signs), [0, 1]),
        "hinge, targets for all": (losses.hinge_loss, (o, signs[:1]), [0, 1]),
        "perceptron": (losses.perceptron_loss, (o, signs), [0, 1]),
        "multiclass hinge": (losses.multiclass_hinge_loss, (o, labels), [0]),
        "multiclass perceptron": (losses.multiclass_perceptron_loss, (o, labels), [0]),
        "sparsemax": (losses.sparsemax_loss, (2 * o, (signs > 0).astype(jnp.int32)), [0]),
        "sparsemax, booleans": (losses.sparsemax_loss, (o, signs > 0), [0]),
        "multiclass sparsemax": (losses.multiclass_sparsemax_loss, (o, labels), [0]),
        "triplet": (triplet, (a, p, n), all_),
        "triplet, middle axis": (partial(triplet, axis=1, margin=0.3), (a, p, n), all_),
        "triplet, first degree": (partial(triplet, norm_degree=1, margin=4.0), (a, a - p**2, a - n**2), all_),
        "triplet, fourth degree": (partial(triplet, norm_degree=4, eps=0.1), (a, p, n), all_),
        "triplet, one anchor": (triplet, (a[:1, :1], p, n), all_),
    }


def test_every_option(problems, assert_rules_right):
    assert assert_rules_right(problems) <= 1e-12


@pytest.mark.parametrize(("shape", "labels"), [((2, 3, 3), (2, 3)), ((4, 3), (4, 1))])
def test_a_sparsemax_of_other_shapes_than_its_paper_has_goes_by_primitives(
    shape, labels, normal, assert_engines_agree
):
    """Optax takes scores that are matrices, and labels in a column, and gives some number for them."""
    model, z = nnx.Sequential(nnx.identity), normal(0, *shape)
    assert assert_engines_agree(model, losses.multiclass_sparsemax_loss, z, jnp.zeros(labels, int)) <= 1e-12


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding(dtype, problems, assert_rules_sound_in):
    names = ["hinge", "multiclass hinge", "sparsemax", "triplet"]
    if dtype == jnp.float32:  # in bfloat16, autodiff of Optax's function fails
        names.append("multiclass sparsemax")
    with jax.numpy_dtype_promotion("standard"):
        assert_rules_sound_in(dtype, {name: problems[name] for name in names})


@pytest.fixture
def cotangents(ask_rule):
    """`cotangents(function, *inputs)`, of a loss whose values all have the cotangent 1."""

    def cotangents(function, *inputs):
        y, back = ask_rule(function, *inputs)
        return back(jnp.ones_like(y))[1]

    return cotangents


@pytest.mark.parametrize(
    ("function", "inputs", "expected"),
    [
        (losses.hinge_loss, ([0.5, 1.0, 2.0], [1.0, 1.0, 1.0]), [-1, -0.5, 0]),
        (losses.hinge_loss, ([-0.5, -1.0, -2.0], [-1.0, -1.0, -1.0]), [1, 0.5, 0]),
        (losses.perceptron_loss, ([-0.5, 0.0, 2.0], [1.0, 1.0, 1.0]), [-1, -0.5, 0]),
        (losses.multiclass_hinge_loss, ([[1.0, 0.0, 0.0]], [0]), [[1 / 3 - 1, 1 / 3, 1 / 3]]),
        (losses.multiclass_perceptron_loss, ([[1.0, 1.0, 0.0]], [2]), [[0.5, 0.5, -1]]),
        (losses.multiclass_perceptron_loss, ([[1.0, 1.0, 0.0]], [0]), [[-0.5, 0.5, 0]]),
        (losses.sparsemax_loss, ([-1.0, 0.0, 1.0, 3.0], [0, 0, 0, 0]), [0, 0.5, 1, 1]),
        (losses.sparsemax_loss, ([-1.0, 0.0, 1.0, 3.0], [1, 1, 1, 1]), [-1, -0.5, 0, 0]),
        (losses.multiclass_sparsemax_loss, ([[2.0, 1.0, 0.0]], [1]), [[1, -1, 0]]),
        (losses.multiclass_sparsemax_loss, ([[0.5, 0.5, -3.0]], [1]), [[0.5, -0.5, 0]]),
    ],
)
def test_at_the_kinks(function, inputs, expected, cotangents):
    """Between two slopes, the mean of both: what autodiff gives, too."""
    inputs = [jnp.asarray(x) for x in inputs]
    found = cotangents(function, *inputs)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-15)
    autodiffs = jax.grad(lambda x: jnp.sum(function(x, *inputs[1:])))(inputs[0])
    np.testing.assert_allclose(found, autodiffs, rtol=1e-15)


def test_a_triplet_just_at_its_margin(cotangents):
    a, p, n = jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 6.0]])
    function = partial(losses.triplet_margin_loss, eps=0.0, margin=1.0)
    _, p_bar, n_bar = cotangents(function, a, p, n)
    np.testing.assert_allclose(p_bar, [[0.3, 0.4]], rtol=1e-15)
    np.testing.assert_allclose(n_bar, [[0.0, -0.5]], rtol=1e-15)


class Three(nnx.Module):
    """The same layer for anchors, positives and negatives."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, a, p, n):
        return self.layer(a), self.layer(p), self.layer(n)


def test_a_model_with_three_outputs(normal, random_model, assert_engines_agree):
    """Its tuple of outputs is so many arguments of the loss; there are no targets."""
    model = random_model(lambda: Three(nnx.Linear(3, 2, rngs=nnx.Rngs(0))))
    x = normal(1, 4, 3), normal(2, 4, 3), normal(3, 4, 3)
    assert assert_engines_agree(model, losses.triplet_margin_loss, x, ()) <= 1e-12


def test_torch(normal):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    z, labels = normal(0, 6, 4), jnp.array([0, 3, 1, 2, 2, 0])
    signs = jnp.where(normal(1, 6, 4) > 0, 1.0, -1.0)
    others = normal(2, 6, 4), normal(3, 6, 4)

    def hinge(z, labels):  # torch's sums over the wrong classes, ours takes the worst
        wrong = 1 - functional.one_hot(labels, 4)
        return torch.mean(torch.max(z + wrong, 1).values - torch.gather(z, 1, labels[:, None])[:, 0])

    for loss_fn, targets, twin in [
        (losses.hinge_loss, (signs,), lambda z, t: torch.mean(torch.relu(1 - z * t))),
        (losses.perceptron_loss, (signs,), lambda z, t: torch.mean(torch.relu(-z * t))),
        (losses.multiclass_hinge_loss, (labels,), hinge),
        (
            partial(losses.triplet_margin_loss, eps=0.0, margin=0.7),
            others,
            partial(functional.triplet_margin_loss, eps=0.0, margin=0.7),
        ),
    ]:
        inputs = torch.tensor(np.asarray(z), requires_grad=True)
        twin(inputs, *(torch.tensor(np.asarray(t)) for t in targets)).backward()
        model = nnx.Sequential(nnx.identity)
        _, (_, z_bar) = chainrule.value_and_grad(model, loss_fn, z, targets, inputs=True)
        np.testing.assert_allclose(z_bar, inputs.grad.numpy(), rtol=1e-10, atol=1e-14)
