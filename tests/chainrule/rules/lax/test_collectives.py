"""Collectives on two devices, types checked and not, against JAX's own rules and against sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import bpresearch.chainrule.rules.lax.collectives as collectives
from bpresearch.chainrule.primitives import Equation, is_floating, table


@pytest.fixture
def on_two():
    """`on_two(f, *arrays, check_vma=...)`: each device's f of its part; the results side by side."""
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))

    def run(f, *arrays, check_vma=True):
        def varying(*parts):
            return [
                y if "i" in jax.typeof(y).mat.varying else lax.pcast(y, "i", to="varying") for y in f(*parts)
            ]

        body = varying if check_vma else f
        mapped = jax.shard_map(body, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=check_vma)
        return jax.jit(mapped)(*arrays)

    return run


def by_both(name, f, *args, y_bar=None, dots=None):
    """Cotangents and tangents of the one equation of that name, by its rule and by JAX's own, on a device."""
    closed = jax.make_jaxpr(f)(*args)
    (eqn,) = (eqn for eqn in closed.jaxpr.eqns if eqn.primitive.name == name)
    moving = [i for i, x in enumerate(args) if is_floating(x)]
    e = Equation(eqn.primitive, eqn.params, args, wanted=tuple(i in moving for i in range(len(args))))

    def of_moving(*some):
        filled = dict(enumerate(args)) | dict(zip(moving, some, strict=True))
        return e.bind(*filled.values())

    some = [args[i] for i in moving]
    (y,), transpose = jax.vjp(of_moving, *some)
    y_bar = jnp.cos(y) if y_bar is None else y_bar
    dots = dots or [jnp.sin(3 * x) if is_floating(x) else None for x in args]
    e = e.with_results((y,))
    bars, (y_dot,) = table.rules[name].backward(e, y_bar), several(table.rules[name].tangent(e, *dots))
    expected = jax.jvp(of_moving, some, [dots[i] for i in moving])[1]
    return [*(several(bars)[i] for i in moving), y_dot], [*transpose((y_bar,)), *expected]


def several(answer):
    return answer if isinstance(answer, tuple) else (answer,)


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


CASES = {
    "ppermute": lambda x: lax.ppermute(x, "i", [(0, 1)]),
    "all_gather": lambda x: lax.all_gather(x, "i", axis=1),
    "reduce_scatter": lambda x: lax.psum_scatter(x, "i", scatter_dimension=1, tiled=True),
    "all_to_all": lambda x: lax.all_to_all(x, "i", 0, 1, tiled=True),
}
OLD_NAMES = jax.__version_info__ < (0, 12)


def array(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape or (4, 2)))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_exchanges(on_two, name, check_vma):
    def each(x):
        found, expected = by_both(name, CASES[name], x)
        return [*found, *expected]

    answers = on_two(each, array(4, 2), check_vma=check_vma)
    assert_same(answers[:2], answers[2:])


@pytest.mark.parametrize("check_vma", [True, False])
def test_untiled_exchanges(on_two, check_vma):
    def each(x):
        pairs = [
            by_both("all_gather", lambda x: lax.all_gather(x, "i", axis=0, tiled=True), x),
            by_both("reduce_scatter", lambda x: lax.psum_scatter(x, "i", scatter_dimension=1), x),
        ]
        return [v for found, _ in pairs for v in found] + [v for _, expected in pairs for v in expected]

    answers = on_two(each, array(4, 2), check_vma=check_vma)
    assert_same(answers[:4], answers[4:])


