"""The rules of attention."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule
from bpresearch.models.attention import CausalAttention, MaskedAttention, dot_product_attention

pytestmark = pytest.mark.usefixtures("float64")

OURS = {"attention_fn": dot_product_attention, "decode": False, "deterministic": False}


def attention(kind=nnx.MultiHeadAttention, **options):
    return lambda: kind(2, 6, **{**OURS, **options}, rngs=nnx.Rngs(0))


@pytest.fixture
def problem(random_model, normal):
    """`problem(build, *inputs)`: a model and its task."""

    def problem(build, *inputs):
        model = random_model(build)
        shape = nnx.eval_shape(lambda model: model(*inputs), model).shape
        return model, optax.squared_error, inputs if len(inputs) > 1 else inputs[0], normal(9, *shape)

    return problem


SELF = {
    "default": {},
    "normalize_qk": {"normalize_qk": True},
    "shared keys": {"num_kv_heads": 1},
    "sizes": {"qkv_features": 8, "out_features": 5, "use_bias": False},
    "dropout": {"dropout_rate": 0.4},
    "dropout of each weight": {"dropout_rate": 0.4, "broadcast_dropout": False, "num_kv_heads": 1},
    "dropout rate in evaluation": {"dropout_rate": 0.4, "deterministic": True},
}


@pytest.mark.parametrize("name", SELF)
def test_over_itself(name, problem, normal, assert_engines_agree):
    given = problem(attention(**SELF[name]), normal(1, 2, 5, 6))
    assert assert_engines_agree(*given) <= 1e-12


@pytest.mark.parametrize("name", ["default", "shared keys", "dropout"])
def test_with_flax_own_function(name, problem, normal, assert_engines_agree):
    """Which rounds to float32 in float64, too, unless it drops weights."""
    given = problem(attention(attention_fn=nnx.dot_product_attention, **SELF[name]), normal(1, 2, 5, 6))
    assert_engines_agree(*given)


@pytest.mark.parametrize("attention_fn", [dot_product_attention, nnx.dot_product_attention])
@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1, "dropout_rate": 0.3}])
def test_causal(attention_fn, options, problem, normal, assert_engines_agree):
    build = attention(CausalAttention, attention_fn=attention_fn, **options)
    assert_engines_agree(*problem(build, normal(1, 2, 5, 6)))


def test_no_cotangent_comes_from_the_future(normal, ask_rule):
    causal = partial(dot_product_attention, is_causal=True)
    _, back = ask_rule(causal, *(normal(seed, 1, 5, 2, 3) for seed in range(3)))
    _, (_, *bars) = back(jnp.zeros((1, 5, 2, 3)).at[0, 2].set(1))
    for bar in bars:
        assert np.all((np.abs(bar[0]).max(axis=(1, 2)) > 0) == [True, True, True, False, False])


@pytest.mark.parametrize("inputs", [2, 3])
def test_over_something_else(inputs, problem, normal, assert_engines_agree):
    x = normal(1, 2, 4, 6), normal(2, 2, 5, 3), normal(3, 2, 5, 3)
    assert assert_engines_agree(*problem(attention(in_kv_features=3), *x[:inputs])) <= 1e-12


MASKS = {
    "padding": np.arange(5) < np.array([5, 2])[:, None, None, None],  # (batch, 1, 1, keys)
    "each head": np.random.default_rng(0).random((2, 2, 5, 5)) < 0.6,
    "nothing allowed": np.zeros((1, 1, 5, 5), bool),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("attention_fn", [dot_product_attention, nnx.dot_product_attention])
def test_masks(name, attention_fn, problem, normal, assert_engines_agree):
    mask = jnp.broadcast_to(MASKS[name], (2, *MASKS[name].shape[1:-2], 5, 5))
    given = problem(attention(MaskedAttention, attention_fn=attention_fn), normal(1, 2, 5, 6), mask)
    assert_engines_agree(*given)


@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"dropout_rate": 0.3, "deterministic": True}],
)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_function_with_a_bias(options, kv_heads, normal, assert_engines_agree):
    q, k, v = normal(1, 2, 5, 4, 3), normal(2, 2, 5, kv_heads, 3), normal(3, 2, 5, kv_heads, 3)
    bias = normal(4, 2, 1, 5, 5) if kv_heads == 2 else normal(4, 2, 4, 5, 5)
    model = nnx.Sequential(partial(dot_product_attention, **options))
    y = normal(5, 2, 5, 4, 3)
    assert assert_engines_agree(model, optax.squared_error, (q, k, v, bias), y) <= 1e-12


def test_one_head_by_hand(gradient_by_rules, normal):
    """With P = softmax(q k^T / sqrt(d)) in loops over the elements, and y = P v."""
    q, k, v, y = (np.asarray(normal(seed, 3, 2)) for seed in (1, 2, 3, 4))
    logits = q @ k.T / np.sqrt(2)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y_bar = 2 / y.size * (p @ v - y)
    logits_bar = np.zeros((3, 3))
    for i, j, other in np.ndindex(3, 3, 3):
        logits_bar[i, j] += (y_bar[i] @ v[other]) * p[i, other] * ((other == j) - p[i, j])
    by_head = [jnp.asarray(x)[None, :, None] for x in (q, k, v, y)]
    model = nnx.Sequential(dot_product_attention)
    _, _, bars = gradient_by_rules(model, optax.squared_error, tuple(by_head[:3]), by_head[3])
    expected = logits_bar @ k / np.sqrt(2), logits_bar.T @ q / np.sqrt(2), p.T @ y_bar
    for found, right in zip(bars, expected, strict=True):
        np.testing.assert_allclose(found[0, :, 0], right, rtol=1e-12)


def test_finite_differences(problem, normal, assert_matches_finite_differences):
    build = attention(CausalAttention, normalize_qk=True, num_kv_heads=1)
    assert_matches_finite_differences(*problem(build, normal(1, 2, 4, 6)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("attention_fn", [dot_product_attention, nnx.dot_product_attention])
def test_rounding(dtype, attention_fn, problem, normal, assert_sound_in):
    options = {"attention_fn": attention_fn, "normalize_qk": True}
    given = problem(attention(CausalAttention, **options), normal(1, 2, 9, 6))
    assert_sound_in(dtype, *given)


def test_a_computation_dtype_of_its_own(random_model, normal, assert_sound_in):
    model = random_model(attention(dtype=jnp.bfloat16, num_kv_heads=1), dtype=None)
    x, y = normal(1, 2, 5, 6, dtype=jnp.float32), normal(2, 2, 5, 6, dtype=jnp.float32)
    assert_sound_in(None, model, optax.squared_error, x, y)


def test_the_model_function_is_flax_own_in_float32(normal):
    q, k, v = (normal(seed, 2, 5, 4, 3, dtype=jnp.float32) for seed in (1, 2, 3))
    k, v, bias = k[:, :, :2], v[:, :, :2], normal(4, 4, 5, 5, dtype=jnp.float32)
    mask = jnp.asarray(MASKS["padding"]) & jnp.ones((2, 1, 5, 5), bool)
    for options in ({"is_causal": True}, {"mask": mask}, {"mask": mask, "bias": bias[None]}):
        ours, flax = (f(q, k, v, **options) for f in (dot_product_attention, nnx.dot_product_attention))
        np.testing.assert_allclose(ours, flax, rtol=2e-5, atol=1e-6)


def test_dropout_drops_what_flax_drops(normal):
    q, k, v = (normal(seed, 2, 5, 2, 3) for seed in (1, 2, 3))
    for broadcast in (True, False):
        options = {"dropout_rate": 0.5, "dropout_rng": jax.random.key(3), "broadcast_dropout": broadcast}
        ours, flax = (f(q, k, v, **options) for f in (dot_product_attention, nnx.dot_product_attention))
        np.testing.assert_allclose(ours, flax, rtol=1e-5, atol=1e-6)


def test_a_call_that_sows_its_weights_goes_by_primitives(random_model, normal):
    model = random_model(attention())
    q, k, v = (normal(seed, 2, 5, 2, 3) for seed in range(3))
    with pytest.raises(chainrule.DoesNotApply, match="sown"):
        chainrule.rule_for(nnx.dot_product_attention)[0].forward(None, q, k, v, module=model)
