"""Every planted fault is found, and the layer it is in is named."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import models, verify

LABELS = optax.losses.softmax_cross_entropy_with_integer_labels
SQUARES = optax.losses.squared_error


def perceptron(activation=nnx.relu):
    return models.mlp((6,), 4, widths=(5, 5), activation=activation, rngs=nnx.Rngs(0))


def residual():
    return models.residual_mlp((6,), 4, width=5, rngs=nnx.Rngs(0))


def convolutional(convolution=models.patch_convolution):
    options = {"channels": (3,), "kernel_sizes": (3,), "pooling": "max", "convolution": convolution}
    return models.cnn((8,), 4, **options, rngs=nnx.Rngs(0))


def normalised():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.LayerNorm(6, epsilon=1e-3, rngs=rngs), nnx.Linear(6, 4, rngs=rngs))


CASES = {
    "weight_not_transposed": (perceptron, LABELS, "layers.3"),
    "bias_mean_not_sum": (perceptron, LABELS, "layers.1"),
    "bias_forgotten": (convolutional, LABELS, "layers.1"),
    "activation_derivative_missing": (partial(perceptron, nnx.tanh), LABELS, "layers.2"),
    "activation_at_output": (partial(perceptron, nnx.silu), LABELS, "layers.2"),
    "gelu_constant": (partial(perceptron, nnx.gelu), LABELS, "layers.2"),
    "relu_sign": (perceptron, LABELS, "layers.2"),
    "loss_not_averaged": (perceptron, SQUARES, "loss"),
    "softmax_minus_onehot_missing": (perceptron, LABELS, "loss"),
    "kernel_not_flipped": (convolutional, LABELS, "layers.1"),
    "pool_mean_for_max": (convolutional, LABELS, "layers.3"),
    "one_element_scaled": (perceptron, LABELS, "layers.1"),
    "scaled": (convolutional, LABELS, "layers.1"),
    "epsilon_dropped": (normalised, SQUARES, "layers.0"),
}


def examples(build, loss):
    rng = np.random.default_rng(0)
    model = build()
    size = 8 if build is convolutional or getattr(build, "func", None) is convolutional else 6
    x = rng.normal(size=(5, size)).astype(np.float32)
    y = rng.integers(0, 4, 5) if loss is LABELS else rng.normal(size=(5, 4)).astype(np.float32)
    return model, loss, x, y


def test_every_fault_has_a_case():
    assert set(CASES) | set(verify.MUTATIONS) == set(verify.FAULTS)


@pytest.mark.parametrize("fault", CASES)
def test_fault_is_found_in_its_layer(fault):
    build, loss, layer = CASES[fault]
    report = verify.model(*examples(build, loss), dtype="float64", oracles=["autodiff", "rule"], plant=fault)
    assert not report.passed
    assert report.culprits == (layer,)
    assert layer in str(report)


def test_finite_differences_find_a_fault_without_autodiff():
    case = examples(perceptron, LABELS)
    report = verify.model(
        *case, dtype="float64", oracles=["finite differences"], plant="one_element_scaled@layers.3"
    )
    wrong = [row.path for row in report.rows if row.passed is False]
    assert wrong == ["layers.3.kernel"]


def test_fault_in_the_layer_asked_for():
    case = examples(perceptron, LABELS)
    report = verify.model(
        *case, dtype="float64", oracles=["autodiff", "rule"], plant="bias_forgotten@layers.5"
    )
    assert report.culprits == ("layers.5",)


def test_fault_inside_a_composite_is_not_blamed_on_the_composite():
    case = examples(residual, LABELS)
    where = "layers.3.branch.layers.0"
    report = verify.model(*case, dtype="float64", oracles=["autodiff", "rule"], plant=f"scaled@{where}")
    assert report.culprits == (where,)


def test_fault_in_xla_convolution_is_blamed_on_the_layer():
    case = examples(partial(convolutional, jax.lax.conv_general_dilated), LABELS)
    report = verify.model(*case, dtype="float64", oracles=["autodiff", "rule"], plant="kernel_not_flipped")
    assert report.culprits == ("layers.1",)


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        ("no_such_fault", "'no_such_fault' is not one of weight_not_transposed, "),
        ("pool_mean_for_max", "applies to nnx.max_pool, and the model has no such layer"),
        ("relu_sign@layers.1", "applies to nnx.relu, here at layers.2, layers.4; not at layers.1"),
    ],
)
def test_fault_that_fits_nowhere(plant, message):
    with pytest.raises(verify.FaultError, match=message):
        verify.model(*examples(perceptron, LABELS), plant=plant)
