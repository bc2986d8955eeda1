"""Gradients of users' models, path by path, against jax.grad and against paths written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bpresearch as bp

RNG = np.random.default_rng(0)
X, T = RNG.normal(size=(2, 3)), RNG.normal(size=(2, 2))
SQUARED = optax.losses.squared_error


class Branched(nnx.Module):
    """h + tanh(h), then a dense layer."""

    def __init__(self):
        self.hidden, self.out = nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1))

    def __call__(self, x):
        h = self.hidden(x)
        return self.out(h + nnx.tanh(h))


class Raw(nnx.Module):
    """A parameter without a layer, and a function of it."""

    def __init__(self, function):
        self.w, self.function = nnx.Param(jnp.asarray(RNG.normal(size=(3, 2)))), function

    def __call__(self, x):
        return self.function(x, self.w[...])


def moved(x, w):
    """Copies of all kinds around one product and one function of each element."""
    h = jnp.concatenate([w.T, jnp.ones((1, 3))])[:2].T.astype(x.dtype)
    h = jnp.expand_dims(x @ h, 1) + jnp.zeros((1, 3, 1))
    h = jnp.pad(h[:, ::2], ((0, 0), (1, 0), (0, 0))).reshape(len(x), -1)
    h = jnp.tanh(h[:, jnp.array([5, 0, 3, 2, 2])])
    return jnp.stack([h[:, :2], jnp.flip(h[:, 3:], 1)]).sum(0)


def looped(x, w):
    return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ w @ w.T), None), x, length=2)[0][:, :2]


def spectral(x, w):
    """Through complex numbers and back."""
    z = jnp.fft.fft(x @ w, axis=1) * (0.5 + 1j * jnp.sum(w[0]))
    return jnp.conj(jnp.exp(z / (3 + z.real))).imag


def centred(x, w):
    """Each example depends on all the others."""
    h = x @ w
    return jnp.tanh(h - jnp.mean(h, axis=0, keepdims=True))


def products(x, w):
    h = jnp.where(x @ w > 0, nnx.softplus(x @ w), 0.0)
    return x @ (w * w[:1] * 0.5) * nnx.softmax(h, axis=-1) * jnp.clip(h, -3, jnp.max(w))


def test_a_path_leads_through_each_branch():
    model = Branched()
    found = bp.explain(model, SQUARED, X, T, "hidden.kernel[1,2]", paths=100)
    w, v = (np.asarray(layer.kernel[...], np.float64) for layer in (model.hidden, model.out))
    h = X @ w
    slope = 2 * ((h + np.tanh(h)) @ v - T) / T.size
    expected = {}
    for n, k in itertools.product(range(2), range(2)):
        ends = v[2, k], slope[n, k]
        expected[n, ("input", "weight", "loss"), (2, k, 0)] = X[n, 1], *ends
        expected[n, ("input", "activation", "weight", "loss"), (2, 2, k, 0)] = (
            X[n, 1], 1 - np.tanh(h[n, 2]) ** 2, *ends,
        )  # fmt: skip
    assert found.number == len(found.paths) == len(expected) == 8
    for path in found.paths:
        factors = expected.pop((path.example, tuple(link.kind for link in path.links), path.units))
        np.testing.assert_allclose(path.factors, factors, rtol=1e-12)
        assert path.product == pytest.approx(np.prod(factors), rel=1e-12)
    assert [link.layer for link in found.links] == ["hidden", "tanh", "out", "squared_error"]
    assert found.agrees and found.total == pytest.approx(found.gradient, rel=1e-12)


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (moved, {("input", "dot_general"), ("activation", "tanh")}),
        (looped, {("block", "scan")}),
        (spectral, None),
        (centred, {("input", "dot_general"), *[("activation", name) for name in ("tanh", "sub", "div")]}),
        (products, None),
    ],
)  # fmt: skip
def test_the_paths_of_any_program_add_up(function, kinds):
    found = bp.explain(Raw(function), SQUARED, X, T, "w[0,1]", paths=50)
    assert found.agrees and found.total != 0
    assert {path.example for path in found.paths} == ({None} if function is centred else {0, 1})
    if kinds is not None:
        assert {(link.kind, link.layer) for link in found.links[:-1]} == kinds
    assert found.links[-1].kind == "loss"
    for path in found.paths:
        assert path.product == pytest.approx(np.prod(path.factors), rel=1e-12)


def test_a_training_loss_has_paths_too():
    def loss(model, batch):
        error = jnp.mean((model(batch["x"]) - batch["t"]) ** 2)
        return error + 0.1 * jnp.sum(model.hidden.kernel[...] ** 2)

    model = Branched()
    found = bp.explain(model, loss, {"x": X, "t": T}, weight="hidden.kernel[1,2]", paths=100)
    assert found.agrees and found.links[-1] == found.links[-1]._replace(kind="loss", layer="loss")
    decay = [path for path in found.paths if path.links[0].kind == "activation"]
    assert sum(path.product for path in decay) == pytest.approx(0.2 * float(model.hidden.kernel[1, 2]))
    by_hand = jax.grad(lambda w: loss(nnx.merge(*nnx.split(model)[:1], w), {"x": X, "t": T}))
    gradient = by_hand(nnx.state(model))["hidden"]["kernel"][...][1, 2]
    assert found.gradient == pytest.approx(float(gradient), rel=1e-5)


def test_batch_norm_takes_its_running_statistics_and_the_answer_says_so():
    model = nnx.Sequential(
        nnx.Linear(7, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.tanh,
        nnx.Linear(3, 2, rngs=nnx.Rngs(1)),
    )  # fmt: skip
    x, y = np.random.default_rng(0).normal(size=(4, 7)), np.zeros((4, 2))
    found = bp.explain(model, SQUARED, x, y, "layers.0.kernel[1,2]")
    assert found.agrees and found.number == 4 * 2
    assert "nnx.BatchNorm at layers.1 takes its running statistics" in " ".join(str(found).split())
    assert not model.layers[1].use_running_average
    model.eval()
    assert bp.explain(model, SQUARED, x, y, "layers.0.kernel[1,2]").gradient == found.gradient


def test_the_explanation_reads_as_a_table():
    model = Branched()
    text = str(bp.explain(model, SQUARED, X, T, "out.bias[1]"))
    lines = text.splitlines()
    first = lines.index("Paths from the weight to the loss: 2. The largest:")
    assert lines[0] == "dl/d out.bias[1] of Branched" and "That of the loss." in " ".join(lines[:first])
    assert "They agree" in text and "jax.grad" in text and all(len(line) <= 80 for line in lines)
    heads = [line.split() for line in lines[first + 2 : first + 4]]
    assert heads == [["1", "c'", "product"], ["out", "loss", "example"]]
    branched = str(bp.explain(model, SQUARED, X, T, "hidden.bias[0]", paths=2))
    rows = [line.split()[:2] for line in branched.splitlines()]
    assert ["1", "hidden"] in rows and ["weight", "out"] in rows and ["c'", "loss"] in rows
    assert model.out.kernel[...].dtype == jnp.float32


def test_the_words_are_of_all_paths_and_not_of_the_listed_ones():
    """The largest path of h + 0.1 tanh(h) is that without the tanh."""

    def branched(x, w):
        h = x @ w
        return h + 0.1 * nnx.tanh(h)

    found = bp.explain(Raw(branched), SQUARED, X, T, "w[0,1]", paths=1)
    assert [link.kind for link in found.links] == ["input", "loss"] and found.number == 4
    assert "Both" in found.sentences()[0] and "the derivative of each activation" in found.sentences()[1]
    assert bp.explain(Raw(branched), SQUARED, X, T, "w[0,1]", paths=0).sentences() == found.sentences()
    straight = bp.explain(Raw(lambda x, w: x @ w + 0.0 * nnx.tanh(x @ w)), SQUARED, X, T, "w[0,1]", paths=9)
    assert straight.number == 2 and straight.sentences()[0].endswith("That of the loss.")


def test_by_default_the_largest_element_of_the_first_kernel_is_explained():
    model = Branched()
    _, grads = bp.autodiff.value_and_grad(model, SQUARED, *map(jnp.asarray, (X, T)))
    largest = np.unravel_index(np.argmax(np.abs(grads["hidden"]["kernel"])), (3, 3))
    found = bp.explain(model, SQUARED, X, T)
    assert found.weight == f"hidden.kernel[{largest[0]},{largest[1]}]"


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("hidden.kernel", r"hidden\.kernel: takes an element.*hidden\.kernel\[3,3\]"),
        ("middle.kernel[0,0]", "takes an element"),
        ("hidden.kernel[3,0]", r"has the shape \(3, 3\)"),
        ("hidden.kernel[0]", r"has the shape \(3, 3\)"),
    ],
)
def test_an_element_that_is_not_there_is_named(weight, message):
    with pytest.raises(ValueError, match=message):
        bp.explain(Branched(), SQUARED, X, T, weight)
