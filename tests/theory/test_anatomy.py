"""Paths and their factors, against jax.grad and against every path written out."""

import itertools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import autodiff, models, theory
from bpresearch.theory import anatomy
from bpresearch.verify.casting import cast_model

CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(3, 7)), np.array([1, 0, 2], np.int32)
pytestmark = pytest.mark.usefixtures("float64")


def model_of(build, **options):
    return cast_model(nnx.clone(build((7,), 3, rngs=nnx.Rngs(0), **options)), "float64")


@pytest.fixture
def mlp(float64):
    return model_of(models.mlp, widths=(4, 5), activation=nnx.tanh)


def gradient_at(model, weight, index):
    _, part = autodiff.value_and_grad(model, CROSS_ENTROPY, X, Y)
    for key in weight:
        part = part[key]
    return float(part[index])


@pytest.mark.parametrize(
    ("build", "options", "places"),
    [
        (
            models.mlp,
            {"widths": (4, 5), "activation": nnx.tanh},
            [((1, "kernel"), (3, 2)), ((1, "bias"), (1,)), ((3, "kernel"), (0, 4)), ((5, "bias"), (2,))],
        ),
        (
            models.cnn,
            {"channels": (2, 3), "kernel_sizes": (3, 3), "pooling": "max", "activation": nnx.silu},
            [((1, "kernel"), (2, 0, 1)), ((4, "kernel"), (0, 1, 2)), ((4, "bias"), (1,))],
        ),
        (models.residual_mlp, {"width": 4}, [((3, "branch", "layers", 0, "kernel"), (1, 2))]),
        (models.bidirectional_gru, {"width": 2}, [((1, "forward_rnn", "cell", "dense_i", "kernel"), (0, 1))]),
    ],
)
def test_the_paths_add_up_to_autodiff(build, options, places):
    model = model_of(build, **options)
    for place, index in places:
        weight = ("layers", *place)
        found = theory.take_apart(model, CROSS_ENTROPY, X, Y, weight, index)
        assert abs(found.total - gradient_at(model, weight, index)) <= 1e-12 * found.size
        assert found.size > 0
        for path in found.paths:
            assert path.product == pytest.approx(np.prod(path.factors), rel=1e-14)


def test_every_path_is_listed_once_and_its_factors_are_those_of_the_formula(mlp):
    weight, (i, j) = ("layers", 1, "kernel"), (3, 2)
    found = theory.take_apart(mlp, CROSS_ENTROPY, X, Y, weight, (i, j), paths=1000)
    assert [link.kind for link in found.links] == [
        "input", "activation", "weight", "activation", "weight", "loss",
    ]  # fmt: skip
    assert found.number == len(found.paths) == 3 * 5 * 3
    first, second, third = (np.asarray(mlp.layers[n].kernel[...]) for n in (1, 3, 5))
    h = np.tanh(X @ first)
    hh = np.tanh(h @ second)
    o = hh @ third
    slope = (np.exp(o) / np.exp(o).sum(1, keepdims=True) - np.eye(3)[Y]) / 3
    expected = {
        (n, j, j, k, k, c, 0): (
            X[n, i], 1 - h[n, j] ** 2, second[j, k], 1 - hh[n, k] ** 2, third[k, c], slope[n, c],
        )
        for n, k, c in itertools.product(range(3), range(5), range(3))
    }  # fmt: skip
    for path in found.paths:
        np.testing.assert_allclose(path.factors, expected.pop((path.example, *path.units)), rtol=1e-12)
    assert expected == {}
    assert found.rest == pytest.approx(0, abs=1e-15)
    sizes = [abs(path.product) for path in found.paths]
    assert sizes == sorted(sizes, reverse=True)


def test_the_largest_paths_come_first_whatever_their_number(mlp):
    place = ("layers", 1, "kernel"), (0, 0)
    every = theory.take_apart(mlp, CROSS_ENTROPY, X, Y, *place, paths=1000)
    few = theory.take_apart(mlp, CROSS_ENTROPY, X, Y, *place, paths=4)
    assert few.paths == every.paths[:4]
    assert few.number == every.number
    assert few.rest == pytest.approx(sum(path.product for path in every.paths[4:]), rel=1e-12)


def test_a_dead_unit_has_no_path():
    model = model_of(models.mlp, widths=(4,), activation=nnx.relu)
    model.layers[1].bias[...] = np.array([-100.0, 0, 0, 0])
    found = theory.take_apart(model, CROSS_ENTROPY, X, Y, ("layers", 1, "kernel"), (0, 0))
    assert (found.number, found.total, found.paths) == (0, 0.0, ())


def test_what_has_no_paths_is_refused(mlp, monkeypatch):
    place = ("layers", 1, "kernel"), (0, 0)
    normalised = nnx.Sequential(
        models.flatten, nnx.Linear(7, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    )
    with pytest.raises(ValueError, match=r"BatchNorm at layers\.2 mixes"):
        theory.take_apart(normalised, CROSS_ENTROPY, X, Y, *place)
    monkeypatch.setattr(anatomy, "MOST_FACTORS", 19)
    with pytest.raises(ValueError, match=r"layers\.3 has 4 inputs and 5 outputs"):
        theory.take_apart(mlp, CROSS_ENTROPY, X, Y, *place)


def test_factor_statistics_hold_the_live_factors(mlp):
    found = theory.factor_statistics(mlp, CROSS_ENTROPY, X, Y)
    assert [(layer, kind) for layer, kind, _ in found] == [
        ("layers.1", "weight"), ("tanh", "activation"), ("layers.3", "weight"),
        ("tanh", "activation"), ("layers.5", "weight"), ("loss", "loss"),
    ]  # fmt: skip
    h = np.tanh(X @ np.asarray(mlp.layers[1].kernel[...]))
    np.testing.assert_allclose(found[1][2], (1 - h**2).ravel(), rtol=1e-12)
    np.testing.assert_allclose(found[-1][2].reshape(3, 3).sum(1), 0, atol=1e-15)
    assert jax.config.jax_enable_x64
