"""Faults that fit any rule: each is found wherever it changes a derivative."""

import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import models, verify
from bpresearch.verify.mutations import changes

LAYERS = ("layers.1", "layers.2", "layers.3", "loss")


@pytest.fixture(scope="module")
def case():
    """A network with a convolution, a smooth activation, a pooling and random data."""
    rngs = nnx.Rngs(0)
    layers = [
        models.add_channel,
        nnx.Conv(1, 3, (3,), conv_general_dilated=models.patch_convolution, rngs=rngs),
    ]
    layers += [nnx.gelu, nnx.Linear(3, 3, rngs=rngs), models.flatten]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 5)), rng.normal(size=(4, 15))
    return nnx.Sequential(*layers), optax.losses.squared_error, x, y


WITHOUT_EFFECT = {
    ("parameters_forgotten", "layers.2"),
    ("parameters_forgotten", "loss"),
    ("mean_for_sum", "layers.2"),
    ("mean_for_sum", "loss"),
    ("transposed", "layers.1"),
    ("transposed", "layers.2"),
    ("transposed", "loss"),
}


@pytest.mark.parametrize("name", verify.MUTATIONS)
def test_mutation_is_found_in_its_layer(case, name):
    for layer in LAYERS if name == "transposed" else (LAYERS[len(name) % 3], "loss"):
        report = verify.model(*case, dtype="float64", oracles=["rule"], plant=f"{name}@{layer}")
        assert report.culprits == (() if (name, layer) in WITHOUT_EFFECT else (layer,)), (name, layer)


def test_how_much_a_fault_changes():
    right = {"kernel": np.array([1.0, -4.0])}, (np.zeros(3), None)
    assert changes(right, right) == 0
    assert changes(({"kernel": np.array([1.0, -4.004])}, (np.zeros(3), None)), right) == pytest.approx(1e-3)
    assert changes(({"kernel": np.array([1.0, -4.0])}, (np.ones(3), None)), right) == np.inf
