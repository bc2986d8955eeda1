"""Random models of the traced kind: reproducible, small, finite, and both engines differentiate them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpresearch import autodiff, chainrule
from bpresearch.functional import TrainingLoss, split
from bpresearch.verify.casting import cast_model
from bpresearch.verify.detection import traced_models
from bpresearch.verify.detection.cases import shapes_of
from bpresearch.verify.detection.traced_blocks import BLOCKS, LARGEST, Block
from bpresearch.verify.precision import UNOPTIMIZED, cast


@pytest.mark.parametrize("make", BLOCKS, ids=lambda make: make.__name__)
def test_a_block_takes_every_shape_and_gives_one_that_the_next_takes(make, rng):
    for shape in ((1, 1, 1), (2, LARGEST, 3)):
        parts, apply = make(rng, *shape)
        model = traced_models.TracedModel("", [Block(apply, parts)])
        outputs = shapes_of(model, jax.ShapeDtypeStruct(shape, np.float32))
        assert outputs.shape[0] == shape[0]
        assert all(1 <= n <= LARGEST for n in outputs.shape[1:])
        assert outputs.dtype == np.float32


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_a_seed_names_a_model(monkeypatch):
    monkeypatch.setattr(traced_models, "is_finite", lambda *args: True)
    (model, _, batch), (again, _, same), (other, _, _) = (
        traced_models.random_traced_model(np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert model.name == again.name != other.name
    for a, b in zip(
        jax.tree.leaves((nnx.state(model), batch)), jax.tree.leaves((nnx.state(again), same)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {"float32"}


def test_what_is_not_finite_is_drawn_again(monkeypatch):
    verdicts = iter([False, False, True])
    monkeypatch.setattr(traced_models, "is_finite", lambda *args: next(verdicts))
    rng = np.random.default_rng(1)
    name = traced_models.random_traced_model(rng)[0].name
    rng = np.random.default_rng(1)
    assert name == [traced_models._drawn(rng)[0].name for _ in range(3)][-1]
    assert next(verdicts, None) is None

    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    monkeypatch.undo()
    assert traced_models.is_finite(model, lambda model, x: jnp.sum(model(x)), np.ones((1, 1)))
    assert not traced_models.is_finite(
        model, lambda model, x: jnp.log(0.0 * jnp.sum(model(x))), np.ones((1, 1))
    )


def compare(model, loss, batch):
    """Both engines' gradients in float64: within 1e-9 of the leaf, or of 1e-6 of the largest of all."""
    with jax.enable_x64(True):
        graphdef, params, state = split(cast_model(model, "float64"))
        data = (), cast(batch, "float64")

        def both(params, state, data):
            of_loss = TrainingLoss(loss)
            return [e.gradient(graphdef, of_loss)(params, state, data)[1] for e in (autodiff, chainrule)]

        right, found = jax.jit(both, compiler_options=UNOPTIMIZED)(params, state, data)
    limit = 2e-2 if "half_precision" in model.name else 1e-9
    largest = max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(right))
    for (path, a), b in zip(jax.tree.leaves_with_path(right), jax.tree.leaves(found), strict=True):
        bound = limit * max(np.max(np.abs(a)), 1e-6 * largest)
        assert np.max(np.abs(a - b)) <= bound, f"{model.name}{jax.tree_util.keystr(path)}"


def test_both_engines_agree():
    rng = np.random.default_rng()
    compare(*traced_models.random_traced_model(rng))


@pytest.mark.full
def test_both_engines_agree_on_many():
    seed = np.random.default_rng().integers(2**31)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for _ in range(100):
        compare(*traced_models.random_traced_model(rng))
