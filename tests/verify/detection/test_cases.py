"""A case for every rule, faults in each, and random models of all of them."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule, verify
from bpresearch.verify.detection import random_models
from bpresearch.verify.detection.cases import WITHOUT_CASE, case_of, cases, faults_of, operations_of


def target(name):
    return next(t for t in chainrule.registered() if getattr(t, "__name__", "") == name)


@pytest.fixture(scope="module")
def tanh():
    return case_of(target("tanh"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of losses that Optax will remove
def test_rules_have_cases():
    """All but those of which it is said why not; and these cannot be left there when they have one."""
    with jax.numpy_rank_promotion("allow"):  # Optax's generalized dice loss needs it
        found, missing = cases()
    assert missing == []
    assert all(case.place.is_layer for case in found)
    names = {getattr(target, "__name__", "") for target in chainrule.registered()}
    assert {case.name for case in found} == names - set(WITHOUT_CASE)
    assert set(WITHOUT_CASE) <= names
    assert all(WITHOUT_CASE.values())


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


def test_a_layers_statistics_move_once_whatever_is_planted():
    """A fault in what BatchNorm's forward keeps: the layer computes for both, and its averages are one's."""
    case = case_of(target("BatchNorm"))
    plants = [faults_of(case)[name] for name in ("epsilon_dropped", "scaled")]
    check = verify.prepare(case.model, case.loss_fn, case.x, case.y, "float64", ["rule"], plants)
    assert check(case.model, case.x, case.y).passed
    for fault in range(2):
        assert check(case.model, case.x, case.y, fault=fault).culprits == (case.where,)


@pytest.mark.parametrize("name", ["SimpleCell", pytest.param("LSTMCell", marks=pytest.mark.full)])
def test_faults_inside_a_transformation_are_told_apart_by_their_numbers(name):
    """The rule of a cell is met inside a loop, and asked there."""
    case = case_of(target(name))
    plants = [faults_of(case)[name] for name in ("sign_wrong", "factor_doubled")]
    check = verify.prepare(case.model, case.loss_fn, case.x, case.y, "float64", ["rule"], plants)
    assert check(case.model, case.x, case.y).passed
    for fault in range(2):
        assert check(case.model, case.x, case.y, fault=fault).culprits == (case.where,)


def test_right_gradients_of_random_models_are_not_rejected():
    result = random_models.verify_many(4, draws=2, seed=3)
    assert (result.verified, result.architectures, result.rejected) == (4, 2, 0), result.complaints
    assert result.leaves >= 4


def test_random_models_are_drawn_alike_from_the_same_seed():
    one, two = (random_models.random_architecture(np.random.default_rng(5)) for _ in range(2))
    assert (one.layers, one.shape, one.outputs) == (two.layers, two.shape, two.outputs)


@pytest.mark.parametrize("kind", [random_models.random_architecture, random_models.traced_architecture])
def test_a_draw_leaves_the_architecture_as_it_is(kind):
    """Flax's merge gives a model whose variables are the first one's; draws would add up."""
    rng = np.random.default_rng(5)
    weights = lambda model: jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))  # noqa: E731
    architecture = next(one for one in iter(lambda: kind(rng), None) if weights(one.model))
    before = list(map(np.array, weights(architecture.model)))
    drawn = [weights(architecture.draw(rng)[0]) for _ in range(2)]
    assert all(map(np.array_equal, before, weights(architecture.model)))
    assert not any(map(np.array_equal, *drawn))


def test_a_loss_that_takes_no_targets_of_a_shape_is_not_chosen():
    """ctc_loss has no labels where the blank is the only class."""
    assert random_models._takes(optax.losses.ctc_loss, (2, 4, 3), np.random.default_rng(0))
    assert not random_models._takes(optax.losses.ctc_loss, (2, 4, 1), np.random.default_rng(0))
