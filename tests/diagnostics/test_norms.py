"""Norms of gradients, updates and ways against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from bpresearch import diagnostics, optim
from tests.diagnostics.moments import RATE, by_hand, examples, moment, values


def test_norms_are_those_of_each_layers_gradient_and_update(float64):
    at = moment(*examples())
    expected = {name: np.linalg.norm(g) for name, g in by_hand(at).items()}
    for diagnostic, factor in ((diagnostics.gradient_norms, 1), (diagnostics.update_norms, RATE)):
        ((_, found),) = diagnostic(at).items()
        assert list(found.coordinates["layer"]) == list(expected)
        np.testing.assert_allclose(found.values, factor * np.array(list(expected.values())), rtol=1e-10)
    signs = moment(*examples(), optimizer=optim.sign_sgd)
    np.testing.assert_allclose(
        values(diagnostics.update_norms, signs)["update_norm"], RATE * np.sqrt([2, 6]), rtol=1e-10
    )


def test_distance_is_from_the_initial_weights(float64):
    assert values(diagnostics.distance, moment(*examples()))["distance"] == 0
    one_step = moment(*examples(), steps=1)
    before = moment(*examples())
    length = np.sqrt(sum((g**2).sum() for g in by_hand(before).values()))
    np.testing.assert_allclose(values(diagnostics.distance, one_step)["distance"], RATE * length, rtol=1e-6)


def test_the_histogram_counts_every_element_once(float64):
    at = moment(*examples())
    ((_, found),) = diagnostics.gradient_histogram(at).items()
    g = np.abs(np.concatenate([part.ravel() for part in by_hand(at).values()]))
    ends = [*found.coordinates["log10_gradient"], 2.0]
    expected, _ = np.histogram(np.log10(g), ends)
    np.testing.assert_allclose(found.values, expected / g.size, rtol=1e-6)
    none = at._replace(next=jax.tree.map(jnp.zeros_like, at.next))
    assert values(diagnostics.gradient_histogram, none)["gradient_histogram"][0] == 1
