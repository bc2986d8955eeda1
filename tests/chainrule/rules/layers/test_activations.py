"""The rules of elementwise activations."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from flax import nnx

from bpresearch.chainrule import rule_for

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")


def tanh_gelu(z):
    return z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


# Each activation with its definition in NumPy, which takes complex numbers too.
ANALYTIC = {
    "identity": (nnx.identity, lambda z: z),
    "sigmoid": (nnx.sigmoid, lambda z: 1 / (1 + np.exp(-z))),
    "tanh": (nnx.tanh, np.tanh),
    "gelu": (nnx.gelu, tanh_gelu),
    "gelu_tanh": (partial(nnx.gelu, approximate=True), tanh_gelu),
    "gelu_exact": (
        partial(nnx.gelu, approximate=False),
        lambda z: z / 2 * (1 + scipy.special.erf(z / np.sqrt(2))),
    ),
    "silu": (nnx.silu, lambda z: z / (1 + np.exp(-z))),
    "softplus": (nnx.softplus, lambda z: np.log(1 + np.exp(z))),
    "log_sigmoid": (nnx.log_sigmoid, lambda z: -np.log(1 + np.exp(-z))),
}

# Each activation with the derivative left of, at and right of its kink at zero.
KINKED = {
    "relu": (nnx.relu, lambda x: 0 * x, 0.0, lambda x: 1 + 0 * x),
    "leaky_relu": (nnx.leaky_relu, lambda x: 0.01 + 0 * x, 1.0, lambda x: 1 + 0 * x),
    "leaky_relu_steep": (
        partial(nnx.leaky_relu, negative_slope=-1.5),
        lambda x: -1.5 + 0 * x,
        1.0,
        lambda x: 1 + 0 * x,
    ),
    "elu": (nnx.elu, np.exp, 1.0, lambda x: 1 + 0 * x),
    "elu_half": (partial(nnx.elu, alpha=0.5), lambda x: np.exp(x) / 2, 0.5, lambda x: 1 + 0 * x),
    "celu": (nnx.celu, np.exp, 1.0, lambda x: 1 + 0 * x),
    "celu_half": (partial(nnx.celu, alpha=0.5), lambda x: np.exp(2 * x), 1.0, lambda x: 1 + 0 * x),
    "selu": (
        nnx.selu,
        lambda x: 1.0507009873554805 * 1.6732632423543772 * np.exp(x),
        1.0507009873554805 * 1.6732632423543772,
        lambda x: 1.0507009873554805 + 0 * x,
    ),
    "soft_sign": (nnx.soft_sign, lambda x: (1 - x) ** -2.0, 1.0, lambda x: (1 + x) ** -2.0),
}

# Each activation made of three pieces: its two kinks, the derivatives of the pieces and those at the kinks.
PIECEWISE = {
    "relu6": (nnx.relu6, (0, 6), (lambda x: 0 * x, lambda x: 1 + 0 * x, lambda x: 0 * x), (0, 0)),
    "hard_tanh": (nnx.hard_tanh, (-1, 1), (lambda x: 0 * x, lambda x: 1 + 0 * x, lambda x: 0 * x), (1, 1)),
    "hard_sigmoid": (
        nnx.hard_sigmoid,
        (-3, 3),
        (lambda x: 0 * x, lambda x: 1 / 6 + 0 * x, lambda x: 0 * x),
        (0, 0),
    ),
    "hard_silu": (
        nnx.hard_silu,
        (-3, 3),
        (lambda x: 0 * x, lambda x: x / 3 + 1 / 2, lambda x: 1 + 0 * x),
        (0, 1),
    ),
}

ACTIVATIONS = {name: row[0] for name, row in (ANALYTIC | KINKED | PIECEWISE).items()}

# Those whose derivative reaches its limit within the numbers of a precision; soft_sign's goes as 1 / x^2.
SATURATING = [name for name in ACTIVATIONS if name != "soft_sign"]


@cache
def _derivatives(name):
    """By the rule and by autodiff, of arrays of any dtype."""
    activation = ACTIVATIONS[name]

    def by_rule(x):
        rule, options = rule_for(activation)
        y, residuals = rule.forward(activation, x, **options)
        grads, x_bar = rule.backward(activation, residuals, jnp.ones_like(y), **options)
        assert grads == {} and x_bar.dtype == x.dtype
        return x_bar

    def by_autodiff(x):
        return jax.vjp(activation, x)[1](jnp.ones_like(x))[0]

    return jax.jit(by_rule), jax.jit(by_autodiff)


def derivatives(name, x, dtype=jnp.float64):
    """The derivative by the rule and by autodiff at some points, as float64 arrays."""
    padded = np.zeros(4096)  # one shape for all: one compilation for each dtype
    padded[: len(x)] = x
    both = (of(jnp.asarray(padded.astype(dtype))) for of in _derivatives(name))
    return [np.asarray(values).astype(np.float64)[: len(x)] for values in both]


@pytest.mark.parametrize("name", ANALYTIC)
def test_complex_step(name):
    """f'(x) = Im f(x + i h) / h, to the last digits, for an analytic f (Squire and Trapp 1998)."""
    x = np.linspace(-8, 8, 401)
    expected = np.imag(ANALYTIC[name][1](x + 1e-30j)) / 1e-30
    np.testing.assert_allclose(derivatives(name, x)[0], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", KINKED)
def test_both_sides_of_a_kink(name):
    _, left, at_zero, right = KINKED[name]
    x = np.linspace(0.01, 8, 200)
    np.testing.assert_allclose(derivatives(name, -x)[0], left(-x), rtol=1e-14)
    np.testing.assert_allclose(derivatives(name, x)[0], right(x), rtol=1e-14)
    assert derivatives(name, np.array([0.0, -0.0]))[0].tolist() == [at_zero, at_zero]


@pytest.mark.parametrize("name", PIECEWISE)
def test_pieces_and_the_kinks_between_them(name):
    _, (low, high), (left, middle, right), at_kinks = PIECEWISE[name]
    x = np.linspace(-8, 8, 332)
    expected = np.select([x < low, x < high], [left(x), middle(x)], right(x))
    np.testing.assert_allclose(derivatives(name, x)[0], expected, rtol=1e-13, atol=1e-15)
    found, autodiffs = derivatives(name, np.array([low, high]))
    np.testing.assert_array_equal(found, at_kinks)
    np.testing.assert_array_equal(autodiffs, at_kinks)


def test_names_of_the_same_function():
    assert nnx.swish is nnx.silu and nnx.hard_swish is nnx.hard_silu


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_at_and_next_to_zero_as_autodiff(name, dtype):
    tiny = float(jnp.finfo(dtype).tiny)
    found, expected = derivatives(name, np.array([0.0, -0.0, tiny, -tiny]), dtype)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", SATURATING)
def test_extreme_inputs(name, dtype):
    """Far out every derivative has reached its limit, and nothing overflows into NaN on the way."""
    found, expected = derivatives(name, np.array([-1e4, -1e3, -200, 200, 1e3, 1e4]), dtype)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", SATURATING)
def test_right_wherever_autodiff_is_finite(name, dtype):
    largest = float(jnp.finfo(dtype).max)
    x = np.array([-np.inf, -largest, -1e25, -1e15, 1e15, 1e25, largest, np.inf])
    found, expected = derivatives(name, x, dtype)
    known = np.isfinite(expected)
    np.testing.assert_array_equal(found[known], expected[known])


def test_the_tails_of_soft_sign():
    x = np.array([-1e4, -200, 200, 1e4]).astype(np.float32)
    np.testing.assert_allclose(derivatives("soft_sign", x, jnp.float32)[0], (1 + abs(x)) ** -2.0, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_rounding_everywhere(name, dtype):
    """On every short stretch of the axis, the tails included, as accurate as autodiff (ratio 8)."""
    x = np.linspace(-20, 20, 4000).astype(dtype).astype(np.float64)
    exact = derivatives(name, x)[0]
    found, own, size = (
        np.linalg.norm(values.reshape(80, -1), axis=1)
        for values in (*(values - exact for values in derivatives(name, x, dtype)), exact)
    )
    # Where the numbers of the precision end, a derivative is as good as zero.
    floor = np.maximum(0.25 * float(jnp.finfo(dtype).eps) * size, float(jnp.finfo(dtype).tiny))
    ratio = found / np.maximum(own, floor)
    assert (ratio <= 8).all(), (x.reshape(80, -1)[np.argmax(ratio)], ratio.max())


def test_in_a_model(assert_engines_agree, random_model, normal):
    def build():
        rngs = nnx.Rngs(0)
        smooth = [activation for name, activation in ACTIVATIONS.items() if name != "relu6"]
        return nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), *smooth, nnx.Linear(3, 1, rngs=rngs))

    model, x, y = random_model(build), normal(1, 4, 2), normal(2, 4, 1)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12


