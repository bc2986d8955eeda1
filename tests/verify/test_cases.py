"""A case for every rule, faults in each, and random models of all of them."""

import numpy as np
import pytest

from bpresearch import chainrule, verify
from bpresearch.verify import random_models
from bpresearch.verify.cases import case_of, cases, faults_of, operations_of


def target(name):
    return next(t for t in chainrule.registered() if getattr(t, "__name__", "") == name)


@pytest.fixture(scope="module")
def tanh():
    return case_of(target("tanh"))


def test_rules_have_cases():
    """All but a few, whose inputs are not those of a layer or a loss; each of these is named."""
    found, missing = cases()
    assert len(found) >= 20
    assert len(missing) <= len(found) / 5, missing
    assert all(case.path for case in found)


def test_faults_are_of_the_rule_of_its_operations_and_made_by_hand(tanh):
    operations = operations_of(tanh)  # (1 - y) (1 + y) y_bar
    assert operations["term_dropped"] == 2
    assert operations["factor_dropped"] == 2
    faults = faults_of(tanh)
    assert {"sign_wrong", "factor_dropped 1", "factor_dropped 2", "activation_derivative_missing"} <= set(
        faults
    )


def test_a_planted_fault_is_what_its_number_says(tanh):
    """One program with all faults gives the report that each of them gets alone."""
    faults = {name: faults_of(tanh)[name] for name in ("sign_wrong", "term_dropped 1")}
    question = (tanh.model, tanh.loss_fn, tanh.x, tanh.y)
    check = verify.prepare(*question, "float64", ["autodiff", "rule"], list(faults.values()))
    assert check(tanh.model, tanh.x, tanh.y).passed
    for number, plant in enumerate(faults.values()):
        alone = verify.model(*question, dtype="float64", oracles=["autodiff", "rule"], plant=plant)
        together = check(tanh.model, tanh.x, tanh.y, fault=number)
        assert together.culprits == alone.culprits == (tanh.where,)
        assert [r.passed for r in together.rows] == [r.passed for r in alone.rows]
        errors = [[row.error for row in report.rows] for report in (together, alone)]
        np.testing.assert_allclose(*errors, atol=1e-12)


def test_right_gradients_of_random_models_are_not_rejected():
    result = random_models.verify_many(4, draws=2, seed=3)
    assert (result.verified, result.architectures, result.rejected) == (4, 2, 0), result.complaints
    assert result.leaves >= 4


def test_random_models_are_drawn_alike_from_the_same_seed():
    one, two = (random_models.random_architecture(np.random.default_rng(5)) for _ in range(2))
    assert (one.layers, one.shape, one.outputs) == (two.layers, two.shape, two.outputs)
