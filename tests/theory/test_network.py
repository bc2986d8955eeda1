"""Small networks as files hold them: read as they are given, and refused by the name of the entry."""

import copy
import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from bpresearch.theory import network

TEXTBOOK = Path(__file__).parents[2] / "experiments" / "textbook.json"
GIVEN = json.loads(TEXTBOOK.read_text())


def changed(**entries):
    return {key: value for key, value in {**copy.deepcopy(GIVEN), **entries}.items() if value is not None}


def test_a_network_is_read_as_it_is_given():
    found = network.read(TEXTBOOK)
    assert found.to_dict() == GIVEN
    assert list(found.places) == ["w1", "w2", "w3", "w4", "b1", "w5", "w6", "w7", "w8", "b2"]
    assert found.places["w6"] == [network.Place(1, 0, 1)] and found.value("w6") == 0.45
    assert [place.unit for place in found.places["b2"]] == [0, 1] and found.value("b2") == 0.60


def test_its_model_holds_the_numbers_in_double_precision(float64):
    found = network.read(TEXTBOOK)
    model = found.model()
    assert model.layers[0].kernel[...].dtype == jnp.float64
    assert model.layers[0].kernel[...].T.tolist() == GIVEN["weights"][0]
    assert float(found.training_loss(model, found.batch)) == pytest.approx(0.298371109, abs=1e-9)


def test_names_may_be_left_out():
    deep = changed(
        sizes=[2, 2, 2, 1], activations=["tanh", "relu", "identity"], weight_names=None, bias_names=None,
        units=None, weights=[*GIVEN["weights"], [[1, 2]]], biases=[*GIVEN["biases"], [0]], targets=[1],
        title=None,
    )  # fmt: skip
    found = network.from_dict(deep)
    assert found.units == (("x1", "x2"), ("h1.1", "h1.2"), ("h2.1", "h2.2"), ("o1",))
    assert found.weight_names[2] == (("w9", "w10"),) and found.bias_names[2] == ("b5",)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"targets": None}, "targets: is missing"),
        ({"target": [0]}, "target: is no entry.*did you mean targets"),
        ({"sizes": [2, 3, 2], "units": None}, r"weights\[0\]: is a list of 2.*a list of 3"),
        ({"sizes": [2]}, r"sizes: is a list of 1.*two layers"),
        ({"sizes": [2, 0, 2]}, r"sizes\[1\]: is 0"),
        ({"sizes": [2, 200, 200]}, "sizes: 40,400 weights"),
        ({"weights": [[[0.15], [0.25, 0.3]], GIVEN["weights"][1]]}, r"weights\[0\]\[0\]: is a list of 1"),
        ({"weights": [[[0.15, "a"], [0.25, 0.3]], GIVEN["weights"][1]]}, r'weights\[0\]\[0\]\[1\]: is "a"'),
        ({"inputs": [0.05, float("nan")]}, r"inputs\[1\]: is NaN; it takes a finite number"),
        ({"inputs": [0.05, 10**400]}, r"inputs\[1\]: is 1000.*finite"),
        ({"inputs": [0.05, True]}, r"inputs\[1\]: is true"),
        ({"targets": 0.5}, r"targets: is 0.5; by the sizes it takes a list of 2"),
        ({"activations": ["sigmoid", "sigmod"]}, r"activations\[1\]: is .*did you mean sigmoid"),
        ({"activations": ["sigmoid"]}, "activations: is a list of 1"),
        ({"loss": "mse"}, 'loss: is "mse", not one of half_squared_error'),
        ({"reduction": ["sum"]}, "reduction: is a list of 1, not one of sum, mean"),
        ({"learning_rate": "fast"}, 'learning_rate: is "fast"'),
        ({"units": [["i", "i"], ["h1", "h2"], ["o1", "o2"]]}, "units: two are called i"),
        ({"bias_names": [["b1", "b2"], ["b2", "b2"]]}, r"b2: names one weight.*\[0.35, 0.6\]"),
        ({"units": [["i1", ""], ["h1", "h2"], ["o1", "o2"]]}, r'units\[0\]\[1\]: is ""; it takes a name'),
        ({"loss": "binary_cross_entropy", "activations": ["sigmoid", "tanh"]}, "loss: .*of a sigmoid"),
        ({"loss": "binary_cross_entropy", "targets": [0, 2]}, "targets: .*between 0 and 1"),
        ({"loss": "softmax_cross_entropy", "targets": [1, 1]}, "targets: .*sum is 1"),
        ({"loss": "softmax_cross_entropy", "targets": [0, 1], "reduction": "mean"}, "reduction: .*take sum"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_named(entries, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        network.from_dict(changed(**entries))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON: .* in line 1"),
        ("[1]", "holds a list of 1"),
        ("[" * 100_000, "holds lists in lists without end"),
        (None, "cannot be read"),
        (b"\xff", "is not text in UTF-8"),
    ],
)
def test_a_file_that_holds_no_network_is_named(tmp_path, text, message):
    path = tmp_path / "network.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"network.json: {message}"):
        network.read(path)