@pytest.mark.parametrize(("x_dtype", "options"), [
    (jnp.float64, {"negative_slope_init": -0.3, "param_dtype": jnp.float64}),
    (jnp.float32, {"param_dtype": jnp.float64}),
    (jnp.float32, {"dtype": jnp.bfloat16}),
])  # fmt: skip
def test_parametric_relu(x_dtype, options, normal, assert_sound_in, gradient_by_rules):
    model, x = nnx.PReLU(**options), normal(1, 4, 5, dtype=x_dtype).at[0, 0].set(0)
    y = normal(2, 4, 5, dtype=options.get("dtype", x_dtype))
    with jax.numpy_dtype_promotion("standard"):
        assert_sound_in(None, model, optax.squared_error, x, y)
    if x_dtype == jnp.float64:
        _, grads, x_bar = gradient_by_rules(model, optax.squared_error, x, y)
        x, y = np.asarray(x), np.asarray(y)
        y_bar = (np.where(x >= 0, x, -0.3 * x) - y) / 10
        np.testing.assert_allclose(grads["negative_slope"], np.sum((y_bar * x)[x < 0]), rtol=1e-13)
        np.testing.assert_allclose(x_bar, np.where(x >= 0, y_bar, -0.3 * y_bar), rtol=1e-13)


