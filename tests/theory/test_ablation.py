"""Gradients with one kind of factor replaced, against the products written out."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule, models
from bpresearch.functional import split
from bpresearch.theory import ablation
from bpresearch.verify.casting import cast_model

RNG = np.random.default_rng(0)
X, T = RNG.normal(size=(5, 4)), RNG.normal(size=(5, 2))
SQUARED = optax.losses.squared_error
pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def model(float64):
    return cast_model(models.mlp((4,), 2, widths=(3,), activation=nnx.tanh, rngs=nnx.Rngs(0)), "float64")


def gradients(model, loss, x, y, *functions):
    graphdef, params, state = split(model)

    @jax.jit
    def every(*inputs):
        return [function(graphdef, loss)(*inputs) for function in functions]

    return [
        (jax.tree.map(np.asarray, grads), float(value)) for (value, _), grads in every(params, state, (x, y))
    ]


def test_each_kind_leaves_the_others_as_they_are(model):
    names = [("weight", "ones"), ("weight", "mean"), ("activation", "ones"), ("activation", "mean")]
    names += [("loss", "ones"), ("loss", "mean")]
    functions = [ablation.ablated(kind, getattr(ablation, how)) for kind, how in names]
    found = gradients(model, SQUARED, X, T, chainrule.gradient, *functions)
    kernel, second = (np.asarray(model.layers[n].kernel[...]) for n in (1, 3))
    h = np.tanh(X @ kernel)
    factors = {"weight": second, "activation": 1 - h**2, "loss": 2 * (h @ second - T)}

    def by_hand(weight, activation, loss):
        o_bar = loss / T.size
        return X.T @ ((o_bar @ weight.T) * activation), h.T @ o_bar

    for (kind, how), (grads, value) in zip([(None, None), *names], found, strict=True):
        changed = dict(factors)
        if kind:
            constant = 1 if how == "ones" else factors[kind].mean()
            changed[kind] = np.full_like(factors[kind], constant)
        first, last = by_hand(**changed)
        np.testing.assert_allclose(grads["layers"][1]["kernel"], first, rtol=1e-10, err_msg=f"{kind} {how}")
        np.testing.assert_allclose(grads["layers"][3]["kernel"], last, rtol=1e-10)
        assert value == found[0][1]  # the forward pass is as it was


def test_deviations_are_means_over_models(model):
    others = [
        model,
        cast_model(models.mlp((4,), 2, widths=(3,), activation=nnx.tanh, rngs=nnx.Rngs(1)), "float64"),
    ]
    names = ("activation: ones", "loss: mean")
    chosen = {name: ablation.REPLACEMENTS[name] for name in names}
    found = ablation.deviations(others, SQUARED, X, T, {"nothing": chainrule.gradient, **chosen})
    assert found["nothing"] == (0, 1)
    for name, gradient in chosen.items():
        angles, lengths = [], []
        for one in others:
            (true, _), (changed, _) = gradients(one, SQUARED, X, T, chainrule.gradient, gradient)
            angles.append(ablation.angle(changed, true))
            norms = [np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(tree))) for tree in (changed, true)]
            lengths.append(norms[0] / norms[1])
        assert found[name] == pytest.approx((np.mean(angles), np.mean(lengths)), rel=1e-9)


def test_convolutions_have_weights_too():
    model = models.cnn(
        (6, 1), 2, channels=(2, 2), kernel_sizes=(3, 3), activation=nnx.identity, rngs=nnx.Rngs(0)
    )
    model = cast_model(model, "float64")
    x = RNG.normal(size=(2, 6, 1))
    random = [ablation.ablated("weight", ablation.random)] * 2
    true, first, again = gradients(model, SQUARED, x, T[:2], chainrule.gradient, *random)
    for number in (0, 2):
        assert ablation.angle(true[0]["layers"][number], first[0]["layers"][number]) > 1
    np.testing.assert_array_equal(true[0]["layers"][5]["kernel"], first[0]["layers"][5]["kernel"])
    assert first[0]["layers"][0]["kernel"].tolist() == again[0]["layers"][0]["kernel"].tolist()


def test_where_nothing_is_downstream_nothing_changes():
    model = cast_model(models.linear((4,), 2, rngs=nnx.Rngs(0)), "float64")
    kinds = [ablation.ablated(kind, ablation.ones) for kind in ("weight", "activation")]
    true, *found = gradients(model, SQUARED, X, T, chainrule.gradient, *kinds)
    assert all(ablation.angle(true[0], other) == 0 for other, _ in found)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="weight, activation, loss"):
        ablation.ablated("bias", ablation.ones)


def test_angles():
    a, b = {"w": np.array([1.0, 1e-9])}, {"w": np.array([1.0, 0.0])}
    assert ablation.angle(a, b) == pytest.approx(np.degrees(1e-9), rel=1e-6)
    assert ablation.angle(b, {"w": np.array([-3.0, 0.0])}) == 180
    assert np.isnan(ablation.angle(a, {"w": np.zeros(2)}))
