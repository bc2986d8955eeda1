"""The loop on the way back: sums over steps, and products that are summed as one product.

The cotangent of what is the same in every step is a sum over the steps. Where its terms are products,

    W_bar = sum_t a_t^T b_t,

as the gradient of every weight in a recurrence is, the factors are kept and multiplied once after the loop,
with the steps among what is summed over: one large product in the place of many small ones, and no sum that
is read and written in each step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import PyTree

from bpresearch.chainrule import engine
from bpresearch.chainrule.halves import depending, run
from bpresearch.chainrule.notes import collecting, none_yet, note_all, worse
from bpresearch.chainrule.primitives import Value, zeros

LINEAR = ("transpose", "reshape", "convert_element_type", "squeeze")
"""What may happen to a product before it is added up, or after."""

LARGEST_FACTORS = 4
"""Factors are kept if they have at most this many times the elements of their product."""


def step_by_step(
    step: Callable[[PyTree, PyTree], tuple[PyTree, list[Value | None], PyTree]],
    carry: PyTree,
    slices: PyTree,
    **options: Any,
) -> tuple[PyTree, list[Value | None], PyTree]:
    """`lax.scan` of `(carry, slice) -> carry, terms, outputs`: the last carry, the sums of the terms, all
    outputs.

    Notes that are taken in a step are noted outside.
    """

    def noted(carry, slices):
        with collecting() as notes:
            carry, terms, outputs = step(carry, slices)
        return carry, terms, outputs, notes

    first = jax.tree.map(lambda x: jax.eval_shape(lambda x: x[0], x), slices)
    closed, shapes = jax.make_jaxpr(noted, return_shape=True)(carry, first)
    jaxpr = closed.jaxpr
    structure = jax.tree.structure(shapes)
    of_carry, of_terms, of_outputs, of_notes = jax.tree.unflatten(structure, jaxpr.outvars)
    moves = depending(jaxpr, [True] * len(jaxpr.invars))
    products = [_product(jaxpr, v, moves) for v in of_terms]
    directly = [v for v, p in zip(of_terms, products, strict=True) if v is not None and p is None]
    factors = list(dict.fromkeys(f for p in products if p is not None for f in p.factors))
    count = len(jax.tree.leaves(carry))
    sliced = dict(zip(jaxpr.invars[count:], jax.tree.leaves(slices), strict=True))
    new = [f for f in factors if f not in sliced]

    def body(loop, slices):
        carry, sums, worst = loop
        operands = jax.tree.leaves((carry, slices))
        wanted = (of_carry, directly, of_outputs, of_notes, new)
        flat, structure = jax.tree.flatten(wanted)
        values = run(jaxpr, closed.consts, operands, flat)
        carry, terms, outputs, notes, factor_values = structure.unflatten(values)
        sums = [total + term for total, term in zip(sums, terms, strict=True)]
        worst = {about: worse(worst[about], notes[about]) for about in notes}
        return (carry, sums, worst), (outputs, factor_values)

    nothing = [zeros(v.aval) for v in directly]
    loop = (carry, nothing, none_yet(jax.tree.map(lambda v: v.aval, of_notes)))
    (carry, sums, worst), (outputs, factor_values) = lax.scan(body, loop, slices, **options)
    note_all(worst)
    stacked = sliced | dict(zip(new, factor_values, strict=True))
    remaining = iter(sums)
    totals = [
        None if v is None else next(remaining) if p is None else p.over_steps(stacked)
        for v, p in zip(of_terms, products, strict=True)
    ]
    return carry, totals, outputs


@dataclass(frozen=True)
class _Product:
    """A term that is a product, and what happens to it before it is added."""

    eqn: JaxprEqn
    after: list[JaxprEqn]

    @property
    def factors(self) -> Sequence[Var]:
        return self.eqn.invars

    def over_steps(self, stacked: dict[Var, Value]) -> Value:
        """The sum over all steps: the product with the steps contracted, too."""
        a, b = (stacked[v] for v in self.factors)
        (of_a, of_b), (same_a, same_b) = self.eqn.params["dimension_numbers"]

        def later(axes):
            return tuple(axis + 1 for axis in axes)

        numbers = ((0, *later(of_a)), (0, *later(of_b))), (later(same_a), later(same_b))
        params = {**self.eqn.params, "dimension_numbers": numbers}
        (value,) = engine.Equation(self.eqn.primitive, params, (a, b)).bind(a, b)
        for eqn in self.after:
            (value,) = engine.Equation(eqn.primitive, eqn.params, (value,)).bind(value)
        return value


def over_examples(
    f: Callable[..., Sequence[Value | None]],
    mapped: Sequence[bool],
    summed: Sequence[bool],
    operands: Sequence[Value],
) -> list[Value | None]:
    """`jax.vmap` of `f(*operands)` along first axes; some results are added up, products as one product.

    Args:
        f: of one example.
        mapped: which operands have an example in each element of their first axis.
        summed: which results are sums over the examples; the others get a first axis.
        operands: their values.
    """

    def of_example(x, flag):
        return jax.eval_shape(lambda x: x[0], x) if flag else x

    example = [of_example(x, flag) for x, flag in zip(operands, mapped, strict=True)]
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*example)
    jaxpr, remaining = closed.jaxpr, iter(closed.jaxpr.outvars)
    results = [None if shape is None else next(remaining) for shape in shapes]
    moves = depending(jaxpr, mapped)
    flagged = list(zip(results, summed, strict=True))
    products = [_product(jaxpr, v, moves, math.inf) if flag else None for v, flag in flagged]
    factors = [v for p in products if p is not None for v in p.factors]
    directly = [v for v, p in zip(results, products, strict=True) if v is not None and p is None]
    wanted = list(dict.fromkeys([*factors, *(v for v in directly if isinstance(v, Var))]))

    def values(*operands):
        return run(jaxpr, closed.consts, operands, wanted)

    example_values = jax.vmap(values, [0 if flag else None for flag in mapped])(*operands)
    stacked = dict(zip(wanted, example_values, strict=True))
    size = next(x.shape[0] for x, flag in zip(operands, mapped, strict=True) if flag)

    def total(v, product, flag):
        if v is None or product is not None:
            return None if v is None else product.over_steps(stacked)
        value = (
            stacked[v] if isinstance(v, Var) else jnp.broadcast_to(engine.read(v, {}), (size, *v.aval.shape))
        )
        return jnp.sum(value, 0) if flag else value

    return [total(*result) for result in zip(results, products, summed, strict=True)]


def _product(
    jaxpr: Jaxpr, v: Var | Literal | None, moves: set[Var], most: float = LARGEST_FACTORS
) -> _Product | None:
    """The term as a product whose factors change from step to step; None if it is none, or not worth it."""
    if not isinstance(v, Var):
        return None
    made = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
    after: list[JaxprEqn] = []
    while v in made and made[v].primitive.name in LINEAR and len(made[v].invars) == 1:
        after.insert(0, made[v])
        v = made[v].invars[0]
    eqn = made.get(v)
    if eqn is None or eqn.primitive.name != "dot_general":
        return None
    if any(isinstance(f, Literal) or f not in moves for f in eqn.invars):
        return None
    new = [f for f in eqn.invars if f not in jaxpr.invars]
    if sum(f.aval.size for f in new) > most * eqn.outvars[0].aval.size:
        return None
    return _Product(eqn, after)
