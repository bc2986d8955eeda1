"""Models as users of Flax build them: right ones are called right, and a wrong rule is found where it is.

The ten models are those of `tests/chainrule/user_models`; one of them here, all with `scripts/test --full`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpresearch import verify
from bpresearch.verify.detection.faults import planted
from bpresearch.verify.equations import equations_of
from tests.user_models import load, some

pytestmark = [
    pytest.mark.usefixtures("users_ranks"),
    pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning"),
]

NAMES = some("lora_mlp")


@pytest.mark.parametrize("name", NAMES)
def test_a_users_model_is_right(name):
    report = verify.model(*load(name).make())
    assert report.passed, str(report)
    assert report.culprits == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_in_any_rule_that_a_users_model_uses_is_found_and_placed(name):
    """Of layers and of primitives, one of each kind; those that change no gradient are left out."""
    model, loss_fn, x, y = load(name).make()
    with jax.enable_x64(True):
        high = verify.cast_model(model, "float64"), loss_fn, *verify.cast((x, y), "float64")
        places = {place.name: place for place in equations_of(*high)}
    plants = [planted(place, verify.FAULTS["scaled"].plant) for place in places.values()]
    check = verify.prepare(model, loss_fn, x, y, "float64", ["autodiff", "rule"], plants)
    assert check(model, x, y).passed
    for number, place in enumerate(places.values()):
        report = check(model, x, y, fault=number)
        changed = any(row.error > 1e-9 for row in report.rows if row.oracle == "autodiff")
        assert not changed or (report.passed is False and report.culprits == (place.where,)), place.where


class Decoder(nnx.Module):
    """Its own `__call__`, a raw parameter in a formula, a loop with a layer in it."""

    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.full(3, 1.5))
        self.cell = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x, *, train):
        def step(h, _):
            return jnp.tanh(self.cell(h)) * self.scale[...], None

        return jax.lax.scan(step, x, length=2)[0]


def loss(model, batch):
    """A training loss as `nnx.value_and_grad` takes it, with metrics."""
    output = model(batch["x"], train=True)
    return jnp.mean((output - batch["y"]) ** 2, axis=-1), {"largest": jnp.max(output)}


def test_a_training_loss():
    rng = np.random.default_rng(0)
    batch = {name: rng.normal(size=(4, 3)).astype(np.float32) for name in "xy"}
    report = verify.loss(loss, Decoder(nnx.Rngs(0)), batch)
    assert report.passed, str(report)
    assert {row.path for row in report.rows if row.oracle == "autodiff"} == {
        "cell.bias",
        "cell.kernel",
        "scale",
    }
    report = verify.loss(loss, Decoder(nnx.Rngs(0)), batch, dtype="float64", plant="scaled@tanh")
    assert report.passed is False
    (culprit,) = report.culprits
    assert culprit.startswith("tanh at ") and "test_user_models.py" in culprit
