"""Several planted faults in one program: which of them is planted is a value of it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import PyTree

from bpresearch.chainrule import Equation, Rule
from bpresearch.chainrule.engine import several
from bpresearch.chainrule.notes import collecting
from bpresearch.chainrule.primitives import LAYER
from bpresearch.verify.equations import Plant, with_backward


def one_of(plants: Sequence[Plant], fault: jax.Array) -> Plant:
    """The plant with number `fault`, as a value of the program; a number below zero plants nothing."""

    def plant(e: Equation, rule: Any) -> Any:
        planted = {number: plant(e, rule) for number, plant in enumerate(plants)}
        planted = {number: wrong for number, wrong in planted.items() if wrong is not rule}
        if not planted:
            return rule
        rules = [rule, *planted.values()]

        def index() -> jax.Array:
            """Which of the few that touch this equation: 0 is its own rule."""
            return jnp.sum(jnp.stack([jnp.where(fault == n, i, 0) for i, n in enumerate(planted, 1)]))

        is_layer = e.primitive.name == LAYER
        backward = (_switched_layer if is_layer else _switched)(rules, index)
        return with_backward(rule, backward, _switched_forward(rules, index) if is_layer else None)

    return plant


def _switched(rules: list[Any], index: Callable[[], jax.Array]) -> Callable[..., tuple[PyTree, ...]]:
    def backward(e, *bars):
        def cotangents(rule):
            x_bars = several(rule.backward(e, *bars))
            return [
                jnp.zeros_like(x) if bar is None else bar.astype(x.dtype)
                for x, bar, wanted in zip(e.ins, x_bars, e.wanted, strict=True)
                if wanted
            ]

        def planted(rule):
            with collecting():  # what is noted of equations inside of this one is noted outside of the switch
                return cotangents(rule)

        right = cotangents(rules[0])
        wrong = [lambda rule=rule: planted(rule) for rule in rules[1:]]
        chosen = iter(lax.switch(index(), [lambda: right, *wrong]))
        return tuple(next(chosen) if wanted else None for wanted in e.wanted)

    return backward


def _switched_layer(rules: list[Rule], index: Callable[[], jax.Array]) -> Callable[..., PyTree]:
    def backward(layer, residuals, y_bar, **options):
        right = jax.eval_shape(lambda: rules[0].backward(layer, residuals, y_bar, **options))

        def cotangents(rule):
            bars = rule.backward(layer, residuals, y_bar, **options)
            return jax.tree.map(
                lambda shape, leaf: jnp.broadcast_to(leaf, shape.shape).astype(shape.dtype), right, bars
            )

        return lax.switch(index(), [lambda rule=rule: cotangents(rule) for rule in rules])

    return backward


def _switched_forward(rules: list[Rule], index: Callable[[], jax.Array]) -> Callable[..., PyTree]:
    """Most faults leave `forward` alone; then there is nothing to switch."""
    different = {rule.forward: None for rule in rules}
    if len(different) == 1:
        return rules[0].forward
    which = jnp.asarray([list(different).index(rule.forward) for rule in rules])

    def forward(layer, *inputs, **options):
        # All are computed, in front of the switch, for a layer may change its state as it computes. The first
        # changes it, the others that of a copy.
        others = range(len(different) - 1)
        copies = [nnx.clone(layer) if isinstance(layer, nnx.Module) else layer for _ in others]
        answers = [f(at, *inputs, **options) for f, at in zip(different, [layer, *copies], strict=True)]
        return lax.switch(which[index()], [lambda outputs=outputs: outputs for outputs in answers])

    return forward
