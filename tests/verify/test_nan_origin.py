"""What makes NaN or Inf is named with its line, its operands and its step; what is harmless is not named."""

import functools
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from bpresearch.verify import find_nan

ZEROS = np.zeros(3, np.float32)


def marked(f):
    """`test_nan_origin.py:LINE` of the line of `f` that ends with the comment # here."""
    lines, start = inspect.getsourcelines(f)
    (number,) = (start + i for i, line in enumerate(lines) if line.endswith("# here\n"))
    return f"{Path(__file__).name}:{number}"


def where_root(x):
    root = jnp.sqrt(x)  # here
    return jnp.sum(jnp.where(x > 0, root, 0.0))


def norm(x):
    squares = x**2
    return jnp.sqrt(jnp.sum(squares))  # here


def log(x):
    y = x + 0.0
    return jnp.log(y)  # here


def quotient(x):
    total = jnp.sum(x)
    return x / total  # here


def overflow(x):
    y = jnp.exp(x * 100)  # here
    return jnp.log(jnp.sum(y))


def power(x):
    return jnp.sum(x**0.5)  # here


def standard_deviation(x):
    return 2 * jnp.std(x)  # here


def cholesky(x):
    return jnp.linalg.cholesky(jnp.diag(x) - 2 * jnp.eye(3))  # here


def angle(x):
    return jnp.sum(jnp.arctan2(x, x))  # here


def masked_softmax(x):
    logits = jnp.where(x > 0, x, -jnp.inf)
    largest = jnp.max(logits)
    weights = jnp.exp(logits - largest)  # here
    return weights / jnp.sum(weights)


def arc(x):
    return jnp.sum(jnp.arccos(x + 1))  # here


def half_precision(x):
    y = x.astype(jnp.float16) + 300
    return jnp.sum(y * y)  # here


def in_half_precision_backward(x):
    y = x.astype(jnp.float16)
    return 1e6 * jnp.sum(y.astype(jnp.float32))  # here


@jax.custom_vjp
def relu_like(x):
    return jnp.maximum(x, 0)


def _bwd(x, g):
    half = g / 2
    return (half * jnp.sin(x) / x,)  # here


relu_like.defvjp(lambda x: (relu_like(x), x), _bwd)


@jax.custom_jvp
def with_tangent(x):
    return x * 2


