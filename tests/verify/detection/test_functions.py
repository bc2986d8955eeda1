"""The table of JAX's public functions: what counts, what is right, and that a wrong rule is seen."""

import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch import chainrule
from bpresearch.verify.detection.arguments import ARGUMENTS, Case
from bpresearch.verify.detection.functions import (
    functions,
    namespaces,
    of_moving_arrays,
    public_functions,
    relative_error,
    row_of,
)


@pytest.fixture(scope="module")
def rows():
    """A few functions of each kind, by name."""
    names = """numpy.sin numpy.acos numpy.linalg.trace numpy.argmax numpy.floor numpy.linalg.eig
        numpy.fft.rfft lax.reduce_precision numpy.arange lax.psum lax.scan scipy.stats.norm.logcdf"""
    names = {f"jax.{name}" for name in names.split()}
    rows = {row.name: row for row in functions(tuple(names)).rows}
    assert set(rows) == names
    return rows


@pytest.mark.parametrize(
    "name", ["jax.numpy.sin", "jax.numpy.fft.rfft", "jax.lax.scan", "jax.scipy.stats.norm.logcdf"]
)
def test_right_functions(rows, name):
    row = rows[name]
    assert row.right and row.counts
    assert max(row.backward, row.forward) <= 1e-10 and row.differences <= 1e-6
    assert str(row).endswith("right")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("jax.numpy.acos", "alias of jax.numpy.arccos"),
        ("jax.numpy.linalg.trace", "alias of jax.numpy.trace"),
        ("jax.numpy.argmax", "its arguments or results are integers"),
        ("jax.numpy.floor", "its results do not change"),
        ("jax.numpy.linalg.eig", "JAX refuses: NotImplementedError"),
        ("jax.numpy.arange", "takes no arrays"),
        ("jax.lax.psum", "needs the devices of a mesh axis"),
    ],
)
def test_functions_that_do_not_count(rows, name, reason):
    assert rows[name].reason.startswith(reason)
    assert not rows[name].counts and not rows[name].right


def test_an_explained_difference_does_not_count_as_right(rows):
    table = functions(["jax.lax.reduce_precision"])
    assert table.counted == ["jax.lax.reduce_precision"] and table.right == [] and table.wrong == []
    assert "differs: a staircase" in str(table)


def test_a_wrong_rule_is_seen():
    class WrongRule:
        def backward(e, y_bar):
            return 1.000001 * y_bar * jnp.cos(e.ins[0])

        def tangent(e, x_dot):
            return x_dot * jnp.cos(e.ins[0])

    with chainrule.replacing(lambda e, rule: WrongRule if e.name == "sin" else rule):
        table = functions(["jax.numpy.sin"])
    assert table.wrong == ["jax.numpy.sin"] and table.right == []
    assert table.rows[0].forward <= 1e-10 < table.rows[0].backward
    assert "WRONG" in str(table) and str(table).endswith("1 functions: 0 right, 0 explained, 1 wrong")


def test_a_missing_rule_is_wrong_and_says_so():
    class Unknown(chainrule.NoPrimitiveRuleError):
        pass

    def refuse(e, rule):
        raise Unknown("no rule")

    with chainrule.replacing(refuse):
        row = row_of("jax.numpy.sin", jnp.sin)
    assert row.counts and not row.right and row.failure == "Unknown: no rule"


def test_arguments_are_of_functions_that_exist():
    """In one of the two versions: a name may be new, or gone."""
    names = {name for name, _, _ in public_functions()}
    assert len(set(ARGUMENTS) & names) > 0.97 * len(ARGUMENTS)
    assert "jax.scipy.stats.norm" in namespaces()


def test_floating_point_arrays_are_moved_and_nothing_else():
    def f(x, n, options, *, scale):
        return {"floats": x * scale + n + len(options), "integers": n}

    g, xs = of_moving_arrays(f, Case((np.ones(2), np.arange(2), (1, 2.5)), {"scale": np.float64(3)}))
    assert [x.shape for x in xs] == [(2,), ()]
    assert [y.tolist() for y in g(*xs)] == [[5.0, 6.0]]


def test_errors_are_relative_and_nan_is_infinite():
    assert relative_error([np.array([1.0, 2.2])], [np.array([1.0, 2.0])]) == pytest.approx(0.1)
    assert relative_error([np.array([np.nan]), np.array([1.0])], [np.array([1.0]), np.array([1.0])]) == np.inf
    assert relative_error([np.zeros(2)], [np.zeros(3)]) == np.inf
    assert relative_error([np.array([1e-20]), np.array([1.0])], [np.array([0.0]), np.array([1.0])]) < 1e-15
