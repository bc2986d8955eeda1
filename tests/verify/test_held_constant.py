"""What a model holds constant, and how it rounds by design, is not called wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bpresearch import chainrule, verify
from bpresearch.functional import split

SQUARES = optax.losses.squared_error


def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 5, 3)).astype(np.float32)


def test_what_the_model_holds_constant_is_constant_to_finite_differences():
    """Flax stops the gradient of SpectralNorm's singular vectors, which move with the weights."""
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.SpectralNorm(nnx.Linear(3, 3, rngs=rngs), rngs=rngs), nnx.tanh)
    x, y = batch()
    for plant, passed in ((None, True), ("scaled", False)):
        report = verify.model(
            model, SQUARES, x, y, dtype="float64", oracles=["finite differences"], plant=plant
        )
        assert report.passed is passed, str(report)
        assert not report.undecided


def test_what_is_held_constant_in_a_loop_leaves_differences_undecided():
    """The reason is said, and a right rule is not called wrong."""
    model = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), twice_rounded)
    chainrule.rule(twice_rounded)(StraightThroughRule)
    report = verify.model(model, SQUARES, *batch(), dtype="float64")
    assert report.passed, str(report)
    assert not [row for row in report.rows if row.oracle == "finite differences"]
    assert any("constant inside a loop" in note for note in report.notes)


def twice_rounded(x):
    def step(x, _):
        return x + jax.lax.stop_gradient(jnp.round(x) - x), None

    return jax.lax.scan(step, x, length=2)[0]


def test_what_has_no_part_in_the_loss_is_not_held_constant():
    """As the running statistics of layers that normalize in a loop; they silenced differences once."""

    def averaging(x):
        def step(x, _):
            return jnp.tanh(x), jax.lax.stop_gradient(x.mean())

        return jax.lax.scan(step, x, length=2)[0]

    model = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), averaging)
    report = verify.model(model, SQUARES, *batch(), dtype="float64", oracles=["finite differences"])
    assert report.passed and not report.notes, str(report)


def test_the_derivative_of_gamma_variates_is_no_difference_of_them():
    """JAX gives that at a fixed quantile; the numbers come by rejection."""

    def drawn(x):
        return jax.random.gamma(jax.random.key(0), jnp.exp(x))

    model = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), drawn)
    report = verify.model(
        model, SQUARES, *batch(), dtype="float64", oracles=["autodiff", "finite differences"]
    )
    assert report.passed and "draws gamma variates" in str(report), str(report)


def test_a_solver_that_stops_early_is_right_to_its_tolerance():
    """A square root by Newton's steps until they change little, with the derivative of the exact one."""

    @jax.custom_vjp
    def root(x):
        return jax.lax.while_loop(
            lambda c: jnp.any(jnp.abs(c * c - x) > 0.02 * x), lambda c: (c + x / c) / 2, 1 + 0 * x
        )

    root.defvjp(lambda x: (root(x), x), lambda x, y_bar: (y_bar / 2 / jnp.sqrt(x),))
    model = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), lambda x: root(2 + jnp.tanh(x)))
    asked = dict(dtype="float64", oracles=["autodiff", "finite differences"])
    report = verify.model(model, SQUARES, *batch(), **asked)
    assert report.passed is False and "give `tolerance`" in " ".join(str(report).split()), str(report)
    assert verify.model(model, SQUARES, *batch(), **asked, tolerance=0.03).passed


class StraightThroughRule:
    def forward(layer, x):
        return jnp.round(x), ()

    def backward(layer, residuals, y_bar):
        return {}, y_bar


def test_attention_that_rounds_is_judged_at_its_own_resolution():
    """Flax's attention rounds to float32 inside, which is a reason for undecided where it is too coarse."""
    model = nnx.Sequential(nnx.MultiHeadAttention(1, 2, decode=False, rngs=nnx.Rngs(0)), nnx.tanh)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 2)), rng.normal(size=(2, 3, 2))
    report = verify.model(model, SQUARES, x, y, dtype="float64", oracles=["autodiff", "finite differences"])
    rows = {row.path: row for row in report.rows if row.oracle == "finite differences"}
    assert rows["layers.0.out.kernel"].passed and rows["layers.0.out.kernel"].tolerance < 1e-5
    assert rows["layers.0.query.kernel"].passed is None
    assert "uncertainty is too large" in rows["layers.0.query.kernel"].detail
    assert report.passed is not False


def test_running_averages_keep_float32():
    """Flax updates them in float32 whatever the parameters are, and warns where they are not."""
    model = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    model = verify.cast_model(model, "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(split(model)[1])} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(split(model)[2])} == {jnp.dtype("float32")}
    model(jnp.ones((4, 3), jnp.bfloat16))


def test_the_factors_of_a_linear_system_are_no_constants():
    """`jnp.linalg.solve` stops the gradient of its factors; its derivative is the solution's all the same."""

    def solved(a, b):
        return jnp.linalg.solve(a @ a.T + jnp.eye(3), b)

    rng = np.random.default_rng(0)
    report = verify.function(solved, rng.normal(size=(3, 3)), rng.normal(size=3))
    assert report.passed is True, str(report)
    assert {row.path for row in report.rows if row.oracle == "finite differences" and row.passed} == {
        "a",
        "b",
    }