def test_torch():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    twins = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "leaky_relu": functional.leaky_relu,
        "leaky_relu_steep": partial(functional.leaky_relu, negative_slope=-1.5),
        "elu": functional.elu,
        "elu_half": partial(functional.elu, alpha=0.5),
        "gelu_tanh": partial(functional.gelu, approximate="tanh"),
        "gelu_exact": functional.gelu,
        "silu": functional.silu,
        "softplus": functional.softplus,
        "log_sigmoid": functional.logsigmoid,
        "celu": functional.celu,
        "celu_half": partial(functional.celu, alpha=0.5),
        "selu": functional.selu,
        "soft_sign": functional.softsign,
        "relu6": functional.relu6,
        "hard_tanh": functional.hardtanh,
        "hard_silu": functional.hardswish,  # hardsigmoid's 1 / 6 is a float32 number there
    }
    x = np.linspace(-6, 6, 200)  # PyTorch's conventions at zero are its own
    for name, twin in twins.items():
        inputs = torch.tensor(x, requires_grad=True)
        twin(inputs).sum().backward()
        np.testing.assert_allclose(
            derivatives(name, x)[0],
            inputs.grad.numpy(),
            rtol=1e-10,
            atol=1e-13,
            err_msg=name,
        )


def test_torch_parametric_relu(normal, gradient_by_rules):
    torch = pytest.importorskip("torch")
    twin = torch.nn.PReLU(init=-0.3, dtype=torch.float64)
    model, x, y = nnx.PReLU(-0.3, param_dtype=jnp.float64), normal(1, 4, 5), normal(2, 4, 5)
    inputs = torch.tensor(np.asarray(x), requires_grad=True)
    torch.nn.functional.mse_loss(twin(inputs), torch.tensor(np.asarray(y))).backward()
    _, grads, x_bar = gradient_by_rules(model, optax.squared_error, x, y)
    np.testing.assert_allclose(grads["negative_slope"], twin.weight.grad.numpy()[0], rtol=1e-10)
    np.testing.assert_allclose(x_bar, inputs.grad.numpy(), rtol=1e-10)
