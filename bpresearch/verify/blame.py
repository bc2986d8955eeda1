"""Which layer's rule is wrong: every rule is asked about its own layer alone.

A wrong rule spoils the gradients of all layers before it, so the leaves that are wrong say little about
where the mistake is. Therefore each layer call is checked by itself. At the inputs that the layer sees in
the model, and with the *reference* cotangent of its output, what its rule answers is compared with
`jax.vjp` of the layer. The children of a composite are replaced by reference rules meanwhile, so that a
composite answers for its own mistakes only. The culprits are the layers whose rule is wrong, whatever
cotangents their neighbours hand on.

The reference cotangents come from one run of the model in which every call's output has a zero added to
it: the derivative of the loss with respect to that zero is the cotangent there. A layer called inside a
transformation (the cell of a recurrent layer, inside `lax.scan`) is checked at random inputs of the right
shape with a random cotangent instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bpresearch.chainrule import replacing
from bpresearch.chainrule.gather import gather
from bpresearch.functional import format_path, merge
from bpresearch.verify.calls import (
    Call,
    Path,
    Plant,
    Watch,
    own_computation,
    pullback,
    put_together,
    reference_rule,
    take_apart,
    walk,
)
from bpresearch.verify.comparison import MATHEMATICS, Comparison, compare, largest_error, magnitude
from bpresearch.verify.hints import cotangent_hint, hint
from bpresearch.verify.kinks import BETWEEN, excuse
from bpresearch.verify.precision import is_floating, jittered, random_like, random_signs
from bpresearch.verify.report import Row

JITTER = (float(np.finfo("float64").eps),) * 2
OUTPUT, INPUT = "output", "cotangent of its input"
NOT_DIFFERENTIABLE = (
    "the layer is not differentiable at some inputs; its rule takes a derivative between both sides"
)
AUTODIFF_IS_WRONG = "autodiff is wrong at some inputs of the layer: finite differences side with its rule"


def blame_program(
    graphdef: nnx.GraphDef,
    loss_fn: Callable[..., jax.Array],
    plant_of: Callable[[jax.Array], Plant],
    calls: list[Call],
) -> Callable[..., Any]:
    """The pure function `(fault, params, state, x, y, key) -> answers`, one answer for each call.

    Args:
        graphdef: the model.
        loss_fn: the loss.
        plant_of: what is planted, by the number of the fault.
        calls: filled, when the function is traced, with the calls that the answers belong to.
    """

    def program(fault, params, state, x, y, key):
        plant = plant_of(fault)

        def perturbed(perturbations):
            watch = Watch(plant, perturbations)
            return walk(merge(graphdef, params, state), loss_fn, x, y, watch.replace), watch

        def outputs():
            return [only_floating(outputs) for outputs in perturbed(None)[1].outputs]

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(outputs))
        last: list[Watch] = []

        def loss(perturbations):
            value, watch = perturbed(perturbations)
            last.append(watch)
            return value, watch.values

        cotangents, values = jax.grad(loss, has_aux=True)(zeros)
        calls[:] = last[-1].calls
        answers = [
            check(call, params, state, inputs, y_bar)
            for call, (params, state, inputs), y_bar in zip(calls, values, cotangents, strict=True)
        ]
        model = merge(graphdef, params, state)
        for index, (call, shapes) in enumerate(last[-1].inside.values()):
            layer = find_layer(model, call.path)
            if layer is not None:
                calls.append(call)
                answers.append(check_at_random(call, layer, shapes, jax.random.fold_in(key, index)))
        return answers

    return program


def only_floating(tree: Any) -> Any:
    """The tree with None for every leaf that is not floating point."""
    return jax.tree.map(lambda leaf: leaf if is_floating(leaf) else None, tree)


@dataclass(frozen=True)
class Answer:
    """What the rule of one call says and what is expected, at the model's own cotangent and another one.

    `found` and `expected` are `(output, parameters' cotangents, inputs' cotangents...)`, where cotangents
    have a first axis of length two; `mixed` is what the rule makes of twice the first cotangent less three
    times the other one; `noise` is how far rounding moves what is expected.
    """

    found: Any
    mixed: Any
    expected: Any
    noise: Any
    params: Any
    state: Any
    inputs: Any
    y_bar: Any


jax.tree_util.register_dataclass(Answer)


def check(call: Call, params: Any, state: Any, inputs: tuple, y_bar: Any) -> Answer:
    """Asks the rule of a call and `jax.vjp` of the layer the same two questions."""
    own = own_computation(call.layer, state, call.options)
    other = jax.tree.map(_another_like, y_bar)
    arguments, y_bars = jittered(((params, *inputs), y_bar), (*JITTER, 0.0))
    y_bars = jax.tree.map(lambda stacked, last: stacked.at[-1].set(last), y_bars, other)
    answers = jax.vmap(lambda arguments, y_bar: pullback(own, arguments, y_bar))(arguments, y_bars)
    output, expected = answers[0], jax.tree.map(lambda v: v[jnp.array([0, -1])], answers[1])
    noise = jax.tree.map(lambda v: jnp.max(jnp.abs(v[1:-1] - v[:1]), initial=0.0), answers)
    elsewhere = pullback(own, (params, *random_like(inputs, jax.random.key(0))), y_bar)[1]
    noise = noise[0], jax.tree.map(_at_least_one_rounding, noise[1], elsewhere)

    def backward(y_bar):
        layer = put_together(call.layer, params, state)
        grads, x_bar = call.rule.backward(layer, residuals, y_bar, **call.options)
        grads = gather(layer, grads) if isinstance(layer, nnx.Module) else {}
        return _matched(one_expected, (grads, *(tuple(x_bar) if len(inputs) > 1 else (x_bar,))))

    with replacing(lambda path, layer, rule: reference_rule(rule)):
        layer = put_together(call.layer, params, state)
        outputs, residuals = call.rule.forward(layer, *inputs, **call.options)
        one_expected = jax.tree.map(lambda v: v[0], answers[1])
        three = jax.vmap(backward)(jax.tree.map(lambda a, b: jnp.stack([a, b, 2 * a - 3 * b]), y_bar, other))
    found, mixed = jax.tree.map(lambda v: v[:2], three), jax.tree.map(lambda v: v[2], three)
    output, noise = jax.tree.map(lambda v: v[0], output), (noise[0], *noise[1])
    return Answer((outputs, *found), mixed, (output, *expected), noise, params, state, inputs, y_bar)


def _at_least_one_rounding(noise: jax.Array, elsewhere: jax.Array) -> jax.Array:
    """No derivative is known better than to one rounding of what it is elsewhere, where nothing is saturated.

    For large x rounding x moves 1 - tanh(x)^2 by nothing, and yet it is all rounding, of tanh(x).
    """
    usual = jnp.max(jnp.abs(elsewhere), initial=0.0, where=jnp.isfinite(elsewhere))
    return jnp.maximum(noise, jnp.finfo(elsewhere.dtype).eps * usual)


def _another_like(y_bar: jax.Array) -> jax.Array:
    """A cotangent of the same size with random signs; ones where `y_bar` is zero."""
    size = jnp.sqrt(jnp.sum(y_bar**2) / max(y_bar.size, 1))
    return random_signs(y_bar.shape, 7).astype(y_bar.dtype) * jnp.where(size > 0, size, 1)


def _matched(expected: tuple, found: tuple) -> tuple:
    """`found` in the structure of `expected`, with zeros where a rule gives None for a derivative."""
    leaves, structure = jax.tree.flatten(expected, is_leaf=lambda leaf: leaf is None)
    parts = structure.flatten_up_to(found)
    return structure.unflatten(
        [
            None if leaf is None else jnp.zeros_like(leaf) if part is None else part
            for leaf, part in zip(leaves, parts, strict=True)
        ]
    )


def check_at_random(call: Call, layer: Any, shapes: Any, key: jax.Array) -> Any:
    """`check` at standard normal inputs, with a standard normal cotangent."""
    inputs_key, y_bar_key = jax.random.split(key)

    def first_of_stack(leaf, shape):  # of layers that were stacked for `lax.scan`
        return leaf.reshape(-1, *shape.shape)[0]

    _, *variables = take_apart(layer)
    params, state = jax.tree.map(first_of_stack, tuple(variables), shapes[:2])
    inputs = random_like(shapes[2], inputs_key)
    own = own_computation(call.layer, state, call.options)
    y_bar = random_like(only_floating(jax.eval_shape(own, params, *inputs)), y_bar_key)
    return check(call, params, state, inputs, y_bar)


def find_layer(model: nnx.Module, path: Path) -> Any:
    """The module or function at a path of the model, None if there is none."""
    node: Any = model
    for name in path:
        try:
            node = getattr(node, name) if isinstance(name, str) and hasattr(node, name) else node[name]
        except (TypeError, KeyError, IndexError, AttributeError):
            return None
    return node


def where_it_is(model: nnx.Module, path: Path) -> str:
    """A call's path as reports name it: that of the nearest enclosing layer that is part of the model.

    A rule may give a name of its own to a part of its computation, as `nnx.Conv`'s does with `conv`; what
    is wrong there is wrong in the layer.
    """
    if path == ("loss",):
        return "loss"
    while path and find_layer(model, path) is None:
        path = path[:-1]
    return format_path(path) or "model"


def judge_rules(model: nnx.Module, calls: Sequence[Call], answers: Sequence[Answer]) -> list[Row]:
    """A row for each call with its largest error; the rows that fail are the culprits."""
    pairs = zip(calls, answers, strict=True)
    return [_judge(where_it_is(model, call.path), call, answer) for call, answer in pairs]


def _judge(path: str, call: Call, answer: Answer) -> Row:
    trees = (answer.found, answer.expected, answer.noise)
    columns = [jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None) for tree in trees]
    places = jax.tree_util.tree_flatten_with_path(answer.expected, is_leaf=lambda leaf: leaf is None)[0]
    names = [_name(place) for place, _ in places]
    cotangents = [leaf for name, leaf in zip(names, columns[1], strict=True) if name != OUTPUT]
    largest = max((magnitude(leaf) for leaf in [*cotangents, *jax.tree.leaves(answer.y_bar)]), default=0.0)
    worst_name, worst, wrong = "", Comparison(0.0), None
    for name, found, expected, noise in zip(names, *columns, strict=True):
        if expected is None or not is_floating(expected):
            continue
        if np.shape(found) != np.shape(expected):
            shapes = f"shape {np.shape(found)} for its {name}, not {np.shape(expected)}"
            raise ValueError(f"the rule of {path} gives {shapes}")
        most = magnitude(expected) if name == OUTPUT else largest
        result = compare(np.asarray(found), np.asarray(expected), float(noise), most)
        if result.error > worst.error:
            worst_name, worst, wrong = name, result, (found, expected)
    shape = np.shape(next(iter(jax.tree.leaves(answer.expected[0])), np.zeros(())))
    passed = worst.error <= MATHEMATICS
    detail, said, element = "", "", worst.worst
    if wrong is not None and not passed:
        detail, said, element = _explain(call, worst_name, worst, wrong, answer.y_bar)
        if reason := _excuse(call, answer):
            passed, said, detail = True, "", reason
        elif not is_linear(answer):
            detail += ", and is not linear in the cotangent"
    return Row(path, shape, "rule", worst.error, MATHEMATICS, passed, detail, element, said)


def is_linear(answer: Answer) -> bool:
    """Whether J^T (2 u - 3 v) = 2 J^T u - 3 J^T v, as it is for the transpose of any Jacobian J."""
    expected = jax.tree.map(lambda v: 2 * v[0] - 3 * v[1], answer.found[1:])
    return largest_error(answer.mixed, expected) <= MATHEMATICS


def _explain(call: Call, name: str, worst: Comparison, wrong: tuple, y_bar: Any) -> tuple[str, str, Any]:
    """What is wrong with a rule, a hint, and the worst element as an index into the leaf itself."""
    detail = f"its rule ({call.name}) is wrong in the {name}"
    if name == OUTPUT:
        return detail, hint(*wrong), worst.worst
    (found, other_found), (expected, other_expected) = wrong
    if compare(found, expected).error <= MATHEMATICS < compare(other_found, other_expected).error:
        detail += ", for another cotangent than this model's own"
        found, expected = other_found, other_expected
    first: Any = next(iter(jax.tree.leaves(y_bar)), np.zeros(()))
    said = hint(found, expected, first.shape[0] if first.ndim else None)
    if name == INPUT:
        said = cotangent_hint(found, expected, first) or said
    if worst.worst is None:
        return detail, said, None
    (_, *index), found_there, expected_there = worst.worst
    return detail, said, (tuple(index), found_there, expected_there)


def _excuse(call: Call, answer: Answer) -> str:
    """Why a rule may differ from `jax.vjp` in its inputs' cotangents; "" where it may not."""
    if largest_error(answer.found[:2], answer.expected[:2]) > MATHEMATICS:
        return ""
    point = [jnp.asarray(leaf) for leaf in jax.tree.leaves(answer.inputs) if is_floating(leaf)]
    found, expected = ([leaf[0] for leaf in jax.tree.leaves(t[2:])] for t in (answer.found, answer.expected))
    others = (answer.inputs, answer.params, answer.state, answer.y_bar)
    reason = excuse(call.scalar, point, found, expected, MATHEMATICS, others)
    return reason and (NOT_DIFFERENTIABLE if reason == BETWEEN else AUTODIFF_IS_WRONG)


def first_not_finite(model: nnx.Module, calls: Sequence[Call], answers: Sequence[Answer]) -> str:
    """Path of the layer that makes NaN or infinity of a finite cotangent: innermost, first on the way back.

    Such a layer may have a correct rule, as far as formulas go, and so may autodiff.
    """

    def finite(tree):
        return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(only_floating(tree)))

    for call, answer in reversed(list(zip(calls, answers, strict=True))):
        if finite((answer.y_bar, answer.found[0])) and not finite(
            [leaf[0] for leaf in jax.tree.leaves(answer.found[1:])]
        ):
            return where_it_is(model, call.path)
    return ""


def _name(path: tuple[Any, ...]) -> str:
    """`output`, `gradient of kernel` or `input's cotangent`, from a path into a check's answer."""
    head, *rest = (getattr(key, "idx", getattr(key, "key", key)) for key in path)
    if head == 0:
        return OUTPUT
    return f"gradient of {format_path(tuple(rest))}" if head == 1 else INPUT
