"""The rules of convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from bpresearch import chainrule
from bpresearch.models import patch_convolution

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")

CONVOLUTIONS = {"xla": lax.conv_general_dilated, "patches": patch_convolution}
either_convolution = pytest.mark.parametrize("how", CONVOLUTIONS)

small = st.integers(1, 3)


def per_axis(axes, values):
    """An option of `nnx.Conv`: one value for all axes, or one for each."""
    return values | st.tuples(*[values] * axes)


def paddings(axes):
    number = st.integers(0, 2)
    pair = st.tuples(number, number)
    named = ["SAME", "VALID", "CIRCULAR", "REFLECT"] + (["CAUSAL"] if axes == 1 else [])
    return (
        st.sampled_from(named)
        | number
        | st.tuples(*[number | pair] * axes)
        | st.lists(pair, min_size=axes, max_size=axes)
    )


@st.composite
def convolutions(draw, axes):
    """The options of an `nnx.Conv`, its input's shape and whether it has a mask."""
    groups = draw(st.integers(1, 2))
    options = {
        "in_features": groups * draw(st.integers(1, 2)),
        "out_features": groups * draw(st.integers(1, 2)),
        "kernel_size": draw(st.tuples(*[small] * axes)),
        "strides": draw(per_axis(axes, small)),
        "padding": draw(paddings(axes)),
        "input_dilation": draw(per_axis(axes, st.integers(1, 2))),
        "kernel_dilation": draw(per_axis(axes, st.integers(1, 2))),
        "feature_group_count": groups,
        "use_bias": draw(st.booleans()),
    }
    batch = draw(st.lists(st.integers(1, 2), max_size=2))
    # Reflecting needs an element to reflect about.
    size = draw(st.tuples(*[st.integers(2, 5)] * axes))
    return options, (*batch, *size, options["in_features"]), draw(st.booleans())


def build(random_model, options, masked=False, **more):
    model = random_model(lambda: nnx.Conv(**options, **more, rngs=nnx.Rngs(0)))
    if masked:
        shape = model.kernel[...].shape
        mask = (np.arange(np.prod(shape)) % 3 > 0).astype(float).reshape(shape)
        model.mask = nnx.data(jnp.asarray(mask))
    return model


def output_shape(model, shape):
    """The shape of the output; (0,) where XLA does not know "SAME" on a dilated input."""
    try:
        return jax.eval_shape(lambda x: model(x), jax.ShapeDtypeStruct(shape, jnp.float64)).shape
    except ValueError as error:
        assert "String padding is not implemented for transposed convolution" in str(error)
        return (0,)


@either_convolution
@pytest.mark.parametrize("axes", [1, 2])
@settings(max_examples=15)
@given(data=st.data())
def test_any_options(how, axes, data, random_model, normal, assert_engines_agree):
    options, shape, masked = data.draw(convolutions(axes))
    model = build(random_model, options, masked, conv_general_dilated=CONVOLUTIONS[how])
    moved = output_shape(model, shape)
    assume(0 not in moved)
    y = normal(2, *moved)
    assert assert_engines_agree(model, optax.squared_error, normal(1, *shape), y) <= 1e-12


def test_causal_padding_comes_before_dilation(random_model, normal, assert_engines_agree):
    options = {"kernel_size": (2,), "padding": "CAUSAL", "strides": 2, "input_dilation": 2}
    options |= {"in_features": 2, "out_features": 3, "kernel_dilation": 2}
    model = build(random_model, options, conv_general_dilated=patch_convolution)
    x, y = normal(1, 2, 3, 2), normal(2, 2, 4, 3)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12


@either_convolution
def test_three_axes(how, random_model, normal, assert_engines_agree):
    options = {"in_features": 2, "out_features": 3, "kernel_size": (2, 1, 3), "strides": (1, 2, 1)}
    model = build(random_model, options, conv_general_dilated=CONVOLUTIONS[how])
    x, y = normal(1, 2, 3, 4, 3, 2), normal(2, 2, 3, 2, 3, 3)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12


@either_convolution
@pytest.mark.parametrize("padding", ["CIRCULAR", "REFLECT", "CAUSAL", "SAME"])
def test_padding_wider_than_the_input(
    how, padding, random_model, normal, assert_engines_agree, assert_matches_finite_differences
):
    """A wide window sees the same element more than once."""
    options = {"in_features": 1, "out_features": 2, "kernel_size": (5,), "kernel_dilation": 2}
    how = CONVOLUTIONS[how]
    model = build(random_model, options, padding=padding, conv_general_dilated=how)
    x, y = normal(1, 2, 3, 1), normal(2, 2, 3, 2)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12
    assert_matches_finite_differences(model, optax.squared_error, x, y)


@either_convolution
def test_a_signal_of_one_element(how, random_model, normal, assert_engines_agree):
    options = {"in_features": 1, "out_features": 1, "kernel_size": (3,)}
    for padding in ("SAME", "CIRCULAR", "CAUSAL", 1, [(2, 0)]):
        how_ = CONVOLUTIONS[how]
        model = build(random_model, options, padding=padding, conv_general_dilated=how_)
        x, y = normal(1, 2, 1, 1), normal(2, 2, 1, 1)
        assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12


