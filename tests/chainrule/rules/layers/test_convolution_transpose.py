"""The rule of `nnx.ConvTranspose`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")

small = st.integers(1, 3)


@st.composite
def transposed_convolutions(draw, axes):
    """The options of an `nnx.ConvTranspose`, its input's shape and whether it has a mask."""
    number = st.integers(0, 2)
    pairs = st.tuples(*[number | st.tuples(number, number)] * axes)
    options = {
        "in_features": draw(st.integers(1, 2)),
        "out_features": draw(st.integers(1, 2)),
        "kernel_size": draw(st.tuples(*[small] * axes)),
        "strides": draw(small | st.tuples(*[small] * axes)),
        "padding": draw(st.sampled_from(["SAME", "VALID", "CIRCULAR"]) | number | pairs),
        "kernel_dilation": draw(st.integers(1, 2) | st.tuples(*[st.integers(1, 2)] * axes)),
        "use_bias": draw(st.booleans()),
        "transpose_kernel": draw(st.booleans()),
    }
    batch = draw(st.lists(st.integers(1, 2), max_size=2))
    # Wide enough for any window.
    size = draw(st.tuples(*[st.integers(5, 6)] * axes))
    return options, (*batch, *size, options["in_features"]), draw(st.booleans())


def build(random_model, options, masked=False, dtype=jnp.float64):
    model = random_model(lambda: nnx.ConvTranspose(**options, rngs=nnx.Rngs(0)), dtype=dtype)
    if masked:
        shape = model.kernel[...].shape
        model.mask = nnx.data(jnp.asarray(np.arange(np.prod(shape)) % 3 > 0, float).reshape(shape))
    return model


def random_targets(model, x, normal):
    return normal(2, *jax.eval_shape(lambda x: model(x), x).shape)


@pytest.mark.parametrize("axes", [1, 2])
@settings(max_examples=8)
@given(data=st.data())
def test_any_options(axes, data, random_model, normal, assert_engines_agree):
    options, shape, masked = data.draw(transposed_convolutions(axes))
    model, x = build(random_model, options, masked), normal(1, *shape)
    y = random_targets(model, x, normal)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR", [(1, 0), (0, 1), (1, 1)]])
def test_three_axes(padding, random_model, normal, assert_engines_agree):
    options = {"in_features": 2, "out_features": 3, "kernel_size": (2, 1, 3), "strides": (1, 2, 1)}
    model = build(random_model, {**options, "padding": padding})
    x = normal(1, 2, 3, 4, 3, 2)
    y = random_targets(model, x, normal)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12


@pytest.mark.parametrize("transpose_kernel", [False, True])
@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
def test_finite_differences(
    padding, transpose_kernel, random_model, normal, assert_engines_agree, assert_matches_finite_differences
):
    """A window wider than the input: circular padding wraps around more than once."""
    options = {"in_features": 1, "out_features": 2, "kernel_size": (5,), "kernel_dilation": 2, "strides": 2}
    model = build(random_model, {**options, "padding": padding, "transpose_kernel": transpose_kernel})
    x = normal(1, 2, 3, 1)
    y = random_targets(model, x, normal)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12
    assert_matches_finite_differences(model, optax.squared_error, x, y)


def test_the_transpose_of_a_convolution(random_model, normal, ask_rule):
    """With `transpose_kernel` and circular padding the layer T is the adjoint of `nnx.Conv`, C.

    So T's x_bar is what C makes of T's y_bar.
    """
    options = {"in_features": 2, "out_features": 3, "kernel_size": (3,), "padding": "CIRCULAR"}
    convolution = random_model(lambda: nnx.Conv(**options, use_bias=False, rngs=nnx.Rngs(0)))
    options |= {"in_features": 3, "out_features": 2, "transpose_kernel": True, "use_bias": False}
    model = build(random_model, options)
    model.kernel[...] = convolution.kernel[...]
    x, y_bar = normal(1, 2, 6, 3), normal(2, 2, 6, 2)
    _, back = ask_rule(model, x)
    _, x_bar = back(y_bar)
    np.testing.assert_allclose(x_bar, convolution(y_bar), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("cast", "options"), [
    (jnp.float32, {}),
    (jnp.bfloat16, {"padding": "CIRCULAR"}),
    (None, {"dtype": jnp.bfloat16}),
    (None, {"dtype": jnp.bfloat16, "preferred_element_type": jnp.float32, "use_bias": False}),
])  # fmt: skip
def test_rounding(cast, options, random_model, normal, assert_sound_in):
    options = {"in_features": 3, "out_features": 4, "kernel_size": (3, 3), "strides": 2, **options}
    model = build(random_model, options, dtype=None)
    x = normal(1, 2, 5, 5, 3, dtype=jnp.float32)
    y = normal(
        2, 2, 10, 10, 4, dtype=options.get("preferred_element_type", options.get("dtype", jnp.float32))
    )
    with jax.numpy_dtype_promotion("standard"):
        assert_sound_in(cast, model, optax.squared_error, x, y)


def test_a_mask_of_another_shape_is_refused(normal, gradient_by_rules):
    model = nnx.ConvTranspose(1, 1, (3,), mask=np.ones((3, 1, 2)), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    x = normal(1, 2, 4, 1)
    with pytest.raises(ValueError, match="Mask needs to have the same shape"):  # Flax's own
        gradient_by_rules(model, optax.squared_error, x, x)