@pytest.mark.parametrize(("split", "concat", "shape"), [(1, 0, (3, 2)), (0, 1, (2, 3))])
def test_untiled_exchange_of_axes(on_two, split, concat, shape):
    """sum_k <(y_k)_bar, (y_k)_dot> = sum_k <(x_k)_bar, (x_k)_dot>. (JAX itself fails there.)"""

    def each(x):
        closed = jax.make_jaxpr(lambda x: lax.all_to_all(x, "i", split, concat))(x)
        (eqn,) = (eqn for eqn in closed.jaxpr.eqns if eqn.primitive.name == "all_to_all")
        x = x.reshape(eqn.invars[0].aval.shape)
        e = Equation(eqn.primitive, eqn.params, (x,), wanted=(True,))
        e, rule = e.with_results(e.bind(x)), table.rules["all_to_all"]
        y_bar = jnp.cos(e.outs[0])
        products = jnp.sum(rule.backward(e, y_bar)[0] * x), jnp.sum(y_bar * rule.tangent(e, x)[0])
        return [jnp.expand_dims(lax.psum(product, "i"), 0) for product in products]

    x_bar_x_dot, y_bar_y_dot = on_two(each, array(2 * shape[0], shape[1]))
    np.testing.assert_allclose(x_bar_x_dot, y_bar_y_dot, rtol=1e-12)


def test_sums_with_types(on_two):
    """psum takes varying to invariant, pcast takes it back, and each is the other's transpose."""

    def each(x):
        invariant = lax.psum(x, "i")
        pairs = [
            by_both("psum_invariant", lambda x: lax.psum(x, "i"), x),
            by_both("pvary", lambda x: lax.pcast(x, "i", to="varying"), invariant),
            by_both("all_gather_invariant", lambda x: lax.all_gather(x, "i", to="invarying"), x),
            by_both(
                "all_gather_invariant",
                lambda x: lax.all_gather(x, "i", to="invarying", tiled=True, axis=1),
                x,
            ),
        ]
        return [v for found, _ in pairs for v in found] + [v for _, expected in pairs for v in expected]

    answers = on_two(each, array())
    assert_same(answers[:8], answers[8:])


def test_sums_without_types(on_two):
    """Each device uses the sum for itself, so that the transpose sums over devices."""

    def each(x):
        found, expected = by_both("psum", lambda x: lax.psum(x, "i"), x)
        return [*found, *expected]

    x = array()
    answers = on_two(each, x, check_vma=False)
    assert_same(answers[:2], answers[2:])
    total = np.cos(x[:2] + x[2:])
    np.testing.assert_allclose(answers[0], np.concatenate([2 * total] * 2), rtol=1e-12)


def test_groups_of_devices(on_two):
    groups = [[0], [1]]

    def each(x):
        found, expected = by_both("psum", lambda x: lax.psum(x, "i", axis_index_groups=groups), x)
        return [*found, *expected]

    answers = on_two(each, array(), check_vma=False)
    assert_same(answers[:2], answers[2:])


def test_sums_over_a_vmap(assert_equations_right):
    summed = jax.vmap(lambda x: lax.psum(x, "i"), axis_name="i")
    assert_equations_right(summed, array(3, 2), names="psum")


def test_broadcast_from_one():
    """y_k = x_1: its cotangent gets the sum, the others' zero. (Compiled for GPUs only; a vmap shows it.)"""

    def each(x, y_bar):
        closed = jax.make_jaxpr(lambda x: lax.pbroadcast(x, "i", 1), axis_env=[("i", 3)])(x)
        (eqn,) = closed.jaxpr.eqns
        e = Equation(eqn.primitive, eqn.params, (x,))
        return table.rules["pbroadcast"].backward(e, y_bar)[0]

    y_bar = array(3, 2)
    x_bar = jax.vmap(each, axis_name="i")(array(3, 2), y_bar)
    np.testing.assert_allclose(x_bar[1], y_bar.sum(0), rtol=1e-12)
    assert not x_bar[0].any() and not x_bar[2].any()