@with_tangent.defjvp
def _tangent(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return with_tangent(x), x_dot / x  # here


@pytest.mark.parametrize(
    ("f", "x", "direction", "value"),
    [
        (where_root, ZEROS, "backward", "Inf"),
        (norm, ZEROS, "backward", "Inf"),
        (log, ZEROS, "forward", "Inf"),
        (log, ZEROS - 1, "forward", "NaN"),
        (quotient, ZEROS, "forward", "NaN"),
        (overflow, ZEROS + 3, "forward", "Inf"),
        (power, ZEROS, "backward", "Inf"),
        (power, ZEROS - 1, "forward", "NaN"),
        (standard_deviation, ZEROS + 1, "backward", "Inf"),
        (cholesky, ZEROS, "forward", "NaN"),
        (angle, ZEROS, "backward", "NaN"),
        (masked_softmax, ZEROS, "forward", "NaN"),
        (arc, ZEROS, "backward", "Inf"),
        (half_precision, ZEROS, "forward", "Inf"),
        (in_half_precision_backward, ZEROS, "backward", "Inf"),
    ],
)
def test_the_line_and_the_pass_are_named(f, x, direction, value):
    report = find_nan(f, x)
    assert report
    assert (report.direction, report.value) == (direction, value)
    assert marked(f) in report.line
    assert marked(f) in str(report)
    assert report.operands
    assert report.hint


@pytest.mark.parametrize(
    "transformed",
    [
        jax.jit(log),
        jax.vmap(log),
        jax.checkpoint(log),
        lambda x: lax.map(log, x),
        jax.jit(jax.checkpoint(jax.vmap(jax.jit(log)))),
    ],
    ids=["jit", "vmap", "remat", "map", "all"],
)
def test_the_line_is_found_inside_transformations(transformed):
    report = find_nan(transformed, jnp.array([1.0, 0.0, 2.0]))
    assert marked(log) in report.line
    assert (report.primitive, report.value) == ("log", "Inf")


@pytest.mark.parametrize("transformed", [lambda f: f, jax.jit, jax.checkpoint])
def test_an_authors_backward_pass_is_named_by_its_own_line(transformed):
    report = find_nan(lambda x: jnp.sum(transformed(relu_like)(x)), ZEROS)
    assert (report.direction, report.primitive, report.value) == ("backward", "div", "NaN")
    assert marked(_bwd) in report.line


def test_an_authors_tangent_rule_is_named_by_its_own_line():
    report = find_nan(lambda x: jnp.sum(with_tangent(x)), ZEROS)
    assert (report.direction, report.primitive) == ("backward", "div")
    assert marked(_tangent) in report.line


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scaled(x, factor):
    return x * factor


def _scaled_bwd(factor, x, g):
    return (g * factor / x,)  # here


scaled.defvjp(lambda x, factor: (x * factor, x), _scaled_bwd)


def test_in_a_loop_the_step_is_said():
    def grows(x):
        def step(carry, factor):
            carry = carry * carry * factor  # here
            return carry, carry

        return lax.scan(step, x, jnp.ones(9))[0]

    report = find_nan(grows, jnp.float32(1000.0))  # 1000 ** (2 ** 4) is larger than float32 holds
    assert (report.primitive, report.step, report.value) == ("mul", 3, "Inf")
    assert marked(grows) in report.line

    def backwards(x):
        def step(carry, wall):
            near = jnp.abs(carry - wall)
            return 0.5 * carry, jnp.sqrt(near)  # here

        return jnp.sum(lax.scan(step, x, jnp.array([3.0, 7.0, 0.25, 5.0]), reverse=True)[1])

    report = find_nan(backwards, jnp.float32(0.5))
    assert (report.direction, report.derivative_of, report.step) == ("backward", "sqrt", 2)
    assert marked(backwards) in report.line

    def authored(x):
        return jnp.sum(lax.scan(lambda c, _: (scaled(c, 2.0), None), x, None, length=3)[0])

    report = find_nan(authored, ZEROS)
    assert marked(_scaled_bwd) in report.line
    assert report.step == 2  # the last step is the first on the way back


def test_a_loop_in_a_loop_has_two_steps():
    def f(x):
        def inner(carry, t):
            return carry + 1 / (t - 4), None  # here

        def outer(carry, row):
            return lax.scan(inner, carry, row)[0], None

        return lax.scan(outer, x, jnp.arange(6.0).reshape(2, 3))[0]

    report = find_nan(f, jnp.float32(0.0))
    assert report.steps == (1, 1)
    assert report.step == 1
    assert marked(f) in report.line


def test_while_and_cond_are_opened():
    def loop(x):
        def step(state):
            i, y = state
            return i + 1, y / (3 - i)  # here

        return lax.while_loop(lambda state: state[0] < 5, step, (jnp.float32(0), x))[1]

    report = find_nan(loop, jnp.float32(1.0))
    assert (report.primitive, report.step) == ("div", 3)
    assert marked(loop) in report.line

    def branch(x):
        def root(x):
            return jnp.sqrt(x)  # here

        return lax.cond(x < 1, root, jnp.sin, x)

    report = find_nan(branch, jnp.float32(0.0))
    assert (report.direction, report.derivative_of) == ("backward", "sqrt")
    assert marked(branch) in report.line
    assert not find_nan(branch, jnp.float32(2.0))


def test_a_backward_pass_that_jax_refuses_is_said_to_be_unseen():
    def f(x):
        return lax.while_loop(lambda y: y > 1, lambda y: y / 2, x)

    report = find_nan(f, jnp.float32(8.0))
    assert not report
    assert "backward pass was not looked at" in str(report)


def test_what_was_given_is_named():
    report = find_nan(lambda x, weights: x @ weights["w"], ZEROS, {"w": ZEROS * np.nan})
    assert report
    assert report.operands == ("weights.w holds NaN",)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(4))

    def __call__(self, x):
        y = self.drop(self.norm(self.linear(x)))
        return y * jnp.sqrt(self.scale[...] ** 2)[None]  # here


