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
from bpresearch.verify.comparison import MATHEMATICS, compare
from bpresearch.verify.precision import is_floating, jittered, random_like
from bpresearch.verify.report import Row

JITTER = (float(np.finfo("float64").eps),) * 2


def blame_program(
    graphdef: nnx.GraphDef, loss_fn: Callable[..., jax.Array], plant: Plant
) -> tuple[Callable[..., Any], list[Call]]:
    """The pure function `(params, state, x, y, key) -> answers`, and the calls that the answers belong to.

    The list of calls is filled when the function is traced. Each answer is a pair of what the rule says
    and what is expected, `(output, parameters' cotangents, inputs' cotangents)` both, and the noise.
    """
    calls: list[Call] = []

    def program(params, state, x, y, key):
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

    return program, calls


def only_floating(tree: Any) -> Any:
    """The tree with None for every leaf that is not floating point."""
    return jax.tree.map(lambda leaf: leaf if is_floating(leaf) else None, tree)


def check(call: Call, params: Any, state: Any, inputs: tuple, y_bar: Any) -> Any:
    """What the rule of a call says, what is expected, and the noise of that."""
    own = own_computation(call.layer, state, call.options)
    arguments = jittered(((params, *inputs), y_bar), JITTER)
    stacked = jax.vmap(lambda a, y_bar: pullback(own, a, y_bar))(*arguments)
    expected = jax.tree.map(lambda v: v[0], stacked)
    noise = jax.tree.map(lambda v: jnp.max(jnp.abs(v[1:] - v[:1]), initial=0.0), stacked)

    with replacing(lambda path, layer, rule: reference_rule(rule)):
        layer = put_together(call.layer, params, state)
        outputs, residuals = call.rule.forward(layer, *inputs, **call.options)
        layer = put_together(call.layer, params, state)
        grads, x_bar = call.rule.backward(layer, residuals, y_bar, **call.options)
    grads = gather(layer, grads) if isinstance(layer, nnx.Module) else {}
    inputs_bar = tuple(x_bar) if len(inputs) > 1 else (x_bar,)
    output, (params_bar, *expected_inputs_bar) = expected
    found = (outputs, *_matched((params_bar, *expected_inputs_bar), (grads, *inputs_bar), inputs))
    return found, (output, params_bar, *expected_inputs_bar), (noise[0], *noise[1]), y_bar


def _matched(expected: tuple, found: tuple, inputs: tuple) -> tuple:
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
    _, params, state = take_apart(layer)
    inputs = random_like(shapes, inputs_key)
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


def judge(model: nnx.Module, calls: Sequence[Call], answers: Sequence[Any]) -> tuple[list[Row], list[str]]:
    """A row for each call with its largest error, and the paths of the layers whose rule is wrong."""
    rows = [
        _judge(where_it_is(model, call.path), call, *answer)
        for call, answer in zip(calls, answers, strict=True)
    ]
    return rows, list(dict.fromkeys(row.path for row in rows if row.passed is False))


def _judge(path: str, call: Call, found: Any, expected: Any, noise: Any, y_bar: Any) -> Row:
    none = {"is_leaf": lambda leaf: leaf is None}
    triples = list(zip(*(jax.tree.leaves(tree, **none) for tree in (found, expected, noise)), strict=True))
    names = [_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(expected, **none)[0]]
    cotangents = [leaf for name, (_, leaf, _) in zip(names, triples, strict=True) if name != "output"]
    largest = max((_size(leaf) for leaf in [*cotangents, *jax.tree.leaves(y_bar)]), default=0.0)
    worst_name, worst = "", None
    for name, (f, e, n) in zip(names, triples, strict=True):
        if e is None or not is_floating(e):
            continue
        if np.shape(f) != np.shape(e):
            raise ValueError(
                f"the rule of {path} gives shape {np.shape(f)} for its {name}, not {np.shape(e)}"
            )
        result = compare(np.asarray(f), np.asarray(e), float(n), _size(e) if name == "output" else largest)
        if worst is None or result.error > worst.error:
            worst_name, worst = name, result
    shape = np.shape(next(iter(jax.tree.leaves(expected[0])), np.zeros(())))
    error = worst.error if worst else 0.0
    detail = f"its rule ({call.name}) is wrong in the {worst_name}" if error > MATHEMATICS else ""
    element = worst.worst if worst else None
    return Row(path, shape, "rule", error, MATHEMATICS, error <= MATHEMATICS, detail, element)


def _size(leaf: Any) -> float:
    if leaf is None or not is_floating(leaf):
        return 0.0
    values = np.abs(np.asarray(leaf, np.float64))
    return float(np.max(values[np.isfinite(values)], initial=0.0))


def _name(path: tuple[Any, ...]) -> str:
    """`output`, `gradient of kernel` or `input's cotangent`, from a path into a check's answer."""
    head, *rest = (getattr(key, "idx", getattr(key, "key", key)) for key in path)
    if head == 0:
        return "output"
    return f"gradient of {format_path(tuple(rest))}" if head == 1 else "cotangent of its input"
