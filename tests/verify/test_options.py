"""What a verification can be told: which arguments, how exact, against what, and at which points."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch import verify

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def by_hand(forward, backward):
    f = jax.custom_vjp(forward)
    f.defvjp(lambda *args: (forward(*args), args), backward)
    return f


def wrong(oracle, report):
    return [row.path for row in report.rows if row.oracle == oracle and row.passed is False]


def test_only_chosen_arguments_are_looked_at():
    f = by_hand(lambda x, w: jnp.sum(x * w), lambda kept, g: (g * kept[1], 2 * g * kept[0]))
    assert verify.function(f, X, 2 * X).passed is False
    assert verify.function(f, X, 2 * X, argnums=0).passed is True
    assert verify.function(f, X, 2 * X, argnums=(1,)).passed is False
    with pytest.raises(ValueError, match="argnums 2 is not the number of one of 2 arguments"):
        verify.function(f, X, X, argnums=2)


def test_keywords_are_held_fast():
    power = lambda x, *, n: jnp.sum(x**n)  # noqa: E731
    report = verify.function(power, X, kwargs={"n": 3})
    assert report.passed is True
    assert {row.path for row in report.rows if row.oracle == "finite differences"} == {"x"}


def test_a_solver_is_right_to_its_tolerance():
    f = by_hand(lambda x: jnp.sum(x**2), lambda kept, g: (2.0001 * kept[0] * g,))
    assert verify.function(f, X).passed is False
    assert verify.function(f, X, tolerance=1e-3).passed is True
    assert verify.function(f, X, tolerance=1e-5).passed is False
    with pytest.raises(ValueError, match="tolerance 2"):
        verify.function(f, X, tolerance=2.0)


def test_the_precision_can_be_chosen():
    report = verify.function(by_hand(jnp.sin, lambda kept, g: (g * jnp.cos(kept[0]),)), X, dtype="float32")
    assert report.passed is not False
    assert any("it takes float64" in note for note in report.notes)


def straight_through(slope):
    return by_hand(lambda x: jnp.round(x), lambda kept, g: (slope * g,))


def test_a_derivative_that_is_meant_to_differ_is_declared():
    rounding = straight_through(1.0)
    report = verify.function(rounding, 3 * X)
    assert report.passed is False
    assert any("declare it with surrogate=" in hint for hint in report.hints)
    assert verify.function(rounding, 3 * X, surrogate=lambda x: x).passed is True
    assert verify.function(straight_through(0.5), 3 * X, surrogate=lambda x: x).passed is False


def test_a_reference_is_the_authority():
    """Its derivative decides; what differences say against it is a fact about it."""
    square = by_hand(lambda x: x * x, lambda kept, g: (2 * kept[0] * g,))

    def stopped(x):
        return x * jax.lax.stop_gradient(x) + jax.lax.stop_gradient(0 * x)

    assert verify.function(square, X, reference=lambda x: x**2).passed is True
    halved = by_hand(lambda x: x * x, lambda kept, g: (kept[0] * g,))
    report = verify.function(halved, X, reference=stopped)
    assert report.passed is True, str(report)
    assert any(note.startswith("A fact about the reference") for note in report.notes)


def test_a_reference_with_other_values_is_no_reference():
    square = by_hand(lambda x: x * x, lambda kept, g: (2 * kept[0] * g,))
    report = verify.function(square, X, reference=lambda x: x**2 + 1e-3)
    assert report.passed is False and wrong("contract", report) == ["values"]
    with pytest.raises(ValueError, match="the reference returns shapes"):
        verify.function(square, X, reference=lambda x: jnp.sum(x))
    with pytest.raises(ZeroDivisionError):
        verify.function(square, X, reference=lambda x: x / (1 // 0))


@pytest.mark.parametrize(
    ("forward", "backward", "where"),
    [
        (jnp.abs, lambda kept, g: (g * jnp.where(kept[0] == 0, 3.0, jnp.sign(kept[0])),), "at zeros"),
        (jnp.tanh, lambda kept, g: (g / jnp.cosh(jnp.minimum(jnp.abs(kept[0]), 3)) ** 2,), "at saturated"),
        (lambda x: jnp.max(x), lambda kept, g: (g * (kept[0] == jnp.max(kept[0])),), "at ties"),
        (lambda x: jnp.mean(x**2), lambda kept, g: (g * kept[0] * 2 / 12,), "at 3 rows"),
    ],
)
def test_adversarial_points_show_what_random_ones_do_not(forward, backward, where):
    f = by_hand(forward, backward)
    assert verify.function(f, X).passed is True
    report = verify.function(f, X, points="adversarial")
    assert report.passed is False
    assert any(where in row.path for row in report.rows if row.passed is False), str(report)


def test_nothing_resolved_is_not_right():
    nothing = lambda x: jnp.full(3, -jnp.inf) + 0 * jnp.sum(x)  # noqa: E731
    report = verify.function(nothing, X)
    assert report.passed is None
    assert report.summary().startswith("Undecided: no oracle could tell at x")
    with pytest.raises(AssertionError, match="is undecided"):
        verify.assert_gradients(nothing, X)
    assert verify.assert_gradients(nothing, X, undecided="allow").passed is None


def test_python_that_is_called_back_computes_in_double_precision():
    def host(x):
        return np.asarray(jnp.sin(x))

    def sine(x):
        return jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")

    f = by_hand(sine, lambda kept, g: (g * jnp.cos(kept[0]),))
    assert verify.function(f, X).passed is True
    bad = by_hand(sine, lambda kept, g: (1.001 * g * jnp.cos(kept[0]),))
    assert verify.function(bad, X).passed is False
    with ThreadPoolExecutor(1) as other:
        assert other.submit(jnp.ones, 1).result().dtype == jnp.float32, "it stays on for all threads"


def test_whole_numbers_of_64_bits_in_what_is_held_fast():
    """An embedding whose rows are asked for twice, with indices as NumPy makes them."""
    ids = np.array([0, 2, 2, 3, 2])

    def backward(add, kept, g):
        zeros = jnp.zeros_like(kept[0])
        return (zeros.at[kept[1]].add(g) if add else zeros.at[kept[1]].set(g)), None

    for add in (True, False):
        f = jax.custom_vjp(lambda table, ids: table[ids])
        f.defvjp(lambda table, ids: (table[ids], (table, ids)), partial(backward, add))
        assert verify.function(f, X, ids).passed is add


def test_rules_inside_shard_map_are_seen():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("devices",))
    doubled = by_hand(lambda x: 2 * x, lambda kept, g: (3 * g,))
    spec = jax.sharding.PartitionSpec("devices")
    f = jax.shard_map(doubled, mesh=mesh, in_specs=spec, out_specs=spec)
    report = verify.function(lambda x: jnp.sum(f(x)), X, oracles=["autodiff"])
    assert report.passed is False and wrong("autodiff", report) == ["x"]


@pytest.mark.parametrize(
    ("backward", "hint"),
    [
        (lambda kept, g: (jnp.ones_like(g) * jnp.cos(kept[0]),), "it is the same for every cotangent"),
        (lambda kept, g: (g[:1] * jnp.cos(kept[0]),), "the cotangent of the first example was used for all"),
        (lambda kept, g: ((g * jnp.cos(kept[0])).at[jnp.array([1])].multiply(7),), "only what has index 1"),
    ],
)
def test_what_an_error_looks_like(backward, hint):
    report = verify.function(by_hand(jnp.sin, backward), X)
    assert report.passed is False
    assert any(hint in said for said in report.hints), report.hints


def test_a_conjugate_is_told():
    z = X[0] + 1j * X[1]
    f = by_hand(lambda z: z**2, lambda kept, g: (g * 2 * jnp.conj(kept[0]),))
    report = verify.function(f, z)
    assert report.passed is False
    right = by_hand(lambda z: z**2, lambda kept, g: (g * 2 * kept[0],))
    assert verify.function(right, z).passed is True


def test_a_function_that_is_defined_anew_is_verified_anew():
    """Programs are kept, for the same derivative only."""
    square = jax.custom_vjp(lambda x: x * x)
    square.defvjp(lambda x: (x * x, x), lambda x, g: (2 * x * g,))
    outer = lambda x: jnp.sum(square(x))  # noqa: E731
    assert verify.function(outer, X).passed is True
    square.defvjp(lambda x: (x * x, x), lambda x, g: (x * g,))
    assert verify.function(outer, X).passed is False
