"""Hand-written derivatives of every kind: right ones pass, wrong ones do not, and the report says why."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from bpresearch import verify

RNG = np.random.default_rng(0)
X, W, B = RNG.normal(size=(5, 4)), RNG.normal(size=(4, 4)), RNG.normal(size=4)


def with_backward(forward, backward):
    """`forward` as a `custom_vjp` whose residuals are its arguments."""
    f = jax.custom_vjp(forward)
    f.defvjp(lambda *args: (forward(*args), args), backward)
    return f


def dense(x, w, b):
    return jnp.tanh(x @ w + b[None])


def dense_backward(residuals, y_bar):
    x, w, b = residuals
    z_bar = y_bar * (1 - jnp.tanh(x @ w + b[None]) ** 2)
    return z_bar @ w.T, x.T @ z_bar, jnp.sum(z_bar, axis=0)


def wrong(backward, index, change):
    """The backward pass with one of its answers changed."""

    def changed(residuals, y_bar):
        answers = list(backward(residuals, y_bar))
        answers[index] = change(answers[index])
        return tuple(answers)

    return changed


def oracles_of(report, passed):
    others = {"contract", "rounding", "kinks"}
    return {row.oracle for row in report.rows if row.passed is passed} - others


def clauses(report, passed=False):
    return {row.path for row in report.rows if row.oracle == "contract" and row.passed is passed}


ALL = {"autodiff", "forward mode", "adjoint", "complex step", "finite differences", "taylor"}


def test_right_derivative():
    report = verify.function(with_backward(dense, dense_backward), X, W, B)
    assert report.passed, str(report)
    assert not report.undecided
    assert oracles_of(report, True) == ALL
    assert clauses(report, True) >= {"structure", "forward", "linear", "vmap", "deterministic"}
    assert max(row.error for row in report.rows if row.oracle == "autodiff") < 1e-14
    assert max(len(line) for line in str(report).splitlines()) <= 80


WRONG = {
    "transposed": (1, lambda g: g.T, "w: it equals the transpose of the right one"),
    "sign": (0, lambda g: -g, "x: its sign is wrong at every element"),
    "mean": (2, lambda g: g / 5, "b: every element is the right one divided by 5"),
    "scaled": (1, lambda g: 1.001 * g, "w: every element is 1.001 times the right one"),
    "element": (1, lambda g: g.at[2, 1].multiply(1.01), "w: only the element at (2, 1) is wrong"),
    "row": (0, lambda g: g.at[3].set(0), "x: 4 of 20 elements are zero and should not be"),
    "zero": (0, jnp.zeros_like, "x: it is zero everywhere"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_derivative_is_found_by_every_oracle(name):
    index, change, hint = WRONG[name]
    report = verify.function(with_backward(dense, wrong(dense_backward, index, change)), X, W, B)
    assert not report.passed
    assert oracles_of(report, False) == ALL
    assert {row.path for row in report.rows if row.passed is False} == {"xwb"[index]}
    assert any(said.startswith(hint) for said in report.hints), report.hints
    assert not clauses(report)


def test_reference_takes_the_place_of_autodiff():
    kernel = with_backward(dense, wrong(dense_backward, 0, lambda g: 2 * g))
    report = verify.function(kernel, X, W, B, reference=dense, oracles=["autodiff"])
    assert [row.passed for row in report.rows if row.oracle == "autodiff"] == [False, True, True]


def test_custom_jvp():
    @jax.custom_jvp
    def soft(x):
        return jnp.log1p(jnp.exp(x))

    soft.defjvp(lambda primals, tangents: (soft(*primals), tangents[0] * jax.nn.sigmoid(primals[0])))
    assert verify.function(soft, X).passed
    soft.defjvp(lambda primals, tangents: (soft(*primals), tangents[0] * jax.nn.sigmoid(-primals[0])))
    report = verify.function(soft, X)
    assert oracles_of(report, False) == ALL


def test_function_without_a_custom_rule_is_not_compared_with_itself():
    report = verify.function(dense, X, W, B)
    assert report.passed
    assert oracles_of(report, True) == {"complex step", "finite differences", "taylor"}
    assert any("autodiff" in note for note in report.notes)


def test_rules_inside_loops_and_calls_are_seen_through():
    halved = with_backward(jnp.sin, lambda residuals, y_bar: (0.5 * y_bar * jnp.cos(residuals[0]),))

    def loop(x):
        return jax.lax.scan(lambda carry, _: (jax.jit(halved)(carry), None), x, length=2)[0]

    report = verify.function(loop, X)
    assert oracles_of(report, False) == ALL
    assert report.hints == ("x: every element is the right one divided by 4",)


def test_pallas_kernel():
    def kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...] * jax.nn.sigmoid(x_ref[...])

    def silu(x):
        return pl.pallas_call(kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)

    def backward(residuals, y_bar):
        s = jax.nn.sigmoid(residuals[0])
        return (y_bar * s * (1 + residuals[0] * (1 - s)),)

    reference = lambda x: x / (1 + jnp.exp(-x))  # noqa: E731
    assert verify.function(with_backward(silu, backward), X, reference=reference).passed
    bad = with_backward(silu, wrong(backward, 0, lambda g: 1.001 * g))
    report = verify.function(bad, X, reference=reference)
    assert {"autodiff", "finite differences"} <= oracles_of(report, False)
    assert not verify.function(bad, X).passed


def test_arguments_of_every_kind():
    @partial(jax.custom_vjp, nondiff_argnums=(3,))
    def pick(tree, index, nothing, mode, empty):
        picked = tree["w"][index] * tree["scale"]
        return {"real": picked if mode == "plain" else -picked, "index": index, "sum": jnp.sum(empty)}

    def forward(tree, index, nothing, mode, empty):
        return pick(tree, index, nothing, mode, empty), (tree, index, empty)

    def backward(mode, residuals, y_bar):
        tree, index, empty = residuals
        y_bar, sum_bar = (y_bar["real"] if mode == "plain" else -y_bar["real"]), y_bar["sum"]
        w_bar = jnp.zeros_like(tree["w"]).at[index].add(y_bar * tree["scale"])
        scale_bar = jnp.sum(y_bar * tree["w"][index])
        return {"w": w_bar, "scale": scale_bar}, None, None, jnp.broadcast_to(sum_bar, empty.shape)

    pick.defvjp(forward, backward)
    args = {"w": X.astype(np.float32), "scale": 1.5}, jnp.array([0, 2, 2]), None, "other", np.zeros((0, 2))
    report = verify.function(pick, *args, order=2)
    assert report.passed, str(report)
    assert not report.notes
    names = {row.path for row in report.rows if row.oracle == "autodiff"}
    assert names == {
        f"{name}{order}" for name in ("tree.w", "tree.scale", "empty") for order in ("", " (second)")
    }


def test_complex_arguments():
    def energy(z):
        return jnp.sum(jnp.abs(z) ** 4), z**2

    def backward(residuals, y_bar):
        (z,) = residuals
        return (y_bar[0] * 4 * jnp.abs(z) ** 2 * jnp.conj(z) + y_bar[1] * 2 * z,)

    z = X[0] + 1j * X[1]
    assert verify.function(with_backward(energy, backward), z).passed
    conjugated = wrong(backward, 0, jnp.conj)
    assert not verify.function(with_backward(energy, conjugated), z).passed


def test_function_that_takes_float32_only():
    def single(x):
        if x.dtype != jnp.float32:
            raise TypeError("this kernel takes float32")
        return jnp.sin(x) * x

    def backward(residuals, y_bar):
        (x,) = residuals
        return (y_bar * (jnp.sin(x) + x * jnp.cos(x)),)

    x = X.astype(np.float32)
    report = verify.function(with_backward(single, backward), x)
    assert report.passed and not report.undecided, str(report)
    assert not verify.function(with_backward(single, wrong(backward, 0, lambda g: 1.02 * g)), x).passed


@pytest.mark.parametrize(
    ("backward", "clause"),
    [
        (lambda residuals, y_bar: (y_bar, y_bar), "structure"),
        (lambda residuals, y_bar: (jnp.sum(y_bar),), "structure"),
        (lambda residuals, y_bar: (y_bar * jnp.cos(residuals[0]) + 1e-3,), "zero cotangent"),
        (lambda residuals, y_bar: (jnp.abs(y_bar) * jnp.cos(residuals[0]),), "linear"),
        (lambda residuals, y_bar: (y_bar * np.cos(np.asarray(residuals[0])),), "structure"),
    ],
)
def test_contract_of_the_backward_pass(backward, clause):
    report = verify.function(with_backward(jnp.sin, backward), X)
    assert not report.passed
    assert clause in clauses(report)


def test_forward_that_returns_something_else():
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda x: (jnp.sin(x) + 1e-6, x), lambda x, y_bar: (y_bar * jnp.cos(x),))
    assert clauses(verify.function(f, X)) == {"forward"}


def test_where_trap():
    def root(x):
        return jnp.where(x > 0, jnp.sqrt(x), 0.0)

    report = verify.function(root, np.array([4.0, -1.0]))
    assert not report.passed
    assert clauses(report) >= {"finite"}


@pytest.mark.parametrize("right", [True, False])
def test_symbolic_zeros(right):
    """A backward pass that is told which outputs nobody uses; the wrong one forgets an argument then."""

    @jax.custom_vjp
    def both(x):
        return jnp.sin(x), jnp.exp(x)

    def forward(x):
        assert x.perturbed
        return both(x.value), x.value

    def backward(x, y_bars):
        of_sine, of_exp = y_bars
        nobody = isinstance(of_sine, jax.custom_derivatives.SymbolicZero)
        sine_bar = jnp.zeros_like(x) if nobody else of_sine * jnp.cos(x)
        exp_bar = 0 if isinstance(of_exp, jax.custom_derivatives.SymbolicZero) else of_exp * jnp.exp(x)
        return (sine_bar + (exp_bar if right or not nobody else 0 * exp_bar),)

    both.defvjp(forward, backward, symbolic_zeros=True)
    report = verify.function(both, X)
    assert report.passed is right, str(report)
    assert clauses(report) == (set() if right else {"unused outputs"})


def test_backward_pass_made_for_float32_only():
    """It works in float64 forward, and says float32 backward: checked as it is used."""

    def backward(residuals, y_bar):
        return ((y_bar * jnp.cos(residuals[0])).astype(jnp.float32),)

    sine = with_backward(jnp.sin, backward)
    assert not verify.function(sine, X).passed
    report = verify.function(sine, X.astype(np.float32))
    assert report.passed, str(report)
    assert max(row.tolerance for row in report.rows if row.oracle == "finite differences") > 1e-6


def test_an_oracle_that_fails_to_compute_is_no_note(monkeypatch):
    """Only what JAX cannot transform is a note; an error of the verifier itself is raised."""
    monkeypatch.setattr("bpresearch.verify.answers.decide", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        verify.function(with_backward(jnp.sin, lambda r, u: (u * jnp.cos(r[0]),)), X)


def test_second_order():
    """d/dx of (3 x^2) written by someone who stops the gradient of the residual: right once, wrong twice."""

    def backward(residuals, y_bar):
        return (3 * y_bar * jax.lax.stop_gradient(residuals[0]) ** 2,)

    cube = with_backward(lambda x: x**3, backward)
    assert verify.function(cube, X).passed
    report = verify.function(cube, X, order=2)
    assert {row.path for row in report.rows if row.passed is False} == {"x (second)"}
    assert verify.function(
        with_backward(lambda x: x**3, lambda r, y: (3 * y * r[0] ** 2,)), X, order=2
    ).passed


@pytest.mark.parametrize(("slope", "right"), [(1.0, True), (2.0, False)])
def test_straight_through_estimator(slope, right):
    """What the function stops the gradient of counts as constant in every oracle, to second order too."""

    def estimate(x):
        return x * x + jax.lax.stop_gradient(jnp.round(x) - x)

    rounded = with_backward(estimate, lambda residuals, y_bar: (slope * 2 * residuals[0] * y_bar,))
    report = verify.function(rounded, X[:2], order=2)
    assert report.passed is right, str(report)
    assert oracles_of(report, right) == ALL
    assert not report.undecided


def test_constant_in_a_loop_is_said_and_not_asked():
    def repeated(x):
        return jax.lax.scan(lambda x, _: (x + jax.lax.stop_gradient(jnp.sin(x)), None), x, length=2)[0]

    report = verify.function(with_backward(repeated, lambda residuals, y_bar: (y_bar,)), X[:2])
    assert report.passed, str(report)
    assert oracles_of(report, True) == {"autodiff", "forward mode", "adjoint"}
    assert sum("constant inside a loop" in note for note in report.notes) == 2


@pytest.mark.parametrize("slope", [-1.0, 0.0, 0.4, 1.0])
def test_kink_between_the_sides(slope):
    def sign(residuals, y_bar):
        (x,) = residuals
        return (y_bar * jnp.where(x == 0, slope, jnp.sign(x)),)

    absolute = with_backward(jnp.abs, sign)
    report = verify.function(absolute, np.array([0.0, 1.0, -2.0]))
    assert report.passed, str(report)


@pytest.mark.parametrize(("share", "right"), [(0.0, True), (0.3, True), (-0.2, False)])
def test_ties_and_clipping(share, right):
    """Two elements are the largest, and one lies where clipping begins: each derivative is one of many."""

    def pool_and_clip(x):
        return jnp.max(x[:3]), jnp.clip(x[3:], 0.0, 1.0)

    def backward(residuals, y_bars):
        (x,) = residuals
        of_max, of_clip = y_bars
        slope = jnp.where(x[3:] == 1, share, (x[3:] > 0) & (x[3:] < 1))
        return (
            jnp.concatenate([jnp.stack([share * of_max, 0 * of_max, (1 - share) * of_max]), of_clip * slope]),
        )

    report = verify.function(with_backward(pool_and_clip, backward), np.array([2.0, 1.0, 2.0, 1.0, 0.4, 3.0]))
    assert report.passed is right, str(report)
    assert any("kink" in row.detail for row in report.rows)


def test_kink_outside_the_sides():
    def sign(residuals, y_bar):
        (x,) = residuals
        return (y_bar * jnp.where(x == 0, 1.5, jnp.sign(x)),)

    report = verify.function(with_backward(jnp.abs, sign), np.array([0.0, 1.0, -2.0]))
    assert not report.passed


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1.01, False)])
def test_where_autodiff_is_wrong_differences_decide(factor, right):
    """The derivative of log(sum_i b_i e^(a_i)) with respect to b_i is not zero at 0, as autodiff has it."""

    def logsumexp(b):
        return jax.scipy.special.logsumexp(jnp.array([0.5, 1.0, -1.0]), b=b)

    def backward(residuals, y_bar):
        (b,) = residuals
        powers = jnp.exp(jnp.array([0.5, 1.0, -1.0]))
        return (factor * y_bar * powers / jnp.sum(b * powers),)

    report = verify.function(with_backward(logsumexp, backward), np.array([1.0, 0.0, 2.0]))
    assert report.passed is right, str(report)
    assert right is any("autodiff is wrong" in row.detail for row in report.rows)


def test_assertion_is_the_report(assert_gradients=verify.assert_gradients):
    right = with_backward(dense, dense_backward)
    assert assert_gradients(right, X, W, B).passed
    bad = with_backward(dense, wrong(dense_backward, 1, lambda g: g.T))
    with pytest.raises(AssertionError, match=r"(?s)w .*WRONG.*it equals the transpose"):
        assert_gradients(bad, X, W, B)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, "plain"), {}, "nothing among the arguments is floating point"),
        ((1.0,), {"oracles": ["runes"]}, "oracle 'runes' is not one of contract, autodiff"),
        ((1.0,), {"order": 3}, "order 3 is not 1 or 2"),
    ],
)
def test_bad_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        verify.function(lambda *args: jnp.sin(1.0 * args[0]), *arguments, **options)
