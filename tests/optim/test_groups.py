"""Groups of weights against each group trained by itself, and against Optax's own masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from bpresearch import optim
from bpresearch.optim.groups import multipliers, selected

PATHS = ["encoder.layers.0.kernel", "encoder.layers.0.bias", "encoder.layers.10.kernel", "head.kernel"]


@pytest.mark.parametrize(
    ("patterns", "places"),
    [
        ("kernel", [0, 2, 3]),
        ("head", [3]),
        ("encoder.*", [0, 1, 2]),
        ("layers.1?", [2]),
        ("layers.0,head.kernel", [0, 1, 3]),
        ("!bias", [0, 2, 3]),
        ("!head,encoder, !layers.10", [0, 1]),
        ("encoder.*.kernel", [0, 2]),
    ],
)
def test_patterns_select_whole_parts_of_paths(patterns, places):
    assert selected(patterns, PATHS) == {PATHS[place] for place in places}


@pytest.mark.parametrize("patterns", ["layers.1", "enc", "Head", "kernel,", "bias.kernel"])
def test_a_pattern_that_matches_nothing_is_named(patterns):
    with pytest.raises(ValueError, match=r"frozen=.* matches no parameter; there are encoder") as error:
        selected(patterns, PATHS, "frozen")
    assert "\n" not in str(error.value)


def test_the_first_multiplier_that_matches_counts():
    found = multipliers("head:0.1,kernel:2", PATHS)
    assert list(found.values()) == [2, 1, 2, 0.1]
    for wrong in ("head", "head:", "head:-1", "head:inf", "head:nan", "head:0.1,"):
        with pytest.raises(ValueError, match=f"lr_multipliers={wrong}: "):
            multipliers(wrong, PATHS)


WEIGHTS = {
    "body": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([0.3, -0.7])},
    "head": {"kernel": jnp.array([[2.0], [-1.0]]), "bias": jnp.array([0.4])},
}


def gradient(weights, step):
    """Of a function in which every weight is by itself."""
    return jax.tree.map(lambda w: jnp.sin(3 * w + step) + w, weights)


def trained(optimizer, weights=WEIGHTS, steps=3):
    state = optimizer.init(weights)
    for step in range(steps):
        updates, state = optimizer.update(gradient(weights, step), state, weights)
        weights = optax.apply_updates(weights, updates)
    return weights


def assert_equal(found, expected, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 1e-6} | tolerance)), found, expected
    )


@pytest.mark.parametrize("name", ["momentum", "adam", "lamb", "lion"])
def test_a_multiplier_is_a_learning_rate_of_its_own(name):
    hyper = {"momentum": 0.9} if name == "momentum" else {}
    function = optim.BY_NAME[name]
    found = trained(optim.grouped(function)(0.1, lr_multipliers="head:0.25,kernel:3", **hyper))
    expected = {
        "body": {
            "kernel": trained(function(0.3, **hyper), WEIGHTS["body"]["kernel"]),
            "bias": trained(function(0.1, **hyper), WEIGHTS["body"]["bias"]),
        },
        "head": trained(function(0.025, **hyper), WEIGHTS["head"]),
    }
    assert_equal(found, expected)


def test_masked_weight_decay_is_optaxs_own():
    mask = {name: {"kernel": True, "bias": False} for name in WEIGHTS}
    found = trained(optim.grouped(optim.adamw)(0.1, decay_mask="!bias", weight_decay=0.3))
    assert_equal(found, trained(optax.adamw(0.1, weight_decay=0.3, mask=mask)))
    coupled = optim.with_options(optim.sgd, ["decay_mask", "weight_decay"])
    expected = optax.chain(optax.add_decayed_weights(0.3, mask), optax.sgd(0.1))
    assert_equal(trained(coupled(0.1, decay_mask="kernel", weight_decay=0.3)), trained(expected))


def test_decoupled_decay_does_not_follow_the_learning_rate():
    for function, hyper in ((optim.adamw, {}), (optim.adam, {}), (optim.momentum, {"momentum": 0.9})):
        both = optim.decoupled(function)
        assert both.__name__ == function.__name__
        still = trained(both(0.0, weight_decay=0.1, decoupled_decay=True, **hyper))
        assert_equal(still, jax.tree.map(lambda w: 0.9**3 * w, WEIGHTS))
        first = trained(both(0.2, weight_decay=0.1, decoupled_decay=True, **hyper), steps=1)
        without = function(0.2, **hyper, **({"weight_decay": 0.0} if function is optim.adamw else {}))
        moved = trained(without, steps=1)
        assert_equal(first, jax.tree.map(lambda m, w: m - 0.1 * w, moved, WEIGHTS))
    assert_equal(trained(optim.decoupled(optim.adamw)(0.1, weight_decay=0.2)),
                 trained(optax.adamw(0.1, weight_decay=0.2)))  # fmt: skip


def test_what_is_frozen_stays_and_counts_in_no_norm():
    options = ["frozen", "clip_norm", "weight_decay"]
    optimizer = optim.with_options(optim.adam, options)(0.1, frozen="head", clip_norm=0.5, weight_decay=0.1)
    found = trained(optimizer)
    assert_equal(found["head"], WEIGHTS["head"], rtol=0)
    alone = optim.with_options(optim.adam, options)(0.1, clip_norm=0.5, weight_decay=0.1)
    assert_equal(found["body"], trained(alone, WEIGHTS["body"]))
    held = sum(leaf.size for leaf in jax.tree.leaves(optimizer.init(WEIGHTS)))
    assert held == 1 + 2 * 6  # Adam's count, and two means for each weight that is trained


def test_options_work_together_whichever_parts_they_name():
    everything = optim.with_options(optim.muon, optim.OPTIONS)
    found = trained(
        everything(
            0.1, frozen="body.bias", lr_multipliers="bias:0.5,body.bias:3", decay_mask="kernel",
            adam_for="head", weight_decay=0.2, decoupled_decay=True, average="ema:0.9", clip_norm=10.0,
        )
    )  # fmt: skip
    np.testing.assert_array_equal(found["body"]["bias"], WEIGHTS["body"]["bias"])
    head = optax.chain(optax.nadam(0.1), optax.add_decayed_weights(-0.2))
    assert_equal(found["head"]["kernel"], trained(head, WEIGHTS["head"]["kernel"]))
    assert_equal(found["head"]["bias"], trained(optax.nadam(0.05), WEIGHTS["head"]["bias"]))


def test_muon_leaves_vectors_and_what_is_named_to_adam_at_its_rate():
    found = trained(optim.muon(0.1, adam_lr_multiplier=0.3, adam_for="head.*"))
    assert_equal(found["body"]["kernel"], trained(contrib.muon(0.1), WEIGHTS["body"]["kernel"]))
    assert_equal(found["body"]["bias"], trained(optax.nadam(0.03), WEIGHTS["body"]["bias"]))
    assert_equal(found["head"], trained(optax.nadam(0.03), WEIGHTS["head"]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: optim.grouped(optim.prodigy)(1.0, lr_multipliers="head:2"),
            "prodigy takes its step from all",
        ),
        (
            lambda: optim.with_options(optim.noisy_sgd, ["weight_decay", "decay_mask"])(
                1.0, weight_decay=0.1, decay_mask="kernel"
            ),
            "noisy_sgd takes its step from all weights together",  # groups would get the same noise
        ),
        (lambda: optim.grouped(optim.sgd)(1.0, decay_mask="kernel"), "sgd has no weight decay"),
        (lambda: optim.frozen(optim.lbfgs)(1.0, frozen="head"), "lbfgs searches along a line"),
        (lambda: optim.frozen(optim.sgd)(1.0, frozen="head,body").init(WEIGHTS), "leaves no parameter"),
        (lambda: optim.frozen(optim.sgd)(1.0, frozen="haed").init(WEIGHTS), "'haed' matches no parameter"),
        (lambda: optim.decoupled(optim.adamw)(1.0, decoupled_decay=True), "needs a weight_decay"),
        (
            lambda: optim.decoupled(optim.schedule_free_sgd)(1.0, weight_decay=0.1, decoupled_decay=True),
            "schedule_free_sgd decays with",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_options_are_hyperparameters_with_defaults_that_change_nothing():
    plain = optim.with_options(optim.adam, ["frozen", "lr_multipliers", "average", "decoupled_decay"])
    assert plain.__name__ == "adam"
    assert optim.hyperparameters(plain, required=True) == ("weight_decay",)
    assert_equal(trained(plain(0.1, weight_decay=0.0)), trained(optim.adam(0.1)), rtol=0)
