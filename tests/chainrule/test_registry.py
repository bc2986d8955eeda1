"""Finding the rule of a layer, and saying what to do where there is none."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import chainrule
from bpresearch.chainrule.registry import rule_for

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")


def linear(inputs, outputs, kind=nnx.Linear):
    return kind(inputs, outputs, param_dtype=jnp.float64, rngs=nnx.Rngs(0))


def halve(x):
    return x / 2


class Relabelled(nnx.Linear):
    """A subclass that computes what its base does."""


class Doubled(nnx.Linear):
    """A subclass that computes something else."""

    def __call__(self, inputs, out_sharding=None):
        return 2 * super().__call__(inputs)


class Scale(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.full((1, 3), 2.0))

    def __call__(self, x):
        return x * self.scale[...]


class ScaleRule:
    def forward(layer, x):
        return layer(x), x

    def backward(layer, x, y_bar):
        return {"scale": jnp.sum(x * y_bar, axis=0, keepdims=True)}, y_bar * layer.scale[...]


def test_every_rule_is_registered_with_both_halves():
    rules = chainrule.registered()
    assert {nnx.Linear, nnx.Conv, nnx.relu, optax.squared_error} <= set(rules)
    for target, found in rules.items():
        assert callable(found.forward) and callable(found.backward), target


def test_the_list_of_rules_is_a_copy():
    chainrule.registered().clear()
    assert nnx.Linear in chainrule.registered()


def test_a_layer_without_a_rule_is_named_with_the_remedy():
    with pytest.raises(chainrule.NoRuleError) as error:
        rule_for(halve)
    message = str(error.value)
    assert "halve" in message and "\n" not in message
    assert "@bpresearch.chainrule.rule(halve)" in message
    assert "forward(layer, x)" in message and "backward(layer, residuals, y_bar)" in message
    with pytest.raises(chainrule.NoRuleError, match=r"test_registry.*Doubled.*rule\(Doubled\)"):
        rule_for(linear(3, 2, Doubled))


def test_layers_and_losses_without_a_rule_are_traced(normal, assert_engines_agree):
    class Unknown(nnx.Module):
        def __call__(self, x):
            return jnp.sin(x)

    def my_loss(outputs, targets):
        return (outputs - targets) ** 4

    model = nnx.Sequential(linear(3, 3), nnx.Sequential(nnx.relu, halve), Unknown())
    assert assert_engines_agree(model, my_loss, normal(1, 4, 3), normal(2, 4, 3)) <= 1e-12


def test_a_rule_that_is_missing_is_a_lookup_error():
    with pytest.raises(LookupError):
        rule_for(halve)


def test_options_bound_by_keyword_reach_the_rule():
    inner = partial(nnx.leaky_relu, negative_slope=0.1)
    found, options = rule_for(partial(inner, negative_slope=0.3))
    assert found is chainrule.registered()[nnx.leaky_relu] and options == {"negative_slope": 0.3}


def test_options_bound_by_position_are_refused():
    with pytest.raises(chainrule.NoRuleError, match="bind options by keyword"):
        rule_for(partial(nnx.leaky_relu, 0.3))


def test_a_callable_that_cannot_be_hashed_has_no_rule():
    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return x

    with pytest.raises(chainrule.NoRuleError, match="Unhashable"):
        rule_for(Unhashable())


def test_a_function_without_a_name_has_no_rule():
    class Nameless:
        def __call__(self, x):
            return x

    with pytest.raises(chainrule.NoRuleError, match="Nameless"):
        rule_for(Nameless())


def test_a_subclass_that_computes_the_same_has_the_rule_of_its_base(normal, assert_engines_agree):
    x, y = normal(1, 4, 3), normal(2, 4, 2)
    assert assert_engines_agree(linear(3, 2, Relabelled), optax.squared_error, x, y) <= 1e-12


def test_a_subclass_that_computes_something_else_does_not(normal, assert_engines_agree):
    model = nnx.Sequential(linear(3, 2, Doubled))
    assert assert_engines_agree(model, optax.squared_error, normal(1, 4, 3), normal(2, 4, 2)) <= 1e-12


def test_a_layer_of_ones_own(normal, assert_engines_agree, assert_matches_finite_differences):
    assert chainrule.rule(Scale)(ScaleRule) is ScaleRule
    model = nnx.Sequential(linear(3, 3), Scale(), nnx.tanh)
    x, y = normal(1, 4, 3), normal(2, 4, 3)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-12
    assert_matches_finite_differences(model, optax.squared_error, x, y)


def test_one_rule_for_several_functions(normal, gradient_by_rules):
    def same(x):
        return x

    def also_same(x):
        return +x

    @chainrule.rule(same, also_same)
    class SameRule:
        def forward(layer, x):
            return layer(x), None

        def backward(layer, residuals, y_bar):
            return {}, y_bar

    x, y = normal(1, 4), normal(2, 4)
    _, _, x_bar = gradient_by_rules(nnx.Sequential(same, also_same), optax.l2_loss, x, y)
    np.testing.assert_allclose(x_bar, (x - y) / 4, rtol=1e-14)


def test_a_corrected_rule_takes_effect_at_once(normal):
    """Although the program with the old rule has been compiled for this very model."""

    class WrongRule(ScaleRule):
        def backward(layer, x, y_bar):
            return {"scale": jnp.sum(x, axis=0, keepdims=True)}, y_bar

    x, y = normal(1, 4, 3), normal(2, 4, 3)
    found = []
    for class_ in (WrongRule, ScaleRule):
        chainrule.rule(Scale)(class_)
        _, grads = chainrule.value_and_grad(Scale(), optax.l2_loss, x, y)
        found.append(np.asarray(grads["scale"])[0])
    x, y = np.asarray(x), np.asarray(y)
    np.testing.assert_allclose(found[0], x.sum(0), rtol=1e-13)
    np.testing.assert_allclose(found[1], np.sum(x * (2 * x - y), axis=0) / 12, rtol=1e-13)


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        ({"scale": jnp.ones(2)}, r"scale has shape \(2,\), not \(1, 3\)"),
        ({"shift": jnp.ones(3)}, r"'shift' is not a parameter or layer of"),
    ],
)
def test_a_rule_with_a_wrong_name_or_shape_is_told_so(grads, message, normal):
    class Wrong(ScaleRule):
        def backward(layer, x, y_bar):
            return grads, y_bar

    chainrule.rule(Scale)(Wrong)
    with pytest.raises(ValueError, match=message):
        chainrule.value_and_grad(nnx.Sequential(Scale()), optax.l2_loss, normal(1, 4, 3), normal(2, 4, 3))
