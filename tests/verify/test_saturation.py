"""Right gradients that are zero but for rounding are not rejected, and wrong ones beside them are."""

import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import verify

LABELS = optax.losses.softmax_cross_entropy_with_integer_labels
INPUTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
CLASSES = np.array([0, 2, 1, 0])


def dense(features, scale):
    layer = nnx.Linear(3, features, rngs=nnx.Rngs(0))
    layer.kernel[...] = scale * layer.kernel[...]
    return layer


MODELS = {
    "saturated tanh": (lambda scale: nnx.Sequential(dense(3, scale), nnx.tanh), optax.losses.squared_error),
    "saturated softmax": (lambda scale: nnx.Sequential(dense(3, scale), nnx.softmax), LABELS),
    "saturated cross entropy": (lambda scale: dense(3, scale), LABELS),
    "standardized to one number": (lambda scale: nnx.Sequential(dense(1, scale), nnx.standardize), None),
    "bias in front of a normalization": (
        lambda scale: nnx.Sequential(dense(3, scale), nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.relu6),
        optax.losses.squared_error,
    ),
}


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_right_gradients_are_accepted_at_every_scale(name, dtype):
    build, loss_fn = MODELS[name]
    loss_fn = loss_fn or optax.losses.squared_error
    y = CLASSES if loss_fn is LABELS else np.linspace(0, 1, 4)[:, None].repeat(1 if "one" in name else 3, 1)
    check = verify.prepare(build(1.0), loss_fn, INPUTS, y.astype(np.float32 if y.ndim > 1 else int), dtype)
    for scale in (1e-3, 1.0, 8.0, 12.0, 18.0, 30.0, 100.0, 1e3):
        report = check(build(scale), INPUTS, y)
        assert report.passed, f"{scale}\n{report}"


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_a_wrong_rule_beside_saturated_ones_is_named(scale):
    build, loss_fn = MODELS["saturated tanh"]
    model = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(1)), nnx.tanh, build(scale))
    check = verify.prepare(model, loss_fn, INPUTS, INPUTS, "float64", plants=["scaled@layers.0"])
    assert check(model, INPUTS, INPUTS, fault=0).culprits == ("layers.0",)


def test_where_autodiff_does_not_run_in_a_precision_nothing_is_said_of_it():
    """Optax's projection on the simplex has a `custom_jvp` that mixes bfloat16 with float32."""
    report = verify.model(
        nnx.Linear(3, 3, rngs=nnx.Rngs(0)), optax.losses.multiclass_sparsemax_loss, INPUTS, CLASSES,
        dtype="bfloat16",
    )  # fmt: skip
    assert report.passed, str(report)
    rounding = [row for row in report.rows if row.oracle == "rounding"]
    assert {row.passed for row in rounding} == {None}
    assert all(row.detail.startswith("autodiff fails in bfloat16: ") for row in rounding)
