"""The product of the Hessian with a vector, by rules and by autodiff."""

import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import models, verify
from bpresearch.chainrule import registry
from bpresearch.chainrule.primitives import table

LABELS = optax.losses.softmax_cross_entropy_with_integer_labels


def problem():
    rng = np.random.default_rng(0)
    model = models.mlp((6,), 3, widths=(5,), activation=nnx.tanh, rngs=nnx.Rngs(0))
    return model, LABELS, rng.normal(size=(4, 6)).astype(np.float32), rng.integers(0, 3, 4)


def test_every_parameter_has_a_row_where_second_order_is_asked_for():
    report = verify.model(*problem(), dtype="float64", order=2, oracles=["autodiff"])
    rows = [row for row in report.rows if row.oracle == "second order"]
    assert {row.path for row in rows} == {f"layers.{n}.{leaf}" for n in (1, 3) for leaf in ("bias", "kernel")}
    assert all(row.passed and row.error < 1e-13 for row in rows)
    assert report.passed and "second order" in str(report)
    with pytest.raises(ValueError, match="order 3 is not 1 or 2"):
        verify.model(*problem(), order=3)


def test_a_wrong_tangent_is_found_by_second_order_alone(monkeypatch):
    """The gradient of tanh is right; the tangent of the product in it is not."""

    class WrongTangent:
        backward = table.rules["mul"].backward

        def tangent(e, *dots):
            return 1.001 * table_mul.tangent(e, *dots)

    table_mul = table.rules["mul"]
    model, *rest = problem()
    monkeypatch.setitem(table.rules, "mul", WrongTangent)
    registry.changed()
    report = verify.model(model, *rest, dtype="float64", order=2, oracles=["autodiff", "rule"])
    registry.changed()
    assert {row.oracle for row in report.rows if row.passed is False} == {"second order"}


def test_models_with_loops_have_a_second_order():
    model = nnx.Sequential(nnx.RNN(nnx.SimpleCell(2, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)), nnx.tanh)
    x, y = np.ones((2, 4, 2), np.float32), np.zeros((2, 4, 3), np.float32)
    report = verify.model(
        model, optax.losses.squared_error, x, y, dtype="float64", order=2, oracles=["autodiff"]
    )
    rows = [row for row in report.rows if row.oracle == "second order"]
    assert rows and all(row.passed for row in rows), str(report)
