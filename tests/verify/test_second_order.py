"""The product of the Hessian with a vector, by rules and by autodiff."""

import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule, models, verify

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


def cube(x):
    return x**3


@chainrule.rule(cube)
class CubeRule:
    def forward(layer, x):
        return x**3, x

    def backward(layer, x, y_bar):
        return {}, 3 * x**2 * y_bar


def second_order_of_cube(factor):
    """R{3 x^2 y_bar} = 3 x^2 y_bar_dot + 6 x x_dot y_bar."""

    class CubeSecondOrder:
        def forward_dot(layer, tangent, x, inputs, inputs_dot):
            return 3 * x**2 * inputs_dot[0], inputs_dot[0]

        def backward_dot(layer, tangent, x, x_dot, y_bar, y_bar_dot):
            return {}, 3 * x**2 * y_bar_dot + factor * x * x_dot * y_bar

    return CubeSecondOrder


@pytest.mark.parametrize(("factor", "passed"), [(6, True), (3, False)])
def test_a_wrong_second_order_rule_is_found_by_second_order_alone(factor, passed):
    chainrule.second_order_rule(cube)(second_order_of_cube(factor))
    _, *rest = problem()
    model = models.mlp((6,), 3, widths=(5,), activation=cube, rngs=nnx.Rngs(0))
    report = verify.model(model, *rest, dtype="float64", order=2, oracles=["autodiff", "rule"])
    wrong = {row.oracle for row in report.rows if row.passed is False}
    assert wrong == (set() if passed else {"second order"})
    assert report.passed is passed


def test_a_layer_without_a_second_order_rule_leaves_it_undecided():
    model = nnx.Sequential(nnx.RNN(nnx.SimpleCell(2, 3, rngs=nnx.Rngs(0))), nnx.tanh)
    x, y = np.ones((2, 4, 2), np.float32), np.zeros((2, 4, 3), np.float32)
    report = verify.model(
        model, optax.losses.squared_error, x, y, dtype="float64", order=2, oracles=["autodiff"]
    )
    rows = [row for row in report.rows if row.oracle == "second order"]
    assert rows and all(row.passed is None for row in rows)
    assert report.passed and any(note.startswith("second order: ") for note in report.notes)
