"""The rules of pooling."""

import itertools
from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("float64")

POOLS = {"avg": nnx.avg_pool, "max": nnx.max_pool, "min": nnx.min_pool}


def by_loops(kind, x, y_bar_of, window, strides, pads, count_include_pad):
    """Pooling of one channel of one example and its x_bar, window by window.

    `y_bar_of(y)` is the cotangent of the output y. The first of several winners takes it all.
    """
    size = [
        (n + low + high - w) // s + 1
        for n, (low, high), w, s in zip(x.shape, pads, window, strides, strict=True)
    ]
    y, shares = np.zeros(size), {}
    for t in np.ndindex(*size):
        positions = itertools.product(
            *(
                range(i * s - low, i * s - low + w)
                for i, s, (low, _), w in zip(t, strides, pads, window, strict=True)
            )
        )
        inside = [p for p in positions if all(0 <= i < n for i, n in zip(p, x.shape, strict=True))]
        if kind == "avg":
            count = np.prod(window) if count_include_pad else len(inside)
            y[t] = sum(x[p] for p in inside) / count
            shares[t] = {p: 1 / count for p in inside}
        else:
            winner = {"max": max, "min": min}[kind](inside, key=lambda p: x[p])  # the first one
            y[t] = x[winner]
            shares[t] = {winner: 1.0}
    y_bar, x_bar = y_bar_of(y), np.zeros(x.shape)
    for t, share in shares.items():
        for p, weight in share.items():
            x_bar[p] += weight * y_bar[t]
    return y, x_bar


@st.composite
def poolings(draw):
    axes = draw(st.integers(1, 2))
    window = draw(st.tuples(*[st.integers(1, 3)] * axes))
    strides = draw(st.none() | st.tuples(*[st.integers(1, 3)] * axes))
    # No window may lie in the padding altogether: its maximum would be -inf.
    pairs = [st.tuples(st.integers(0, w - 1), st.integers(0, w - 1)) for w in window]
    padding = draw(st.sampled_from(["VALID", "SAME"]) | st.tuples(*pairs))
    size = draw(st.tuples(*[st.integers(1, 5)] * axes))
    # Flax takes explicit padding for one batch axis or none.
    batch = draw(st.lists(st.integers(1, 2), max_size=2 if isinstance(padding, str) else 1))
    return window, strides, padding, size, batch


