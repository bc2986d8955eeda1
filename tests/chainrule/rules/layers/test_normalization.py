"""The rules of normalization layers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule
from bpresearch.functional import split
from bpresearch.models import Masked

pytestmark = pytest.mark.usefixtures("float64")  # Flax itself promotes float32 to float64 here

# Each layer on an input of shape (2, 3, 4, 6), with every option of its constructor.
SHAPE = (2, 3, 4, 6)
LAYERS = {
    "layer": partial(nnx.LayerNorm, 6),
    "layer_plain": partial(nnx.LayerNorm, 6, use_scale=False, use_bias=False, epsilon=0.1),
    "layer_scale_only": partial(nnx.LayerNorm, 6, use_bias=False, use_fast_variance=False),
    "layer_bias_only": partial(nnx.LayerNorm, 6, use_scale=False),
    "layer_axes": partial(nnx.LayerNorm, 6, reduction_axes=(1, -1)),
    "layer_other_features": partial(nnx.LayerNorm, 3, reduction_axes=(2, 3), feature_axes=1),
    "layer_many_features": partial(nnx.LayerNorm, 24, reduction_axes=(3, 2), feature_axes=(-1, 2)),
    "layer_batch_axis": partial(nnx.LayerNorm, 6, reduction_axes=0, use_fast_variance=False),
    "rms": partial(nnx.RMSNorm, 6),
    "rms_plain": partial(nnx.RMSNorm, 6, use_scale=False, epsilon=0.1),
    "rms_axes": partial(nnx.RMSNorm, 4, reduction_axes=(1, 3), feature_axes=2, use_fast_variance=False),
    "group": partial(nnx.GroupNorm, 6, num_groups=3),
    "group_size": partial(nnx.GroupNorm, 6, num_groups=None, group_size=3, use_fast_variance=False),
    "group_plain": partial(nnx.GroupNorm, 6, num_groups=2, use_scale=False, use_bias=False, epsilon=0.1),
    "group_one": partial(nnx.GroupNorm, 6, num_groups=1, reduction_axes=(1, -1)),
    "group_each": partial(nnx.GroupNorm, 6, num_groups=6, reduction_axes=(2, 3)),
    "group_rows": partial(nnx.GroupNorm, 6, num_groups=2, reduction_axes=(0, 2, 3)),
    "instance": partial(nnx.InstanceNorm, 6),
    "instance_plain": partial(nnx.InstanceNorm, 6, use_scale=False, use_bias=False, epsilon=0.1),
    "instance_axes": partial(nnx.InstanceNorm, 4, feature_axes=2, use_fast_variance=False),
    "instance_two_axes": partial(nnx.InstanceNorm, 24, feature_axes=(2, 3)),
    "batch": partial(nnx.BatchNorm, 6),
    "batch_slow": partial(nnx.BatchNorm, 6, use_fast_variance=False, momentum=0.3, epsilon=0.1),
    "batch_axis": partial(nnx.BatchNorm, 3, axis=1, use_bias=False),
    "batch_plain": partial(nnx.BatchNorm, 4, axis=-2, use_scale=False, use_bias=False),
    "batch_running": partial(nnx.BatchNorm, 6, use_running_average=True),
    "batch_running_plain": partial(nnx.BatchNorm, 6, use_running_average=True, use_scale=False),
}


@pytest.fixture
def layer(random_model):
    def layer(build, **options):
        def wrapped():
            return build(rngs=nnx.Rngs(0))

        model = random_model(wrapped, **options)
        if isinstance(model, nnx.BatchNorm):
            model.var[...] = jnp.abs(model.var[...]) + 0.5
        return model

    return layer


@pytest.fixture
def several(layer, side_by_side, normal):
    """Layers side by side, an input and targets."""

    def several(*names):
        return (
            side_by_side(*(layer(LAYERS[name]) for name in names)),
            2 * normal(1, *SHAPE) + 1,
            normal(2, 144 * len(names)),
        )

    return several


@pytest.mark.parametrize("kind", ["layer", "rms", "group", "instance", "batch"])
def test_as_autodiff(kind, several, assert_engines_agree):
    model, x, y = several(*(name for name in LAYERS if name.startswith(kind)))
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-11


def test_with_a_mask(layer, side_by_side, normal, assert_engines_agree):
    """Masked elements take no part in the statistics, but are normalised all the same."""
    names = ["layer", "layer_axes", "layer_scale_only", "rms", "rms_axes", "group", "group_size"]
    names += ["instance", "instance_axes", "batch", "batch_slow", "batch_axis", "batch_running"]
    model = side_by_side(*(Masked(layer(LAYERS[name])) for name in names))
    x, y = 2 * normal(1, *SHAPE) + 1, normal(2, 144 * len(names))
    mask = normal(3, *SHAPE) > -0.5
    assert assert_engines_agree(model, optax.squared_error, (x, mask), y) <= 1e-11


def test_a_mask_is_broadcast(layer, normal, assert_engines_agree):
    model, mask = Masked(layer(LAYERS["layer"])), jnp.arange(6) > 1
    inputs = 2 * normal(1, *SHAPE) + 1, mask
    with jax.numpy_rank_promotion("allow"):
        assert assert_engines_agree(model, optax.squared_error, inputs, normal(2, *SHAPE)) <= 1e-11


def test_finite_differences(several, assert_matches_finite_differences):
    model, x, y = several("layer_axes", "rms", "group", "instance", "batch", "batch_slow", "batch_running")
    assert_matches_finite_differences(model, optax.squared_error, x, y)


@pytest.mark.parametrize(("dtype", "names"), [
    (jnp.float32, ("layer", "rms", "group", "instance", "batch")),
    (jnp.bfloat16, ("layer", "rms", "group", "batch_running")),
])  # fmt: skip
def test_rounding(dtype, names, several, assert_sound_in):
    model, x, y = several(*names)
    assert_sound_in(dtype, model, optax.squared_error, x, y)


@pytest.mark.parametrize(("name", "x_dtype", "param_dtype", "dtype"), [
    ("layer", jnp.float32, jnp.float32, jnp.bfloat16),
    ("batch", jnp.bfloat16, jnp.bfloat16, jnp.float32),
    ("batch_running", jnp.bfloat16, jnp.float32, None),
])  # fmt: skip
def test_mixed_precision(name, x_dtype, param_dtype, dtype, layer, normal, assert_sound_in):
    build = partial(LAYERS[name], param_dtype=param_dtype, dtype=dtype)
    model, x = layer(build, dtype=None), normal(1, *SHAPE, dtype=x_dtype)
    y = normal(2, *SHAPE, dtype=dtype or jnp.promote_types(x_dtype, param_dtype))
    assert_sound_in(None, model, optax.squared_error, x, y)


def test_the_gradient_is_orthogonal_to_what_normalization_removes(layer, normal):
    """Shifting or scaling a row changes nothing (but for eps): x_bar is orthogonal to 1 and to x."""
    x, y = 2 * normal(1, 5, 6) + 1, normal(2, 5, 6)
    model = layer(partial(nnx.LayerNorm, 6, epsilon=0.0))
    _, (_, x_bar) = chainrule.value_and_grad(model, optax.squared_error, x, y, inputs=True)
    assert np.abs(x_bar).max() > 1e-3
    np.testing.assert_allclose(jnp.sum(x_bar, -1), 0, atol=1e-16)
    np.testing.assert_allclose(jnp.sum(x_bar * x, -1), 0, atol=1e-15)


def test_running_averages(layer, normal):
    """momentum * before + (1 - momentum) * batch, as the layer's own call leaves them."""
    model, x = layer(partial(nnx.BatchNorm, 6, momentum=0.7)), 2 * normal(1, 8, 6) + 1
    before = np.asarray(model.mean[...]), np.asarray(model.var[...])
    graphdef, params, state = split(model)
    gradient = jax.jit(chainrule.gradient(graphdef, optax.squared_error))
    (_, state), _ = gradient(params, state, (x, normal(2, 8, 6)))
    np.testing.assert_allclose(state["mean"], 0.7 * before[0] + 0.3 * np.mean(x, 0), rtol=1e-14)
    np.testing.assert_allclose(state["var"], 0.7 * before[1] + 0.3 * np.var(x, 0), rtol=1e-12)
    model(x)
    np.testing.assert_allclose(state["mean"], model.mean[...], rtol=1e-14)
    model.eval()
    graphdef, params, state = split(model)
    gradient = jax.jit(chainrule.gradient(graphdef, optax.squared_error))
    (_, after), _ = gradient(params, state, (x, normal(2, 8, 6)))
    np.testing.assert_array_equal(after["mean"], state["mean"])


