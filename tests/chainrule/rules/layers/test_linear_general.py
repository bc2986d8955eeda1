"""The rules of `nnx.LinearGeneral` and `nnx.Einsum`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")

# Options, and the shapes of input and output.
GENERAL = [
    (dict(in_features=4, out_features=3), (2, 5, 4), (2, 5, 3)),
    (dict(in_features=(5, 4), out_features=3, axis=(-2, -1)), (2, 5, 4), (2, 3)),
    (dict(in_features=4, out_features=(3, 2), use_bias=False), (2, 5, 4), (2, 5, 3, 2)),
    (dict(in_features=(2, 4), out_features=(3, 2), axis=(0, 2)), (2, 5, 4), (5, 3, 2)),
    (dict(in_features=(5, 4), out_features=3, axis=(-1, 1)), (2, 5, 4), (2, 3)),
    (dict(in_features=4, out_features=3, batch_axis={0: 2}), (2, 5, 4), (2, 5, 3)),
    (dict(in_features=5, out_features=(3, 2), axis=-2, batch_axis={0: 2}), (2, 5, 4), (2, 4, 3, 2)),
    (dict(in_features=4, out_features=3, batch_axis={0: 2, 1: 5}), (2, 5, 4), (2, 5, 3)),
    (dict(in_features=4, out_features=3), (4,), (3,)),
]

EINSUM = [
    (dict(einsum_str="nta,hab->nthb", kernel_shape=(3, 4, 2), bias_shape=(3, 2)), (2, 5, 4), (2, 5, 3, 2)),
    (dict(einsum_str="...a, ab -> ...b", kernel_shape=(4, 3), bias_shape=(3,)), (2, 5, 4), (2, 5, 3)),
    (dict(einsum_str="bta,ba->tb", kernel_shape=(2, 4), bias_shape=(2,)), (2, 5, 4), (5, 2)),
    (dict(einsum_str="...a,...ab->...b", kernel_shape=(1, 4, 3)), (2, 5, 4), (2, 5, 3)),
    (dict(einsum_str="nta,bc->nc", kernel_shape=(3, 2)), (2, 5, 4), (2, 2)),
    (dict(einsum_str="naa,ab->nb", kernel_shape=(4, 3), bias_shape=(3,)), (2, 4, 4), (2, 3)),
    (dict(einsum_str="nta,aa->nt", kernel_shape=(4, 4)), (2, 5, 4), (2, 5)),
    (dict(einsum_str="n,ab->nab", kernel_shape=(4, 3), bias_shape=(4, 3)), (2,), (2, 4, 3)),
    (dict(einsum_str="na,->na", kernel_shape=(), bias_shape=(1,)), (2, 4), (2, 4)),
]


LAYERS = [pytest.param(nnx.LinearGeneral, *case, id=f"general{i}") for i, case in enumerate(GENERAL)]
LAYERS += [pytest.param(nnx.Einsum, *case, id=case[0]["einsum_str"]) for case in EINSUM]


@pytest.fixture
def build(random_model):
    def build(kind, options, cast=jnp.float64, **more):
        # The default initialisation wants kernels of two axes at least.
        initial = {"kernel_init": nnx.initializers.normal()}
        return random_model(lambda: kind(**options, **initial, **more, rngs=nnx.Rngs(0)), dtype=cast)

    return build


@pytest.mark.parametrize(("kind", "options", "shape", "out"), LAYERS)
def test_as_autodiff(kind, options, shape, out, build, normal, assert_engines_agree):
    model, x, y = build(kind, options), normal(1, *shape), normal(2, *out)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-13


@pytest.mark.parametrize(
    ("kind", "case"), [(nnx.LinearGeneral, GENERAL[6]), (nnx.Einsum, EINSUM[0]), (nnx.Einsum, EINSUM[5])]
)
def test_finite_differences(kind, case, build, normal, assert_matches_finite_differences):
    options, shape, out = case
    x, y = normal(1, *shape), normal(2, *out)
    assert_matches_finite_differences(build(kind, options), optax.squared_error, x, y)


@pytest.mark.parametrize(("kind", "case", "options"), [
    (nnx.LinearGeneral, GENERAL[3], {"dtype": jnp.bfloat16}),
    (nnx.LinearGeneral, GENERAL[2], {"preferred_element_type": jnp.float32}),
    (nnx.Einsum, EINSUM[0], {"param_dtype": jnp.bfloat16}),
    (nnx.Einsum, EINSUM[4], {"preferred_element_type": jnp.float32}),
])  # fmt: skip
def test_mixed_precision(kind, case, options, build, normal, assert_sound_in):
    given, shape, out = case
    if "preferred_element_type" in options:
        given = {**given, "dtype": jnp.bfloat16}
    model, x = build(kind, given, None, **options), normal(1, *shape, dtype=jnp.float32)
    y = normal(2, *out, dtype=options.get("dtype", jnp.float32))
    with jax.numpy_dtype_promotion("standard"):
        assert_sound_in(None, model, optax.squared_error, x, y)


def test_a_matrix_product_is_a_linear_layer(build, normal, gradient_by_rules):
    """The three ways to write x W + b have one gradient, that of the normal equations."""
    x, y = np.asarray(normal(1, 6, 4)), np.asarray(normal(2, 6, 3))
    for kind, options in (
        (nnx.Linear, {"in_features": 4, "out_features": 3}),
        (nnx.LinearGeneral, {"in_features": 4, "out_features": 3}),
        (nnx.Einsum, {"einsum_str": "na,ab->nb", "kernel_shape": (4, 3), "bias_shape": (3,)}),
    ):
        model = build(kind, options)
        _, grads, x_bar = gradient_by_rules(model, optax.squared_error, x, y)
        kernel = np.asarray(model.kernel[...])
        y_bar = 2 / 18 * (x @ kernel + np.asarray(model.bias[...]) - y)
        np.testing.assert_allclose(grads["kernel"], x.T @ y_bar, rtol=1e-12)
        np.testing.assert_allclose(grads["bias"], y_bar.sum(0), rtol=1e-12)
        np.testing.assert_allclose(x_bar, y_bar @ kernel.T, rtol=1e-12)


def test_torch(build, normal, gradient_by_rules):
    torch = pytest.importorskip("torch")
    options, shape, out = EINSUM[0]
    model, x, y = build(nnx.Einsum, options), normal(1, *shape), normal(2, *out)
    leaves = (x, model.kernel[...], model.bias[...])
    inputs, kernel, bias = (torch.tensor(np.asarray(leaf), requires_grad=True) for leaf in leaves)
    outputs = torch.einsum("nta,hab->nthb", inputs, kernel) + bias
    torch.nn.functional.mse_loss(outputs, torch.tensor(np.asarray(y))).backward()
    _, grads, x_bar = gradient_by_rules(model, optax.squared_error, x, y)
    np.testing.assert_allclose(grads["kernel"], kernel.grad.numpy(), rtol=1e-10)
    np.testing.assert_allclose(grads["bias"], bias.grad.numpy(), rtol=1e-10)
    np.testing.assert_allclose(x_bar, inputs.grad.numpy(), rtol=1e-10)
