"""The fidelity of a step against the closed form on a quadratic."""

import numpy as np

from bpresearch import diagnostics
from tests.diagnostics.moments import RATE, by_hand, dense_hessian, examples, moment, values


def test_fidelity_on_a_quadratic_is_one_minus_half_the_curvature_over_the_slope(float64):
    at = moment(*examples())
    found = values(diagnostics.step_fidelity, at)
    g = np.concatenate([part.ravel() for part in by_hand(at).values()])
    curvature = RATE**2 * g @ dense_hessian(at) @ g
    np.testing.assert_allclose(found["predicted_decrease"], RATE * g @ g, rtol=1e-10)
    np.testing.assert_allclose(found["observed_decrease"], RATE * g @ g - curvature / 2, rtol=1e-9)
    np.testing.assert_allclose(found["step_fidelity"], 1 - curvature / 2 / (RATE * g @ g), rtol=1e-9)