@pytest.mark.parametrize(("kind", "fast"), [(nnx.BatchNorm, True), (nnx.LayerNorm, False)])
def test_statistics_of_several_devices(kind, fast, layer, normal):
    """Parts of a batch that share their statistics have the gradient of the whole batch."""
    axes = {} if kind is nnx.BatchNorm else {"reduction_axes": 0}
    x, y = normal(1, 8, 3), normal(2, 8, 3)
    whole = layer(partial(kind, 3, use_fast_variance=fast, **axes))
    shared = layer(partial(kind, 3, use_fast_variance=fast, axis_name="devices", **axes))

    def gradient(model):
        graphdef, params, state = split(model)
        of = chainrule.gradient(graphdef, optax.squared_error, inputs=True)
        return partial(of, params, state)

    (_, state), (grads, x_bar) = jax.jit(gradient(whole))((x, y))
    parts = jax.jit(jax.vmap(gradient(shared), axis_name="devices"))
    (_, states), (parts_grads, parts_x_bar) = parts((x.reshape(2, 4, 3), y.reshape(2, 4, 3)))
    # Each part's loss is the mean over its own half.
    np.testing.assert_allclose(parts_x_bar.reshape(8, 3) / 2, x_bar, rtol=1e-12, atol=1e-15)
    for name, leaf in grads.items():
        np.testing.assert_allclose(np.mean(parts_grads[name], 0), leaf, rtol=1e-12, atol=1e-15)
    for name, leaf in state.items():
        np.testing.assert_allclose(states[name][0], leaf, rtol=1e-12)