class Root(nnx.Module):
    def __init__(self, rngs):
        self.scale = nnx.Param(jax.random.normal(rngs(), 4))

    def __call__(self, x):
        return x * jnp.sqrt(self.scale[...] ** 2)[None]  # here


class Net(nnx.Module):
    def __init__(self, rngs, *, scanned=False):
        if scanned:
            self.blocks = nnx.vmap(Root, axis_size=3)(rngs.split(3))
        else:
            self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        if isinstance(self.blocks, Root):
            forward = nnx.scan(
                nnx.remat(lambda block, x: block(x)), in_axes=(0, nnx.Carry), out_axes=nnx.Carry
            )
            return self.head(forward(self.blocks, x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def squared(model, batch):
    x, y = batch
    error = jnp.mean((model(x) - y) ** 2)
    return error, {"error": error}


BATCH = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4), np.ones((5, 2), np.float32)


def test_of_a_model_the_layer_is_named_and_the_model_is_left_alone():
    model = Net(nnx.Rngs(0))
    assert not find_nan(squared, model, BATCH)
    model.blocks[1].scale[...] = model.blocks[1].scale[...].at[2].set(0.0)
    before = jax.tree.leaves(nnx.state(model))
    report = find_nan(nnx.jit(squared), model, BATCH)
    assert (report.direction, report.derivative_of, report.layer) == ("backward", "sqrt", "blocks.1")
    assert report.index == (2,)
    assert marked(Block.__call__) in report.line
    assert report.place.startswith("blocks.1, ")
    for old, new in zip(before, jax.tree.leaves(nnx.state(model)), strict=True):
        assert old is new


def test_of_scanned_layers_the_step_is_the_layer():
    with jax.numpy_rank_promotion("allow"):
        model = Net(nnx.Rngs(0), scanned=True)
        model.blocks.scale[...] = model.blocks.scale[...].at[2, 0].set(0.0)
        report = find_nan(squared, model, BATCH)
    assert (report.direction, report.derivative_of, report.layer, report.step) == (
        "backward",
        "sqrt",
        "blocks",
        2,
    )
    assert marked(Root.__call__) in report.line


def test_in_a_layer_of_flax_the_line_is_the_users():
    class Model(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.RMSNorm(3, epsilon=0.0, rngs=nnx.Rngs(0))])

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)  # here
            return x

    report = find_nan(lambda model, x: jnp.sum(model(x)), Model(), np.zeros((2, 3), np.float32))
    assert (report.layer, report.direction) == ("layers.0", "forward")
    assert marked(Model.__call__) in report.line


def test_only_what_is_differentiated_is_looked_at():
    def f(x, scale):
        return jnp.sum(x) * jnp.sqrt(scale)

    assert not find_nan(f, jnp.ones(2), 0.0, argnums=0)
    assert find_nan(f, jnp.ones(2), 0.0, argnums=1).derivative_of == "sqrt"
    assert not find_nan(f, jnp.ones(2), 0.0, backward=False)
    with pytest.raises(ValueError, match="argnums=2 of a function that is given 2 arguments"):
        find_nan(f, jnp.ones(2), 0.0, argnums=2)


def test_a_derivative_that_overflows_is_named():
    """1e-30 times 1e25 times 1e20 is a number of float32, the product of the two factors is none."""

    def f(x):
        y = x * 1e25  # here
        return y * 1e20

    report = find_nan(f, jnp.float32(1e-30))
    assert (report.value, report.direction, report.primitive) == ("Inf", "backward", "mul")
    assert marked(f) in report.line
    assert "larger than its type holds" in report.hint


def test_a_gradient_that_the_function_takes_is_looked_at_as_well():
    def f(x):
        return jax.grad(lambda x: jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0)))(x)  # here

    report = find_nan(f, ZEROS)
    assert (report.direction, report.value) == ("backward", "Inf")
    assert marked(f) in report.line


def test_debugging_of_nans_does_not_stop_it():
    with jax.debug_nans(True):
        assert find_nan(where_root, ZEROS).derivative_of == "sqrt"
