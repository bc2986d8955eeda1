"""What the tests of primitives' rules share: each equation by its rule against JAX's own derivative of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import Literal

from bpresearch import chainrule
from bpresearch.chainrule.primitives import Equation, is_floating, table
from bpresearch.verify.precision import UNOPTIMIZED


@pytest.fixture(autouse=True)
def in_float64(float64):
    """Every test of a rule for a primitive is in double precision."""


@pytest.fixture(scope="session")
def assert_equations_right():
    """`assert_equations_right(f, *args, names=..., tolerance=1e-12)`: all of `f(*args)` with a rule.

    Their cotangents, for random cotangents of their results, are those of `jax.vjp` of the primitive alone,
    and their tangents, for random tangents of their operands, those of `jax.jvp`. `names` are the primitives
    that must be among them. Returns the largest relative error.
    """
    return _assert_equations_right


# In double precision nothing hangs on the compiler's optimisations, which take most of its time.


@pytest.fixture(scope="session")
def assert_model_right():
    """`assert_model_right(loss, model, *args, tolerance=1e-12) -> grads, model`.

    The gradient of `loss(model, *args)` is that of `nnx.value_and_grad`, and what becomes of the model's
    other variables, too. Returns the gradient and the model afterwards.
    """
    return _assert_model_right


def _assert_model_right(loss, model, *args, tolerance=1e-12):
    graphdef, state = nnx.split(model)

    def by(engine):
        def answers(state, *args):
            model = nnx.merge(graphdef, state, copy=True)
            value, grads = engine.value_and_grad(loss)(model, *args)
            return value, grads, nnx.state(model)

        return jax.jit(answers, compiler_options=UNOPTIMIZED)(state, *args)

    expected, found = by(nnx), by(chainrule)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, right), ours in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        if not jax.dtypes.issubdtype(right.dtype, jax.dtypes.prng_key):
            _error(jax.tree_util.keystr(path), ours, right, tolerance)
    return found[1], nnx.merge(graphdef, found[2])


@pytest.fixture(scope="session")
def assert_program_right():
    """`assert_program_right(f, *args, tolerance=1e-12, tangents=True)`: `f` as a whole, compiled once.

    For a random cotangent of its results the cotangents of the arguments are those of `jax.vjp`, and for
    random tangents of these the tangents are those of `jax.jvp`. Returns the cotangents.
    """
    return _assert_program_right


def _assert_program_right(f, *args, tolerance=1e-12, tangents=True):
    rng = np.random.default_rng(5)

    def randoms(tree):
        return jax.tree.map(
            lambda x: (
                np.zeros(jnp.shape(x), jax.dtypes.float0) if _random(rng, x) is None else _random(rng, x)
            ),
            tree,
        )

    args = jax.tree.map(jnp.asarray, args)
    bars, dots = randoms(jax.eval_shape(f, *args)), randoms(args)

    def by(engine):
        def answers(*args):
            y, pullback = engine.vjp(f, *args)
            y_dot = engine.jvp(f, args, dots)[1] if tangents else ()
            return jax.tree.map(lambda x: x if is_floating(x) else None, (y, pullback(bars), y_dot))

        return jax.tree.map(np.asarray, jax.jit(answers, compiler_options=UNOPTIMIZED)(*args))

    expected, found = by(jax), by(chainrule)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, right), ours in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        _error(
            f"{('value', 'cotangent', 'tangent')[path[0].idx]} {jax.tree_util.keystr(path[1:])}",
            ours,
            right,
            tolerance,
        )
    return found[1]


def _random(rng, x):
    if not is_floating(x):
        return None
    draw = rng.normal(size=x.shape)
    return jnp.asarray(draw + 1j * rng.normal(size=x.shape) if jnp.iscomplexobj(x) else draw, x.dtype)


def _assert_equations_right(f, *args, names=(), tolerance=1e-12, seed=0):
    closed, rng, worst, seen = jax.make_jaxpr(f)(*args), np.random.default_rng(seed), 0.0, set()
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(closed.jaxpr.invars, map(jnp.asarray, jax.tree.leaves(args)), strict=True))
    for eqn in closed.jaxpr.eqns:
        ins = tuple(jnp.asarray(v.val) if isinstance(v, Literal) else values[v] for v in eqn.invars)
        plain = Equation(eqn.primitive, eqn.params, ins)
        outs = plain.bind(*ins)
        values.update(zip(eqn.outvars, outs, strict=True))
        name = eqn.primitive.name
        if name in table.rules:
            seen.add(name)
            worst = max(worst, _check(name, plain, ins, outs, rng, tolerance))
    missing = {names} - seen if isinstance(names, str) else set(names) - seen
    assert not missing, (
        f"no rule was asked for {missing}; the equations are {[e.primitive.name for e in closed.eqns]}"
    )
    return worst


def _check(name, plain, ins, outs, rng, tolerance):
    wrt = [i for i, x in enumerate(ins) if is_floating(x)]
    through = [i for i, y in enumerate(outs) if is_floating(y)]
    e = Equation(plain.primitive, plain.params, ins, outs, tuple(i in wrt for i in range(len(ins))))

    def of_some(*some):
        filled = dict(enumerate(ins)) | dict(zip(wrt, some, strict=True))
        outs = plain.bind(*filled.values())
        return [outs[i] for i in through]

    some = [ins[i] for i in wrt]
    bars, dots = [_random(rng, y) for y in outs], [_random(rng, x) for x in ins]
    expected = jax.vjp(of_some, *some)[1]([bars[i] for i in through])
    found = _several(table.rules[name].backward(e, *bars))
    assert len(found) == len(ins), f"{name}: {len(found)} cotangents for {len(ins)} operands"
    worst = max(
        (
            _error(f"{name}, cotangent of operand {i}", found[i], right, tolerance)
            for i, right in zip(wrt, expected, strict=True)
        ),
        default=0.0,
    )
    expected = jax.jvp(of_some, some, [dots[i] for i in wrt])[1]
    found = _several(table.rules[name].tangent(e, *dots))
    assert len(found) == len(outs), f"{name}: {len(found)} tangents for {len(outs)} results"
    for i, right in zip(through, expected, strict=True):
        worst = max(worst, _error(f"{name}, tangent of result {i}", found[i], right, tolerance))
    for i in wrt:  # one operand at a time: the others' tangents are None
        alone = [dot if j == i else None for j, dot in enumerate(dots)]
        found = _several(table.rules[name].tangent(e, *alone))
        expected = jax.jvp(
            lambda x, i=i: of_some(*(x if j == i else ins[j] for j in wrt)), [ins[i]], [dots[i]]
        )[1]
        for j, right in zip(through, expected, strict=True):
            worst = max(worst, _error(f"{name}, tangent along operand {i}", found[j], right, tolerance))
    return worst


def _several(answer):
    return tuple(answer) if isinstance(answer, tuple | list) else (answer,)


def _error(what, found, right, tolerance):
    found = jnp.zeros_like(right) if found is None else found
    assert (found.shape, found.dtype) == (right.shape, right.dtype), f"{what}: {found.shape} {found.dtype}"
    found, right = np.asarray(found), np.asarray(right)
    same = (found == right) | (np.isnan(found) & np.isnan(right))  # infinities, too
    apart = np.max(np.abs(np.subtract(found, right, where=~same, out=np.zeros_like(right))), initial=0.0)
    size = np.max(np.abs(right, where=np.isfinite(right), out=np.zeros(same.shape)), initial=0.0)
    error = float(apart / size) if size else float(apart)
    assert error <= tolerance, f"{what}: off by {error:.3g}"
    return error
