"""The rules of `nnx.Embed` and of the output layer that shares its table."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule
from bpresearch.models import Unembed

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")


def tokens(*shape, limit=7, dtype=np.int32):
    return jnp.asarray(np.random.default_rng(0).integers(0, limit, shape).astype(dtype))


@pytest.fixture
def embed(random_model):
    def embed(count=7, features=3, dtype=jnp.float64, **options):
        return random_model(lambda: nnx.Embed(count, features, **options, rngs=nnx.Rngs(0)), dtype=dtype)

    return embed


@pytest.mark.parametrize(("count", "shape"), [(7, ()), (7, (2, 3, 4)), (1, (5,))])
def test_as_autodiff(count, shape, embed, normal, assert_engines_agree):
    x = tokens(*shape, limit=count)
    assert assert_engines_agree(embed(count), optax.squared_error, x, normal(2, *shape, 3)) <= 1e-13


def test_each_row_receives_the_sum_over_its_uses(embed, normal, gradient_by_rules):
    model, x, y = embed(), jnp.array([1, 4, 1, 6, -1]), normal(2, 5, 3)
    _, grads, x_bar = gradient_by_rules(model, optax.squared_error, x, y)
    table = np.asarray(model.embedding[...])
    y_bar = 2 / 15 * (table[np.asarray(x)] - np.asarray(y))
    expected = np.zeros((7, 3))
    for index, row in zip(np.asarray(x), y_bar, strict=True):
        expected[index] += row
    np.testing.assert_allclose(grads["embedding"], expected, rtol=1e-13)
    assert x_bar is None


def test_an_index_past_the_end_has_no_row(embed, ask_rule):
    model, x = embed(), jnp.array([2, 7, 99])
    y, back = ask_rule(model, x)
    np.testing.assert_array_equal(jnp.isnan(y[:, 0]), [False, True, True])
    grads, _ = back(jnp.ones_like(y))
    np.testing.assert_array_equal(grads["embedding"].sum(1), [0, 0, 3, 0, 0, 0, 0])


def test_finite_differences(embed, normal, assert_matches_finite_differences):
    x, y = tokens(2, 5), normal(2, 2, 5, 3)
    assert_matches_finite_differences(embed(), optax.squared_error, x, y)


class LanguageModel(nnx.Module):
    """Embedding, a hidden layer, and the embedding again as the output layer."""

    def __init__(self, rngs, **options):
        self.embed = nnx.Embed(7, 3, **options, rngs=rngs)
        self.layers = nnx.Sequential(
            self.embed, nnx.Linear(3, 3, **options, rngs=rngs), nnx.tanh, Unembed(self.embed)
        )

    def __call__(self, x):
        return self.layers(x)


@pytest.fixture
def language_model(random_model):
    def language_model(cast=jnp.float64, **options):
        return random_model(lambda: LanguageModel(nnx.Rngs(0), **options), dtype=cast)

    return language_model


def test_tied_weights(language_model, assert_engines_agree, assert_matches_finite_differences):
    """The table's gradient is the sum over its use at the input and at the output."""
    model, loss = language_model(), optax.softmax_cross_entropy_with_integer_labels
    x, y = tokens(4, 5), tokens(4, 5)
    with jax.numpy_dtype_promotion("standard"):
        assert assert_engines_agree(model, loss, x, y) <= 1e-12
        assert_matches_finite_differences(model, loss, x, y)
    _, grads = chainrule.value_and_grad(model, loss, x, y)
    assert set(grads) == {"embed", "layers"}


@pytest.mark.parametrize(("dtype", "options"), [
    (jnp.float32, {}),
    (jnp.bfloat16, {}),
    (None, {"param_dtype": jnp.float32, "dtype": jnp.bfloat16}),
])  # fmt: skip
def test_rounding(dtype, options, language_model, normal, assert_sound_in):
    model, x = language_model(None, **options), tokens(16, 5)
    y = normal(2, 16, 5, 7, dtype=jnp.float32 if dtype is None else jnp.float64)
    with jax.numpy_dtype_promotion("standard"):
        assert_sound_in(dtype, model, optax.squared_error, x, y)


def test_torch(embed, normal, gradient_by_rules):
    torch = pytest.importorskip("torch")
    model, x, y = embed(), tokens(4, 5, dtype=np.int64), normal(2, 4, 5, 3)
    twin = torch.nn.Embedding(7, 3, dtype=torch.float64)
    with torch.no_grad():
        twin.weight.copy_(torch.tensor(np.asarray(model.embedding[...])))
    torch.nn.functional.mse_loss(twin(torch.tensor(np.asarray(x))), torch.tensor(np.asarray(y))).backward()
    _, grads, _ = gradient_by_rules(model, optax.squared_error, x, y)
    np.testing.assert_allclose(grads["embedding"], twin.weight.grad.numpy(), rtol=1e-10)


def test_real_numbers_are_no_tokens(embed, normal, gradient_by_rules):
    with pytest.raises(ValueError, match="Input type must be an integer"):  # Flax's own
        gradient_by_rules(embed(), optax.squared_error, normal(1, 4), normal(2, 4, 3))
