"""A function without the derivatives that were written for it by hand.

A function with a `jax.custom_vjp` or `jax.custom_jvp` inside has its hand-written derivative taken by
`jax.grad`, so comparing with `jax.grad` of the same function would compare the rule with itself. Here the
function is traced to its primitive operations and evaluated again with every custom rule left out: what
remains computes the same values, and JAX differentiates it from its primitives.

What a function stops the gradient of, it holds constant, and its derivative is that of the function with
those values fixed. Values alone do not show that: `holding_constants` fixes them.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxprs_in_params
from jax.interpreters import partial_eval
from jaxtyping import PyTree

from bpresearch.jaxprs import body
from bpresearch.verify.moves import INLINED

CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
LOOPS = ("scan", "while", "cond")
IMPLICIT = ("random_gamma",)
"""Draw by rejection; the derivative is at a fixed quantile (Figurnov et al. 2018), not at fixed bits."""
CALLBACKS = ("pure_callback", "io_callback", "ffi_call")


class NotOfValuesError(ValueError):
    """The derivative is not that of the values, so that differences of these say nothing of it.

    A value is held constant in the body of a loop or branch, where it cannot be fixed from outside; or
    numbers are drawn whose derivative is that of their distribution.
    """


Change = Callable[[JaxprEqn, list[PyTree], list[PyTree]], list[PyTree]]
"""What an evaluation makes of an equation: `(equation, inputs, outputs) -> outputs`."""


def without_custom_rules(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function of arrays, differentiated from its primitive operations."""

    def plain(*args):
        jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = evaluate(jaxpr, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return plain


def holding_constants(function: Callable[[PyTree], PyTree], point: PyTree) -> Callable[[PyTree], PyTree]:
    """The function with all that it stops the gradient of (`jax.lax.stop_gradient`) as it is at `point`.

    The singular vectors in `nnx.SpectralNorm` and the rounding in a straight-through estimator are constants
    to whoever differentiates: so they must be to oracles that look at values near `point`.

    Raises:
        NotOfValuesError: it happens in the body of a loop or branch, or numbers are drawn from a gamma
            distribution.
    """
    traced = jax.make_jaxpr(function)(point)
    # Of what has a part in the result: the running statistics of `nnx.BatchNorm` are stopped, and have none.
    live = partial_eval.dce_jaxpr_consts(traced.jaxpr, [True] * len(traced.jaxpr.outvars))[0]
    if any(e.primitive.name in IMPLICIT for e in _equations(live)):
        raise NotOfValuesError("it draws gamma variates, whose derivative is not that of the numbers drawn")
    if not any(map(_stops, _equations(live))):
        return function
    if any(e.primitive.name in LOOPS and any(map(_stops, _equations_inside(e))) for e in _equations(live)):
        raise NotOfValuesError("it holds values constant inside a loop, which differences of values do not")
    flat = jax.make_jaxpr(lambda *leaves: evaluate(traced, list(leaves)))(*jax.tree.leaves(point))
    holds = _holds(flat.jaxpr)
    if not any(holds):
        return function
    held: list[jax.Array] = []
    numbers = count()

    def keep(equation, inputs, outputs):
        if _stops(equation) and holds[next(numbers)]:
            held.extend(outputs)
        return outputs

    evaluate(traced, jax.tree.leaves(point), keep)

    def with_constants(moved):
        constants, numbers = iter(held), count()

        def put(equation, inputs, outputs):
            if not (_stops(equation) and holds[next(numbers)]):
                return outputs
            return [next(constants).astype(outputs[0].dtype)]

        jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(moved)
        outputs = evaluate(jaxpr, jax.tree.leaves(moved), put)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return with_constants


def _holds(jaxpr: Jaxpr) -> list[bool]:
    """For each value whose gradient is stopped, whether the derivative takes it for constant.

    The factors with which `custom_linear_solve` solves are stopped as well, and its derivative is that of the
    solution all the same: what only it makes use of moves.
    """
    seen = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    holds = []
    for equation in reversed(jaxpr.eqns):
        is_seen = any(v in seen for v in equation.outvars)
        if _stops(equation):
            holds.append(is_seen)
        if not is_seen:
            continue
        operands = list(equation.invars)
        if equation.primitive.name == "custom_linear_solve":
            lengths = equation.params["const_lengths"]
            first = lengths.matvec + lengths.vecmat
            operands = operands[:first] + operands[first + lengths.solve + lengths.transpose_solve :]
        seen |= {v for v in operands if not isinstance(v, Literal)}
    return holds[::-1]


def _stops(equation: JaxprEqn) -> bool:
    return equation.primitive.name == "stop_gradient"


def has_custom_rule(function: Callable[..., PyTree], *args: PyTree) -> bool:
    """Whether a custom derivative is used anywhere in `function(*args)`, in loops and calls included."""
    return any(e.primitive.name in CUSTOM for e in _equations(jax.make_jaxpr(function)(*args)))


def calls_back(function: Callable[..., PyTree], *args: PyTree) -> bool:
    """Whether Python is called back anywhere in `function(*args)`, or in its backward pass."""
    return any(e.primitive.name in CALLBACKS for e in _equations(jax.make_jaxpr(function)(*args)))


def loses_precision(function: Callable[..., PyTree], *args: PyTree) -> bool:
    """Whether anything in `function(*args)` is rounded from float64 to a shorter format."""

    def rounds(equation):
        if equation.primitive.name != "convert_element_type":
            return False
        before, after = equation.invars[0].aval.dtype, equation.params["new_dtype"]
        return before == jnp.float64 and jnp.issubdtype(after, jnp.floating) and after != jnp.float64

    return any(map(rounds, _equations(jax.make_jaxpr(function)(*args))))


def _equations(jaxpr: Jaxpr | ClosedJaxpr) -> Iterator[JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name in {*INLINED, *LOOPS, "shard_map"}:
            yield from _equations_inside(equation)


def _equations_inside(equation: JaxprEqn) -> Iterator[JaxprEqn]:
    for inner in jaxprs_in_params(equation.params):
        yield from _equations(inner)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")


def as_it_is(equation: JaxprEqn, inputs: list[PyTree], outputs: list[PyTree]) -> list[PyTree]:
    """The outputs of an operation, unchanged."""
    return outputs


def evaluate(
    closed: Jaxpr | ClosedJaxpr,
    args: list[PyTree],
    change: Change = as_it_is,
) -> list[PyTree]:
    """Evaluates a jaxpr, calls written in place and custom rules left out.

    `change(equation, inputs, outputs)` gives the outputs that are used instead of an operation's own, in
    the bodies of loops too.
    """
    jaxpr, constants = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *args], strict=True))

    def read(atom):
        # A literal without a type of its own: its type may be of another precision than the one set now.
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        name = equation.primitive.name
        if name in INLINED:
            outputs = evaluate(ClosedJaxpr(*body(equation.params)), inputs, change)
        elif name == "shard_map":
            outputs = _on_devices(equation.params, inputs, change)
        else:
            params = equation.params
            if name in LOOPS:
                params = {key: _plain_inside(value, change) for key, value in params.items()}
            outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(params))
            outputs = outputs if equation.primitive.multiple_results else [outputs]
            outputs = change(equation, inputs, outputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _on_devices(
    params: dict[str, Any],
    inputs: list[PyTree],
    change: Change,
) -> list[PyTree]:
    """The body of a `shard_map` in the same way, on each device."""
    run = jax.shard_map(
        lambda *xs: tuple(evaluate(params["jaxpr"], list(xs), change)),
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        axis_names=set(params["newly_manual_axes"]),
        check_vma=params["check_vma"],
    )
    return list(run(*inputs))


def _plain_inside(value: Any, change: Change) -> Any:
    """The bodies of a loop or branch, without custom rules."""
    if isinstance(value, tuple):
        return tuple(_plain_inside(v, change) for v in value)
    if not _is_jaxpr(value):
        return value
    return jax.make_jaxpr(lambda *args: evaluate(value, list(args), change))(*value.in_avals)