@pytest.mark.parametrize("kind", POOLS)
@settings(max_examples=40)
@given(data=st.data(), values=st.sampled_from(["normal", "relu", "integers"]))
def test_window_by_window(kind, data, values, normal, gradient_by_rules):
    window, strides, padding, size, batch = data.draw(poolings())
    counting = data.draw(st.booleans())
    options = {"window_shape": window, "strides": strides, "padding": padding}
    if kind == "avg":
        options["count_include_pad"] = counting
    steps = strides or (1,) * len(window)
    pads = padding
    if padding == "VALID":
        pads = [(0, 0)] * len(window)
    elif padding == "SAME":
        needed = [max((-(-n // s) - 1) * s + w - n, 0) for n, s, w in zip(size, steps, window, strict=True)]
        pads = [(p // 2, p - p // 2) for p in needed]
    assume(all(n + sum(p) >= w for n, p, w in zip(size, pads, window, strict=True)))
    # Ties: zeros among the outputs of relu, and small integers.
    x = np.asarray(normal(1, *batch, *size, 2))
    x = {"normal": x, "relu": np.maximum(x, 0), "integers": np.round(x)}[values]

    images = np.moveaxis(x, -1, 0).reshape(-1, *size)
    count = [(n + sum(p) - w) // s + 1 for n, p, w, s in zip(size, pads, window, steps, strict=True)]
    targets = np.asarray(normal(2, *batch, *count, 2))
    wanted = np.moveaxis(targets, -1, 0).reshape(-1, *count)
    both = [
        by_loops(kind, image, lambda y, t=t: 2 * (y - t) / targets.size, window, steps, pads, counting)
        for image, t in zip(images, wanted, strict=True)
    ]
    expected = np.moveaxis(np.stack([x_bar for _, x_bar in both]).reshape(2, *x.shape[:-1]), 0, -1)

    model = nnx.Sequential(partial(POOLS[kind], **options))
    loss, grads, x_bar = gradient_by_rules(model, optax.squared_error, jnp.asarray(x), jnp.asarray(targets))
    assert grads == {}
    np.testing.assert_allclose(x_bar, expected, rtol=1e-12, atol=1e-15)
    y = np.stack([y for y, _ in both])
    np.testing.assert_allclose(loss, np.mean((y - wanted) ** 2), rtol=1e-13)


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize(
    "options",
    [
        {"window_shape": (2, 2), "strides": (2, 2)},
        {"window_shape": (3, 2), "strides": (1, 2), "padding": "SAME"},
        {"window_shape": (2, 3), "padding": ((1, 0), (2, 1))},
        {"window_shape": (4, 5)},
    ],
)
@pytest.mark.parametrize("ties", [False, True])
def test_as_autodiff(kind, options, ties, normal, assert_engines_agree):
    x = normal(1, 2, 4, 5, 3)
    x = jnp.maximum(jnp.round(x), 0) if ties else x
    model = nnx.Sequential(partial(POOLS[kind], **options))
    y = normal(2, *model(x).shape)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-14


@pytest.mark.parametrize("kind", POOLS)
def test_three_axes_and_lists(kind, normal, assert_engines_agree):
    model = nnx.Sequential(
        partial(POOLS[kind], window_shape=(2, 1, 2), strides=(1, 1, 2), padding=[(0, 1), (0, 0), (1, 1)])
    )
    x = normal(1, 2, 3, 2, 4, 1)
    assert assert_engines_agree(model, optax.squared_error, x, normal(2, *model(x).shape)) <= 1e-14


def test_the_first_of_several_winners_takes_the_cotangent(gradient_by_rules):
    x, y = jnp.array([5.0, 1, 5, 5, 5]).reshape(1, 5, 1), jnp.zeros((1, 2, 1))
    pool = partial(nnx.max_pool, window_shape=(3,), strides=(2,))
    _, _, x_bar = gradient_by_rules(nnx.Sequential(pool), optax.l2_loss, x, y)
    np.testing.assert_allclose(x_bar[0, :, 0], [2.5, 0, 2.5, 0, 0], rtol=1e-14)


def test_finite_differences(normal, assert_matches_finite_differences):
    for pool in POOLS.values():
        model = nnx.Sequential(partial(pool, window_shape=(2, 3), padding="SAME"))
        x, y = normal(1, 2, 4, 3, 1), normal(2, 2, 4, 3, 1)
        assert_matches_finite_differences(model, optax.squared_error, x, y)


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding(kind, dtype, normal, assert_sound_in):
    """Windows that overlap many times: each x_bar is a long sum."""
    model = nnx.Sequential(partial(POOLS[kind], window_shape=(5, 5), padding="SAME"))
    assert_sound_in(dtype, model, optax.squared_error, normal(1, 2, 9, 9, 3), normal(2, 2, 9, 9, 3))


@pytest.mark.parametrize("kind", POOLS)
def test_extreme_inputs(kind, normal, gradient_by_rules):
    x = 1e3 * jnp.sign(normal(1, 2, 6, 6, 3, dtype=jnp.float32))
    model = nnx.Sequential(partial(POOLS[kind], window_shape=(2, 2), padding="SAME"))
    _, _, x_bar = gradient_by_rules(model, optax.squared_error, x, jnp.zeros_like(x))
    assert np.isfinite(x_bar).all()


@pytest.mark.parametrize("case", ["valid", "strided", "padded", "exclude_pad"])
def test_torch(case, normal, gradient_by_rules):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x = np.asarray(normal(1, 2, 6, 5, 3))
    options, twins = {
        "valid": ({"window_shape": (2, 3), "strides": (2, 3)}, {"kernel_size": (2, 3)}),
        "strided": (
            {"window_shape": (3, 3), "strides": (2, 1)},
            {"kernel_size": 3, "stride": (2, 1)},
        ),
        "padded": (
            {"window_shape": (3, 3), "strides": (2, 2), "padding": ((1, 1), (1, 1))},
            {"kernel_size": 3, "stride": 2, "padding": 1},
        ),
        "exclude_pad": (
            {"window_shape": (3, 2), "strides": (1, 1), "padding": ((1, 1), (0, 0))},
            {"kernel_size": (3, 2), "stride": 1, "padding": (1, 0)},
        ),
    }[case]
    excluding = {"count_include_pad": False} if case == "exclude_pad" else {}
    for pool, twin in [
        (
            partial(nnx.avg_pool, **options, **excluding),
            partial(functional.avg_pool2d, **excluding),
        ),
        (partial(nnx.max_pool, **options), functional.max_pool2d),
    ]:
        inputs = torch.tensor(np.moveaxis(x, -1, 1), requires_grad=True)
        outputs = twin(inputs, **twins)
        y = np.asarray(normal(2, *np.moveaxis(outputs.detach().numpy(), 1, -1).shape))
        functional.mse_loss(outputs, torch.tensor(np.moveaxis(y, -1, 1))).backward()
        _, _, x_bar = gradient_by_rules(
            nnx.Sequential(pool), optax.squared_error, jnp.asarray(x), jnp.asarray(y)
        )
        expected = np.moveaxis(inputs.grad.numpy(), 1, -1)
        np.testing.assert_allclose(x_bar, expected, rtol=1e-10, atol=1e-15)


def test_pooling_of_what_relu_gives(random_model, normal, assert_engines_agree):
    """A maximum over what a convolution with ReLU gives: many exact zeros."""

    def build():
        rngs = nnx.Rngs(0)
        pool = partial(nnx.max_pool, window_shape=(2,), strides=(2,))
        return nnx.Sequential(nnx.Conv(2, 4, (3,), rngs=rngs), nnx.relu, pool, nnx.relu)

    x, y = normal(1, 3, 8, 2), normal(2, 3, 4, 4)
    assert assert_engines_agree(random_model(build), optax.squared_error, x, y) <= 1e-12