@either_convolution
def test_a_kernel_over_everything_is_a_linear_layer(how, random_model, normal, gradient_by_rules):
    """y = x . W: W_bar and x_bar in closed form."""
    options = {"in_features": 2, "out_features": 3, "kernel_size": (4, 5), "padding": "VALID"}
    model = build(random_model, options, conv_general_dilated=CONVOLUTIONS[how])
    x, y = normal(1, 6, 4, 5, 2), normal(2, 6, 1, 1, 3)
    _, grads, x_bar = gradient_by_rules(model, optax.squared_error, x, y)
    rows, kernel = np.asarray(x).reshape(6, -1), np.asarray(model.kernel[...]).reshape(-1, 3)
    y_bar = 2 / y.size * (rows @ kernel + np.asarray(model.bias[...]) - np.asarray(y)[:, 0, 0])
    np.testing.assert_allclose(grads["kernel"].reshape(-1, 3), rows.T @ y_bar, rtol=1e-12)
    np.testing.assert_allclose(grads["bias"], y_bar.sum(0), rtol=1e-12)
    np.testing.assert_allclose(x_bar.reshape(6, -1), y_bar @ kernel.T, rtol=1e-12)


@either_convolution
@pytest.mark.parametrize("array", [jnp.asarray, np.asarray])
def test_a_masked_weight_has_no_gradient(how, array, normal, gradient_by_rules):
    mask = array(np.tri(3, 4).reshape(3, 2, 2))
    model = nnx.Conv(
        2,
        2,
        (3,),
        mask=mask,
        param_dtype=jnp.float64,
        conv_general_dilated=CONVOLUTIONS[how],
        rngs=nnx.Rngs(0),
    )
    x, y = normal(1, 4, 5, 2), normal(2, 4, 5, 2)
    _, grads, _ = gradient_by_rules(model, optax.squared_error, x, y)
    np.testing.assert_array_equal(grads["kernel"] != 0, mask != 0)


@either_convolution
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding(how, dtype, random_model, normal, assert_sound_in):
    options = {"in_features": 3, "out_features": 4, "kernel_size": (3, 3)}
    model = build(random_model, options, conv_general_dilated=CONVOLUTIONS[how])
    x, y = normal(1, 4, 6, 6, 3), normal(2, 4, 6, 6, 4)
    assert_sound_in(dtype, model, optax.squared_error, x, y)


@either_convolution
def test_a_bfloat16_layer_with_float32_parameters(how, random_model, normal, assert_sound_in):
    how = CONVOLUTIONS[how]
    model = random_model(
        lambda: nnx.Conv(
            2,
            3,
            (3,),
            padding="CIRCULAR",
            dtype=jnp.bfloat16,
            conv_general_dilated=how,
            rngs=nnx.Rngs(0),
        ),
        dtype=None,
    )
    x, y = normal(1, 4, 6, 2, dtype=jnp.float32), normal(2, 4, 6, 3, dtype=jnp.bfloat16)
    assert_sound_in(None, model, optax.squared_error, x, y)


def test_a_wider_output_type(random_model, normal, assert_sound_in, ask_rule):
    """`preferred_element_type`: products of bfloat16 numbers, summed and given out in float32."""
    options = {"dtype": jnp.bfloat16, "preferred_element_type": jnp.float32, "use_bias": False}
    model = random_model(lambda: nnx.Conv(2, 3, (3,), **options, rngs=nnx.Rngs(0)), dtype=None)
    x, y = normal(1, 4, 6, 2, dtype=jnp.float32), normal(2, 4, 6, 3, dtype=jnp.float32)
    found, expected = ask_rule(model, x)[0], model(x)
    assert found.dtype == expected.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)
    with jax.numpy_dtype_promotion("standard"):
        assert_sound_in(None, model, optax.squared_error, x, y)


def test_a_convolution_of_ones_own_goes_by_primitives(random_model, normal, assert_engines_agree):
    def my_convolution(x, kernel, *args, **options):
        return lax.conv_general_dilated(x, kernel, *args, **options)

    options = {"in_features": 1, "out_features": 1, "kernel_size": (3,)}
    model = build(random_model, options, conv_general_dilated=my_convolution)
    with pytest.raises(chainrule.DoesNotApply, match="my_convolution"):
        chainrule.rule_for(model)[0].forward(model, normal(1, 2, 4, 1))
    assert_engines_agree(model, optax.squared_error, normal(1, 2, 4, 1), normal(2, 2, 4, 1))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"kernel_size": (3, 3), "padding": "CAUSAL"}, (4, 4)),
        ({"kernel_size": (3, 3), "padding": [(1, 1)]}, (4, 4)),
        ({"kernel_size": (3,), "padding": "SIDEWAYS"}, (4,)),
        ({"kernel_size": (3,), "mask": np.ones((3, 1, 2))}, (4,)),
    ],
)
def test_what_the_layer_refuses_the_rule_refuses(options, size, normal, gradient_by_rules):
    model = nnx.Conv(1, 1, **options, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    x = normal(1, 2, *size, 1)
    with pytest.raises(Exception) as refusal:  # whatever Flax and XLA raise
        jax.eval_shape(lambda x: model(x), x)
    with pytest.raises(refusal.type):
        gradient_by_rules(model, optax.squared_error, x, x)
