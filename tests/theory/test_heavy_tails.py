"""Classes of unequal frequency: closed forms of continuous time against small steps, and times to a loss."""

import numpy as np
import optax
import pytest

from bpresearch.theory import descent, heavy_tails

CLASSES = 10
FREQUENCY = heavy_tails.frequencies(CLASSES)


def test_frequencies_are_zipfs():
    assert FREQUENCY.sum() == pytest.approx(1) and FREQUENCY[0] / FREQUENCY[4] == pytest.approx(5)


def test_gradient_descent_takes_each_class_as_long_as_it_is_rare():
    steps, every, rate = 1200, 20, 0.5
    losses = heavy_tails.trained(FREQUENCY, optax.sgd(rate), steps, every)
    times = np.arange(steps // every + 1) * every * rate
    closed = heavy_tails.by_gradient_descent(FREQUENCY, times[:, None], CLASSES)
    np.testing.assert_allclose(losses, closed, rtol=0.04)
    learned = descent.time_to(0.3, losses, times)
    np.testing.assert_allclose(learned * FREQUENCY, learned[-1] * FREQUENCY[-1], rtol=0.1)
    assert np.isnan(descent.time_to(1e-9, losses, times)).all()


@pytest.mark.parametrize("method", [optax.sign_sgd, optax.adam])
def test_sign_descent_and_adam_take_all_classes_alike(method):
    losses = heavy_tails.trained(FREQUENCY, method(0.01), 200, 10)
    np.testing.assert_allclose(losses, losses[:, :1] + 0 * losses, rtol=1e-4)
    if method is optax.sign_sgd:
        closed = heavy_tails.by_sign_descent(np.arange(21) * 0.1, CLASSES)
        np.testing.assert_allclose(losses[:, 0], closed, rtol=1e-9)


def test_the_closed_form_solves_its_equation():
    time = np.array([0.0, 3.0, 1e4])
    loss = heavy_tails.by_gradient_descent(np.array(0.2), time, CLASSES)
    margin = -np.log(np.expm1(loss) / (CLASSES - 1))
    np.testing.assert_allclose(np.exp(margin) + (CLASSES - 1) * margin, 1 + 0.2 * CLASSES * time, rtol=1e-9)
