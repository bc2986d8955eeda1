"""The catapult: gradient descent on the weights against the closed equations of output and curvature."""

import numpy as np
import pytest

from bpresearch.theory import catapult


@pytest.mark.parametrize(
    ("multiple", "thrown", "returns"), [(1.5, False, True), (3.0, True, True), (4.5, True, False)]
)
def test_the_closed_equations_are_gradient_descents_and_have_three_phases(multiple, thrown, returns):
    width, steps = 200, 40
    u, v = catapult.initial(width)
    output, curvature = float(u @ v) / np.sqrt(width), float(u @ u + v @ v) / width
    rate = multiple / curvature
    trained = catapult.descend(u, v, rate, steps)
    closed = catapult.predicted(output, curvature, rate, width, steps)
    finite = closed.loss < 1e12
    np.testing.assert_allclose(trained.output[finite], closed.output[finite], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(trained.curvature[finite], closed.curvature[finite], rtol=1e-9)
    assert (np.nanmax(trained.loss) > 2 * trained.loss[0]) == thrown
    assert bool(trained.loss[-1] < trained.loss[0]) == returns
    if thrown and returns:
        assert rate * trained.curvature[-1] < 2