TORCH = {
    "layer": lambda torch: torch.nn.LayerNorm(6, eps=1e-6),
    "group": lambda torch: torch.nn.GroupNorm(3, 6, eps=1e-6),
    "instance": lambda torch: torch.nn.InstanceNorm2d(6, eps=1e-6, affine=True),
    "batch": lambda torch: torch.nn.BatchNorm2d(6, eps=1e-5, momentum=0.01),
    "batch_running": lambda torch: torch.nn.BatchNorm2d(6, eps=1e-5).eval(),
    "rms": lambda torch: torch.nn.RMSNorm(6, eps=1e-6),
}


@pytest.mark.parametrize("name", TORCH)
def test_torch(name, layer, normal, gradient_by_rules):
    torch = pytest.importorskip("torch")
    model, twin = layer(LAYERS[name]), TORCH[name](torch).double()
    parameters = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    with torch.no_grad():
        for theirs, ours in parameters.items():
            if getattr(twin, theirs, None) is not None:
                getattr(twin, theirs).copy_(torch.tensor(np.asarray(getattr(model, ours)[...])))
    x, y = 2 * normal(1, *SHAPE) + 1, normal(2, *SHAPE)
    last = name in ("layer", "rms")  # the others have the channels first

    def to_torch(array):
        return torch.tensor(np.asarray(array if last else jnp.moveaxis(array, -1, 1)))

    inputs = to_torch(x).requires_grad_()
    torch.nn.functional.mse_loss(twin(inputs), to_torch(y)).backward()
    _, grads, x_bar = gradient_by_rules(model, optax.squared_error, x, y)
    np.testing.assert_allclose(to_torch(x_bar), inputs.grad.numpy(), rtol=1e-10, atol=1e-14)
    for theirs, ours in parameters.items():
        if ours in grads:
            np.testing.assert_allclose(grads[ours], getattr(twin, theirs).grad.numpy(), rtol=1e-10)


def test_a_constant_row_has_no_gradient(layer, gradient_by_rules):
    model = layer(partial(nnx.LayerNorm, 8, use_scale=False, use_bias=False, epsilon=0.1))
    row = jnp.full((2, 8), 3.0)  # of 8 numbers, whose mean has no rounding
    _, _, x_bar = gradient_by_rules(model, optax.squared_error, row, jnp.zeros((2, 8)))
    np.testing.assert_array_equal(x_bar, 0)


@pytest.mark.parametrize("axes", [(-1,), (1, -1)])
def test_groups_whose_statistics_flax_mixes_up_go_by_primitives(axes, layer, normal, assert_engines_agree):
    model = layer(partial(nnx.GroupNorm, 6, num_groups=2, reduction_axes=axes))
    x = normal(1, *SHAPE[:1], *SHAPE[2:]) if axes == (1, -1) else normal(1, *SHAPE)
    if axes == (-1,):
        with pytest.raises(chainrule.DoesNotApply, match="other axes than one"):
            chainrule.rule_for(model)[0].forward(model, x)
    assert assert_engines_agree(model, optax.squared_error, x, jnp.zeros_like(x)) <= 1e-11


@pytest.mark.parametrize(("build", "message"), [
    (partial(nnx.InstanceNorm, 6, feature_axes=(0, -1)), "cannot include the leading dimension"),
    (partial(nnx.BatchNorm, 6, use_running_average=None), "No `use_running_average` argument"),
])  # fmt: skip
def test_what_flax_refuses(build, message, layer, normal, gradient_by_rules):
    x = normal(1, *SHAPE)
    with pytest.raises(ValueError, match=message):
        gradient_by_rules(layer(build), optax.squared_error, x, x)


@pytest.mark.parametrize("name", ["layer", "rms", "group", "instance", "batch", "batch_running"])
@pytest.mark.usefixtures("strict_promotion")
def test_nothing_is_promoted_by_accident(name, random_model):
    model = random_model(lambda: LAYERS[name](rngs=nnx.Rngs(0)), dtype=jnp.float32)
    graphdef, params, state = split(model)
    x = jnp.ones(SHAPE, jnp.float32)
    gradient = chainrule.gradient(graphdef, optax.squared_error, inputs=True)
    (loss, after), (grads, x_bar) = jax.eval_shape(gradient, params, state, (x, x))
    assert {leaf.dtype for leaf in jax.tree.leaves((loss, after, grads, x_bar))} == {jnp.dtype("float32")}
