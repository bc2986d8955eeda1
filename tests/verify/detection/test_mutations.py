"""Faults that fit any rule: each is found wherever it changes a derivative."""

import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import models, verify
from bpresearch.verify.detection.mutations import changes


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


# Neither the activation nor the loss has parameters, only layers.1 has a convolution's time, and no matrix of
# layers.1, layers.2 and the loss is square; the input of layers.1 has one channel.
WITHOUT_PARAMETERS = {"transposed", "parameters_forgotten", "mean_for_sum", "parameter_element_scaled"}
WITHOUT_EFFECT = {
    "layers.1": {"transposed", "input_reversed", "input_shifted"},
    "layers.2": WITHOUT_PARAMETERS,
    "layers.3": set(),
    "loss": WITHOUT_PARAMETERS | {"step_dropped"},
}


@pytest.mark.parametrize("layer", WITHOUT_EFFECT)
def test_mutations_are_found_in_their_layer(case, layer):
    plants = [f"{name}@{layer}" for name in verify.MUTATIONS]
    check = verify.prepare(*case, "float64", ["rule"], plants)
    model, _, x, y = case
    for fault, name in enumerate(verify.MUTATIONS):
        culprits = check(model, x, y, fault=fault).culprits
        assert culprits == (() if name in WITHOUT_EFFECT[layer] else (layer,)), name


def test_how_much_a_fault_changes():
    right = {"kernel": np.array([1.0, -4.0])}, (np.zeros(3), None)
    assert changes(right, right) == 0
    assert changes(({"kernel": np.array([1.0, -4.004])}, (np.zeros(3), None)), right) == pytest.approx(1e-3)
    assert changes(({"kernel": np.array([1.0, -4.0])}, (np.ones(3), None)), right) == pytest.approx(1 / 4e-12)
    assert changes({"bias": np.ones(3)}, {"bias": np.zeros(3)}) == np.inf
    rounding = {"kernel": np.array([1.0]), "bias": np.array([2e-17])}  # of a derivative that is zero
    assert changes(rounding | {"bias": np.array([3e-17])}, rounding) < 1e-4
