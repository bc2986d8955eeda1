"""Losses by name, and targets in the form that each takes."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpresearch import chainrule, losses


def test_classes_become_rows_for_a_loss_between_numbers():
    y = np.array([0, 2, 1, 2])
    np.testing.assert_array_equal(losses.targets(optax.losses.squared_error, 3, y), np.eye(3)[y])
    np.testing.assert_array_equal(losses.targets(optax.losses.hinge_loss, 3, y), 2 * np.eye(3)[y] - 1)
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
    assert losses.targets(cross_entropy, 3, y) is y
    assert losses.targets(optax.losses.squared_error, None, y) is y
    for loss in (optax.losses.squared_error, cross_entropy):
        with pytest.raises(ValueError, match="a label is -1: the loss takes classes, integers from 0"):
            losses.targets(loss, 3, y - 1)


def test_a_loss_of_the_users_own_gets_the_targets_as_they_are():
    y = np.array([0, 2, 1, 2])
    for labels in (y, y - 1):
        assert losses.targets(lambda outputs, targets: outputs - targets, 3, labels) is labels


def test_every_loss_that_a_name_gives_has_a_rule():
    assert set(losses.BY_NAME.values()) <= set(chainrule.registered())
    assert losses.named("mse") is optax.losses.squared_error


def test_the_accuracy_of_labels_and_of_one_hot_rows_is_the_same():
    generator = np.random.default_rng(0)
    outputs, labels = generator.normal(size=(20, 4)), generator.integers(0, 4, 20)
    expected = outputs.argmax(-1) == labels
    np.testing.assert_array_equal(losses.accuracy(jnp.asarray(outputs), jnp.asarray(labels)), expected)
    np.testing.assert_array_equal(losses.accuracy(jnp.asarray(outputs), jnp.eye(4)[labels]), expected)
