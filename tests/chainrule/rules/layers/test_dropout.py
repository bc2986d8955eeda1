"""The rule of `nnx.Dropout`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule
from bpresearch.functional import split

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")


def build(rngs=None, **options):
    rngs = rngs or nnx.Rngs(0, noise=1)
    return nnx.Sequential(
        nnx.Linear(5, 6, param_dtype=jnp.float64, rngs=rngs),
        nnx.Dropout(0.4, **options, rngs=rngs),
        nnx.Linear(6, 6, param_dtype=jnp.float64, rngs=rngs),
        nnx.Dropout(0.2, rng_collection="noise", rngs=rngs),
    )


@pytest.mark.parametrize("options", [{}, {"broadcast_dims": (0, -1)}, {"deterministic": True}])
def test_the_same_mask_as_autodiff(options, normal, assert_engines_agree):
    """And the same counters after it, which the fixture compares."""
    x, y = normal(1, 3, 4, 5), normal(2, 3, 4, 6)
    assert assert_engines_agree(build(**options), optax.squared_error, x, y) <= 1e-12


def test_finite_differences(normal, assert_matches_finite_differences):
    assert_matches_finite_differences(build(), optax.squared_error, normal(1, 3, 5), normal(2, 3, 6))


def test_evaluation_mode_draws_nothing(normal, assert_engines_agree):
    model = build()
    model.eval()
    x, y = normal(1, 4, 5), normal(2, 4, 6)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12
    graphdef, params, state = split(model)
    (_, after), _ = chainrule.gradient(graphdef, optax.squared_error)(params, state, (x, y))
    assert after["layers"][1]["rngs"]["count"] == state["layers"][1]["rngs"]["count"]


def test_each_step_draws_another_mask(normal):
    model = nnx.Sequential(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    graphdef, params, state = split(model)
    gradient = jax.jit(chainrule.gradient(graphdef, optax.squared_error, inputs=True))
    x, y = normal(1, 8, 8), jnp.zeros((8, 8))
    (_, state), (_, first) = gradient(params, state, (x, y))
    (_, state), (_, second) = gradient(params, state, (x, y))
    count = state["layers"][0]["rngs"]["count"]
    assert count == 2
    kept = np.asarray(first) != 0
    assert 16 < kept.sum() < 48 and (kept != (np.asarray(second) != 0)).any()
    # What is kept is doubled: y = 2 x, so x_bar = 2 * 2 * 2 x / 64.
    np.testing.assert_allclose(np.asarray(first)[kept], (np.asarray(x) / 8)[kept], rtol=1e-14)


@pytest.mark.parametrize(("rate", "factor"), [(0.0, 1), (1.0, 0)])
def test_certain_rates(rate, factor, normal, assert_engines_agree, gradient_by_rules):
    """Nothing is dropped, or everything; no key is drawn for it."""
    model = nnx.Sequential(nnx.Dropout(rate, rngs=nnx.Rngs(0)))
    x, y = normal(1, 4, 5), normal(2, 4, 5)
    assert_engines_agree(model, optax.squared_error, x, y)
    _, _, x_bar = gradient_by_rules(model, optax.squared_error, x, y)
    np.testing.assert_allclose(x_bar, factor * 2 / 20 * (x - y), rtol=1e-14)


def test_a_key_or_a_stream_of_the_callers(normal):
    layer, x = nnx.Dropout(0.5), normal(1, 4, 5)
    key = jax.random.key(3)
    y, mask = chainrule.rule_for(layer)[0].forward(layer, x, rngs=key)
    np.testing.assert_array_equal(y, layer(x, rngs=key))
    streams = nnx.Rngs(dropout=7), nnx.Rngs(dropout=7)
    y, mask = chainrule.rule_for(layer)[0].forward(layer, x, rngs=streams[0])
    np.testing.assert_array_equal(y, layer(x, rngs=streams[1]))
    _, x_bar = chainrule.rule_for(layer)[0].backward(layer, mask, jnp.ones_like(x))
    np.testing.assert_array_equal(x_bar, jnp.where(y == 0, 0, 2.0))


@pytest.mark.parametrize(("options", "message"), [
    ({"deterministic": None}, "deterministic"),
    ({}, "rngs"),
])  # fmt: skip
def test_what_is_missing_is_named_by_flax(options, message, normal, gradient_by_rules):
    model, x = nnx.Sequential(nnx.Dropout(0.5, **options)), normal(1, 4, 5)
    with pytest.raises(ValueError, match=message):
        gradient_by_rules(model, optax.squared_error, x, x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding(dtype, normal, assert_sound_in):
    assert_sound_in(dtype, build(), optax.squared_error, normal(1, 8, 5), normal(2, 8, 6))
