"""Indexing: reading and writing at computed places, out of bounds, and with indices that repeat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import bpresearch.chainrule.rules.lax.indexing  # noqa: F401  (fills the table)
from bpresearch.chainrule import engine
from bpresearch.chainrule.primitives import Equation, NoPrimitiveRuleError, is_floating, table
from bpresearch.jaxprs import read

X = np.random.default_rng(0).normal(size=(4, 5))
U = np.random.default_rng(1).normal(size=(3, 5))
ONCE, REPEATED, OUTSIDE = jnp.array([2, 0, 3]), jnp.array([2, 0, 2]), jnp.array([2, 7, -9])
MODES = ["clip", "fill", "promise_in_bounds"]


@pytest.fixture(scope="module")
def assert_equations_right(assert_equations_right):
    """As the fixture of the same name, also inside calls of `jax.jit`; what computes indices is left out."""

    def walk(jaxpr, consts, args, options):
        values, seen = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True)), set()
        for eqn in jaxpr.eqns:
            ins = [read(v, values) for v in eqn.invars]
            if inner := eqn.params.get("jaxpr"):
                outs, found = walk(inner.jaxpr, inner.consts, ins, options)
                seen |= found
            else:
                bind = Equation(eqn.primitive, eqn.params, ()).bind
                outs = bind(*ins)
                if any(is_floating(y) for y in outs):
                    assert_equations_right(bind, *ins, **options)
                    seen.add(eqn.primitive.name)
            values.update(zip(eqn.outvars, outs, strict=True))
        return [read(v, values) for v in jaxpr.outvars], seen

    def check(f, *args, names=(), **options):
        closed = jax.make_jaxpr(f)(*args)
        _, seen = walk(closed.jaxpr, closed.consts, map(jnp.asarray, args), options)
        assert {names} <= seen or not names

    return check


def indices(mode):
    return REPEATED if mode == "promise_in_bounds" else jnp.array([2, 7, 2])


@pytest.mark.parametrize("starts", [(1, 2), (0, 0), (9, -1)])
def test_dynamic_slices_have_jax_s_derivative(assert_equations_right, starts):
    assert_equations_right(lambda x, *i: lax.dynamic_slice(x, i, (2, 3)), X, *starts, names="dynamic_slice")
    u = X[:2, :3] + 1
    write = lambda x, u, *i: lax.dynamic_update_slice(x, u, i)  # noqa: E731
    assert_equations_right(write, X, u, *starts, names="dynamic_update_slice")


READINGS = {
    "x[i]": lambda x, i: x[i],
    "x[i, ::2]": lambda x, i: x[i, ::2],
    "x[i, j]": lambda x, i: x[i, i + 1],
    "x[:, i, None]": lambda x, i: x[:, i, None],
    "x[i[:, None], i]": lambda x, i: x[i[:, None], i[None]],
    "x[2]": lambda x, i: x[i[0]],
    "x[-1]": lambda x, i: x[-1],
    "take": lambda x, i: jnp.take(x, i, axis=1),
    "take_along_axis": lambda x, i: jnp.take_along_axis(x[:3], i[:, None], axis=1, mode="clip"),
    "under vmap": lambda x, i: jax.vmap(lambda row, j: row[j])(x[:3], i),
}


@pytest.mark.parametrize("f", READINGS.values(), ids=READINGS)
def test_reading_has_jax_s_derivative(assert_equations_right, f):
    for i in (REPEATED, OUTSIDE):
        assert_equations_right(f, X, i)


def test_reading_goes_by_the_rule_of_gather(assert_equations_right):
    assert_equations_right(lambda x, i: x[i], X, REPEATED, names="gather")
    assert_equations_right(lambda x, i: x[i], X + 1j * X, REPEATED, names="gather")
    assert_equations_right(
        lambda x, i: x[i], X.astype(jnp.bfloat16), REPEATED, names="gather", tolerance=1e-2
    )


@pytest.mark.parametrize("mode", MODES)
def test_gather_in_every_mode(assert_equations_right, mode):
    f = lambda x, i: x.at[i].get(mode=mode, fill_value=jnp.nan)  # noqa: E731
    assert_equations_right(f, X, indices(mode), names="gather")
    if mode != "promise_in_bounds":
        assert_equations_right(lambda x, i: x.at[i, i[::-1]].get(mode=mode), X, OUTSIDE, names="gather")


def test_gather_hands_on_what_is_promised_of_the_indices():
    f = lambda x, i: x.at[i].get(indices_are_sorted=True, unique_indices=True, mode="clip")  # noqa: E731
    eqn = jax.make_jaxpr(f)(X, ONCE).jaxpr.eqns[-1]
    e = Equation(eqn.primitive, eqn.params, (X, ONCE[:, None]), (U,), (True, False))
    (made,) = [
        eqn for eqn in jax.make_jaxpr(lambda y_bar: table.rules["gather"].backward(e, y_bar)[0])(U).jaxpr.eqns
        if eqn.primitive.name == "scatter-add"
    ]  # fmt: skip
    for promise in ("indices_are_sorted", "unique_indices", "mode"):
        assert made.params[promise] == eqn.params[promise]


@given(data=st.data())
@settings(max_examples=3)
def test_gather_of_windows_with_several_indices_and_batch_axes(assert_equations_right, data):
    mode = data.draw(st.sampled_from(["clip", "fill", lax.GatherScatterMode.CLIP]))
    sizes = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    i = jnp.asarray(data.draw(st.lists(st.tuples(*[st.integers(-1, 5)] * 2), min_size=3, max_size=3)))
    x = jnp.stack([X, 2 * X, X - 1])
    numbers = lax.GatherDimensionNumbers((1, 2), (), (2, 1), (0,), (0,))
    f = lambda x, i: lax.gather(x, i, numbers, (1, *sizes), mode=mode)  # noqa: E731
    assert_equations_right(f, x, i, names="gather")


WRITINGS = {
    "[i]": (lambda at, i: at[i], (3, 5)),
    "[i, ::2]": (lambda at, i: at[i, ::2], (3, 3)),
    "[i, j]": (lambda at, i: at[i, i + 1], (3,)),
    "[:, i]": (lambda at, i: at[:, i], (4, 3)),
    "[2]": (lambda at, i: at[i[0]], (5,)),
}


@pytest.mark.parametrize("where, shape", WRITINGS.values(), ids=WRITINGS)
@pytest.mark.parametrize("method, name", [("set", "scatter"), ("add", "scatter-add")])
def test_writing_has_jax_s_derivative(assert_equations_right, where, shape, method, name):
    u = np.random.default_rng(1).normal(size=shape)
    for i in (REPEATED, OUTSIDE):
        assert_equations_right(lambda x, u, i: getattr(where(x.at, i), method)(u), X, u, i, names=name)


METHODS = {
    "scatter": "set",
    "scatter-add": "add",
    "scatter-sub": "subtract",
    "scatter-mul": "multiply",
    "scatter-max": "max",
    "scatter-min": "min",
}


@pytest.mark.parametrize("name, method", METHODS.items(), ids=METHODS)
def test_indices_promised_to_be_unique(assert_equations_right, name, method):
    write = lambda x, u, i: getattr(x.at[i], method)(u, unique_indices=True)  # noqa: E731
    assert_equations_right(write, X, U, ONCE, names=name)
    assert_equations_right(write, X, U, jnp.array([2, 7, -9]), names=name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name, method", METHODS.items(), ids=METHODS)
def test_writing_in_every_mode(name, method, mode):
    """Against the derivative of the same written as sums and products over all pairs of indices."""
    i = indices(mode)
    write = lambda x, u: getattr(x.at[i], method)(u, mode=mode)  # noqa: E731
    by_rule, y = pulled_back(write, X, U)
    places = jnp.clip(i, 0, len(X) - 1) if mode == "clip" else i
    y_by_pairs, pull = jax.vjp(lambda x, u: by_pairs(method, x, u, places), X, U)
    np.testing.assert_allclose(y, y_by_pairs)
    for found, expected in zip(by_rule, pull(jnp.cos(y)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-14)


def by_pairs(method, x, u, i):
    """x with updates one after another: y[n] = y[n] o u[k] where i[k] = n."""
    o = {"set": lambda a, b: b, "add": jnp.add, "subtract": jnp.subtract, "multiply": jnp.multiply}
    o |= {"max": jnp.maximum, "min": jnp.minimum}
    for k in range(len(i)):
        x = jnp.where((jnp.arange(len(x)) == i[k])[:, None], o[method](x, u[k][None]), x)
    return x


def pulled_back(write, x, u):
    """Cotangents of x and u for the cotangent cos(y), by the rules, and y."""
    closed = jax.make_jaxpr(write)(x, u)
    (y,), tape = engine.forward(closed.jaxpr, closed.consts, (jnp.asarray(x), jnp.asarray(u)), (True, True))
    return engine.backward(closed.jaxpr, tape, [jnp.cos(y)], (True, True)), y


def test_of_updates_with_the_same_index_the_one_that_remains_has_the_cotangent():
    (x_bar, u_bar), y = pulled_back(lambda x, u: x.at[REPEATED].set(u), X, U)
    for k, n in enumerate([2, 0, 2]):
        remains = jnp.all(y[n] == U[k])
        np.testing.assert_array_equal(u_bar[k], jnp.where(remains, jnp.cos(y[n]), 0))
    assert not x_bar[2].any() and x_bar[1].all()


@pytest.mark.parametrize("zeros", [(), (0,), (0, 2)], ids=["no zeros", "one zero", "two zeros"])
def test_products_with_repeated_indices_and_zeros(zeros):
    u = U.copy()
    u[list(zeros)] = 0.0
    (x_bar, u_bar), y = pulled_back(lambda x, u: x.at[REPEATED].multiply(u), X, u)
    np.testing.assert_allclose(x_bar[2], jnp.cos(y[2]) * u[0] * u[2])
    np.testing.assert_allclose(u_bar[0], jnp.cos(y[2]) * X[2] * u[2])
    np.testing.assert_allclose(u_bar[2], jnp.cos(y[2]) * X[2] * u[0])
    np.testing.assert_allclose(u_bar[1], jnp.cos(y[0]) * X[0])


@pytest.mark.parametrize("name, method", [("scatter-max", "max"), ("scatter-min", "min")])
def test_extrema_share_ties_as_jax(assert_equations_right, name, method):
    x = jnp.array([1.0, 2.0, 3.0, 4.0])
    u = jnp.array([3.0, 3.0, 3.0, 1.0, 1.0, 0.0])
    for i in ([2, 2, 2, 0, 1, 3], [3, 2, 1, 0, 0, 1]):
        write = lambda x, u, i=i: getattr(x.at[jnp.array(i)], method)(u)  # noqa: E731
        assert_equations_right(write, x, u, names=name)


@given(data=st.data())
@settings(max_examples=3)
def test_scatter_of_windows_with_several_indices_and_batch_axes(assert_equations_right, data):
    scatter = data.draw(st.sampled_from([lax.scatter, lax.scatter_add, lax.scatter_max, lax.scatter_min]))
    mode = data.draw(
        st.sampled_from(["clip", "fill"] if scatter in (lax.scatter, lax.scatter_add) else ["fill"])
    )
    sizes = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    pair = st.tuples(st.integers(-1, 5), st.integers(-1, 4))
    i = jnp.asarray(data.draw(st.lists(st.tuples(pair, pair), min_size=3, max_size=3)))
    x = jnp.stack([X, 2 * X, X - 1])
    u = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2, *sizes)))
    numbers = lax.ScatterDimensionNumbers((2, 3), (), (2, 1), (0,), (0,))
    assert_equations_right(lambda x, i, u: scatter(x, i, u, numbers, mode=mode), x, i, u)


def test_embeddings_and_selected_rows_in_half_precision(assert_equations_right):
    table, tokens = X.astype(jnp.bfloat16), jnp.array([[1, 1], [3, 0]])
    assert_equations_right(lambda t, i: jnp.take(t, i, axis=0), table, tokens, tolerance=2e-2)
    u = U.astype(jnp.bfloat16)
    assert_equations_right(lambda x, u: x.at[REPEATED].add(u), table, u, names="scatter-add", tolerance=2e-2)


def test_apply_is_refused_as_in_jax():
    write = lambda x: x.at[ONCE].apply(jnp.sin)  # noqa: E731
    *_, eqn = jax.make_jaxpr(write)(X).jaxpr.eqns
    ins = (X, ONCE[:, None], jnp.zeros((3, 5)))
    e = Equation(eqn.primitive, eqn.params, ins, (X,), (True, False, False))
    with pytest.raises(NoPrimitiveRuleError, match="apply"):
        table.rules["scatter"].backward(e, X)
    with pytest.raises(NoPrimitiveRuleError, match="apply"):
        table.rules["scatter"].tangent(e, X, None, None)
