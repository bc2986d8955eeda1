"""Gradients of small networks: the published worked example, every activation and loss, and in words."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from bpresearch.theory import derivation, network

TEXTBOOK = network.read(Path(__file__).parents[2] / "experiments" / "textbook.json")


def cost(net):
    with jax.enable_x64(True):
        return float(net.training_loss(net.model(), net.batch))


@pytest.mark.parametrize(
    ("name", "gradient", "after"),
    [("w5", 0.082167041, 0.35891648), ("w1", 0.000438568, 0.149780716)],
)
def test_the_worked_example_comes_out(name, gradient, after):
    found = derivation.derive(TEXTBOOK, name)
    assert found.gradient == pytest.approx(gradient, abs=5e-10)
    assert found.after_step == pytest.approx(after, abs=5e-9)
    assert found.agrees and found.number == len(found.paths) == (1 if name == "w5" else 2)
    for product, factors in found.paths:
        assert product == pytest.approx(np.prod([factor.value for factor in factors]), rel=1e-12)


def test_each_factor_has_its_kind_its_formula_and_its_number():
    text = str(derivation.derive(TEXTBOOK, "w1"))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "Path 1 of 2: w1 -> h1 -> o1 -> E",
        "i1 0.05 what w1 is multiplied with",
        "h1 (1 - h1) 0.241300709 derivative of the activation at h1",
        "w5 0.4 weight on the way",
        "o1 - t 0.74136507 derivative of the loss by o1",
        "w1 = 0.15 - 0.5 * (0.000438567734) = 0.149780716",
    ):
        assert line in lines
    assert "Both, and the weights between them." in " ".join(lines) and max(map(len, text.splitlines())) <= 80


def test_a_shared_bias_has_the_paths_of_all_its_places():
    found = derivation.derive(TEXTBOOK, "b1")
    assert found.number == 4 and found.agrees
    moved = [
        dataclasses.replace(TEXTBOOK, biases=(TEXTBOOK.biases[0] + h, TEXTBOOK.biases[1]))
        for h in (1e-5, -1e-5)
    ]
    assert found.gradient == pytest.approx((cost(moved[0]) - cost(moved[1])) / 2e-5, rel=1e-7)


@pytest.mark.parametrize(
    ("activations", "loss", "reduction"),
    [
        (("tanh", "sigmoid"), "binary_cross_entropy", "mean"),
        (("softplus", "identity"), "softmax_cross_entropy", "sum"),
        (("relu", "leaky_relu"), "squared_error", "mean"),
    ],
)
def test_the_formula_of_each_factor_gives_its_number(activations, loss, reduction):
    net = dataclasses.replace(
        TEXTBOOK, activations=activations, loss=loss, reduction=reduction, targets=np.array([0.2, 0.8])
    )
    found = derivation.derive(net, "w1")
    assert found.agrees and found.gradient == pytest.approx(derivation.gradients(net)[1]["w1"], rel=1e-12)
    with jax.enable_x64(True):
        model = net.model()
        h = np.asarray(model.layers[1](model.layers[0](net.batch[0])))[0]
        o = np.asarray(model(net.batch[0]))[0]
    known = {"h1": h[0], "o1": o[0], "o2": o[1], "i1": 0.05, "w5": 0.4, "w7": 0.5, "exp": np.exp}
    for _, factors in found.paths:
        for factor in factors:
            target = 0.2 if factor.unit == "o1" else 0.8
            softmax = {"softmax": lambda a: np.exp(a) / np.exp(o).sum()}
            formula = factor.formula.replace("^", "**").replace(", else 0", " else 0")
            formula = re.sub(r"(\w) \(", r"\1 * (", formula)
            value = eval(formula, {}, known | softmax | {"t": target})
            assert factor.value == pytest.approx(value, rel=1e-12), formula


def test_the_words_are_of_all_paths_and_not_of_the_listed_ones():
    listed = [derivation.derive(TEXTBOOK, "b1", paths=paths) for paths in (0, 1, 5)]
    assert [len(found.paths) for found in listed] == [0, 2, 4]
    assert listed[0].sentences() == listed[1].sentences() == listed[2].sentences()


def test_what_is_always_zero_is_said():
    net = dataclasses.replace(
        TEXTBOOK, activations=("relu", "sigmoid"), biases=(np.array([-9.0, -9.0]), np.zeros(2))
    )
    found = derivation.derive(net, "w1")
    assert found.gradient == found.number == 0 and "factor that is zero" in str(found)


def test_by_default_it_is_the_first_layers_steepest_weight_and_unknown_names_are_refused():
    slopes = derivation.gradients(TEXTBOOK)[1]
    largest = max(("w1", "w2", "w3", "w4"), key=lambda name: abs(slopes[name]))
    assert derivation.derive(TEXTBOOK).name == largest
    with pytest.raises(ValueError, match="weight=w9: the network has w1, w2"):
        derivation.derive(TEXTBOOK, "w9")