# How a value that varies becomes one of another kind, and one of any kind varies again.
KINDS = {
    "varying": (lambda x: x, lambda x: x),
    "invariant": (lambda x: lax.psum(x, "i"), lambda x: lax.pcast(x, "i", to="varying")),
    "unreduced": (
        lambda x: lax.pcast(x, "i", to="unreduced"),
        lambda x: lax.pcast(lax.psum(x, "i"), "i", to="varying"),
    ),
    "reduced": (
        lambda x: lax.pcast(lax.psum(x, "i"), "i", to="reduced"),
        lambda x: lax.pcast(x, "i", to="varying"),
    ),
}
COTANGENT = {"varying": "varying", "invariant": "invariant", "unreduced": "reduced", "reduced": "unreduced"}
OF_KINDS = {
    "unreduced_psum": (lambda x: lax.psum(x, "i"), "unreduced", "invariant", (2, 2)),
    "preduced": (lambda x: lax.pcast(x, "i", to="reduced"), "invariant", "reduced", (2, 2)),
    "vary_unreduced_cast": (lambda x: lax.pcast(x, "i", to="unreduced"), "varying", "unreduced", (2, 2)),
    "reduced_vary_cast": (lambda x: lax.pcast(x, "i", to="varying"), "reduced", "varying", (2, 2)),
    "all_gather_reduced": (lambda x: lax.all_gather(x, "i", to="reduced"), "varying", "reduced", (2, 2, 2)),
    "unreduced_reduce_scatter": (
        lambda x: lax.psum_scatter(x, "i", scatter_dimension=1, tiled=True), "unreduced", "varying", (2, 1),
    ),
}  # fmt: skip


def test_sums_still_to_be_taken(on_two):
    def each(x):
        found, expected = [], []
        for name, (f, of, to, shape) in OF_KINDS.items():
            make, (bar, _), undo = KINDS[of][0], KINDS[COTANGENT[to]], KINDS[COTANGENT[of]][1]
            seed = jnp.broadcast_to(jnp.sum(jnp.tan(x)), shape) + jnp.arange(np.prod(shape)).reshape(shape)
            name = name + "_p" if name.endswith("cast") and OLD_NAMES else name
            answers = by_both(name, f, make(x), y_bar=bar(seed), dots=[make(jnp.sin(3 * x))])
            for (x_bar, y_dot), side in zip(answers, (found, expected), strict=True):
                side += [undo(x_bar), KINDS[to][1](y_dot)]
        return found + expected

    answers = on_two(each, array())
    assert_same(answers[:12], answers[12:])


def test_ragged_exchange(on_two):
    """Device 0 sends one row to itself and two to device 1, which sends two and one. (Not compiled for CPUs:
    JAX's own rules bind the same.)"""
    starts, sizes = jnp.asarray([0, 1, 0, 2]), jnp.asarray([1, 2, 2, 1])
    targets, received = jnp.asarray([0, 0, 1, 2]), jnp.asarray([1, 2, 2, 1])

    def each(x, z, *where):
        closed = jax.make_jaxpr(lambda *args: lax.ragged_all_to_all(*args, axis_name="i"))(x, z, *where)
        (eqn,) = (eqn for eqn in closed.jaxpr.eqns if eqn.primitive.name == "ragged_all_to_all")
        e = Equation(
            eqn.primitive, eqn.params, (x, z, *where), (z,), (True, True, False, False, False, False)
        )
        x_bar, z_bar, *_ = table.rules["ragged_all_to_all"].backward(e, jnp.cos(z))
        return [x_bar, z_bar, *several(table.rules["ragged_all_to_all"].tangent(e, x, z))]

    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(each, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=False)
    x, z = array(6, 2), array(8, 2)
    shapes = [y.shape for y in jax.eval_shape(mapped, x, z, starts, sizes, targets, received)]
    assert shapes == [x.shape, z.shape, z.shape]


def test_rows_that_arrive():
    z = jnp.zeros((6, 1))
    some = collectives._rows_between(z, jnp.asarray([0, 3]), jnp.asarray([1, 2]))
    assert some[:, 0].tolist() == [True, False, False, True, True, False]


def test_maxima_are_refused_as_in_jax():
    assert {"pmax", "pmin"} <= set(table.refused)
    assert "axis_index" in table.constants
    with pytest.raises(NotImplementedError):
        jax.vmap(jax.grad(lambda x: lax.pmax(x, "i")), axis_name="i")(jnp.arange(3.0))
