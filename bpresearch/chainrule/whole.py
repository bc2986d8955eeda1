"""Layers whole: while a model is traced, the call of a layer that has a rule is one equation.

Its operands are the layer's parameters, its other variables, the inputs and the arrays among the options; its
results are what the layer returns and its variables' new values, which are written back to the module. So the
program of a user's own `__call__` has one equation for each such call, in the bodies of loops and under
`vmap` as well. A module's path is a static attribute of it, because the transformations of Flax rebuild
modules.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import PyTree

from bpresearch.chainrule import engine, registry, tangents
from bpresearch.chainrule.gather import gather
from bpresearch.chainrule.primitives import LAYER, Equation, Static, Value, is_floating, primitive
from bpresearch.chainrule.registry import Layer, Rule
from bpresearch.chainrule.sums import over_examples
from bpresearch.functional import Params, State, merge, split, state_of
from bpresearch.paths import format_path

PATH = "bpresearch_path"
"""The attribute in which a module knows where in the model it is."""

_active: ContextVar[bool] = ContextVar("layers are kept whole", default=False)


def is_active() -> bool:
    """Whether calls of layers are being kept whole."""
    return _active.get()


@contextmanager
def keeping(active: bool) -> Iterator[None]:
    """Context in which calls of layers are kept whole, or are not: a rule's own code calls them as they
    are.
    """
    token = _active.set(active)
    try:
        yield
    finally:
        _active.reset(token)


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a layer as pure functions of a list of arrays.

    Attributes:
        name: the type's or function's name.
        path: where the layer is in the model.
        layer: the module with abstract variables, or the function; for looking at.
        options: what the call was given besides arrays, by name.
        rule: its registered rule.
        results: shapes and dtypes of the results.
        answers: for each result, whether it is of the layer's output, not of its variables.
        moving: for each operand, whether the rule gives its cotangent: parameters and inputs.
        names: for each operand what its cotangent is, in words.
        apply: `(*operands) -> results`, the layer opened.
        forward: `(rule, *operands) -> results, residuals`.
        backward: `(rule, operands, residuals, bars) -> bars of the operands`.
    """

    name: str
    path: str
    layer: Layer
    options: dict[str, Any]
    rule: Rule
    results: tuple[jax.ShapeDtypeStruct, ...]
    answers: tuple[bool, ...]
    moving: tuple[bool, ...]
    names: tuple[str, ...]
    apply: Callable[..., list[Value]]
    forward: Callable[..., tuple[list[Value], PyTree]]
    backward: Callable[..., list[Value | None]]

    @property
    def layer_with_options(self) -> Layer:
        """The module; or the function with what it was given by name, as a partial of it."""
        is_plain = isinstance(self.layer, nnx.Module) or not self.options
        return self.layer if is_plain else functools.partial(self.layer, **self.options)


layer_p = Primitive(LAYER)
layer_p.multiple_results = True
layer_p.def_impl(lambda *operands, call: call.apply(*operands))
layer_p.def_abstract_eval(lambda *avals, call: [jax.core.ShapedArray(r.shape, r.dtype) for r in call.results])
mlir.register_lowering(
    layer_p, mlir.lower_fun(lambda *operands, call: call.apply(*operands), multiple_results=True)
)


@primitive(LAYER)
class LayerRule:
    """A layer by its own rule; opened where more depends on it than its rule knows of."""

    def forward(e):
        call = e.params["call"]
        knows = all(moving or not wanted for moving, wanted in zip(call.moving, e.wanted, strict=True))
        if knows and not any(
            live and not is_output for live, is_output in zip(e.live, call.answers, strict=True)
        ):
            results, residuals = call.forward(_in_force(e), *e.ins)
            return results, (Static(None), residuals)
        return _opened(e)

    def backward(e, *bars):
        call, (program, record) = e.params["call"], e.kept
        if program.value is not None:
            return engine.backward(program.value, record, bars, e.wanted, e.live)
        try:
            return call.backward(_in_force(e), e.ins, record, engine.filled(bars, e.outs))
        except ValueError as error:
            raise ValueError(f"the rule of {e.name} at {e.place}: {error}") from error

    def pushforward(e, *dots):
        closed = jax.make_jaxpr(e.params["call"].apply)(*e.ins)
        return tangents.walk(closed.jaxpr, closed.consts, e.ins, dots)


def _in_force(e: Equation) -> Rule:
    return engine.in_force(e, e.params["call"].rule)


def _opened(e: Equation) -> tuple[list[Value], PyTree]:
    closed = jax.make_jaxpr(e.params["call"].apply)(*e.ins)
    results, tape = engine.forward(closed.jaxpr, closed.consts, e.ins, e.wanted, e.live)
    return results, (Static(closed.jaxpr), tape)


def _batch(
    operands: Sequence[Value], dims: Sequence[Any], *, call: LayerCall
) -> tuple[list[Value], list[int]]:
    """`jax.vmap` of a layer: still one layer, whose rule is mapped."""
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)

    def backward(rule, operands, residuals, bars):
        first = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(operands, dims, strict=True)]
        leaves, structure = jax.tree.flatten((first, residuals, list(bars)))
        mapped = [d is not None for d in dims] + [True] * (len(leaves) - len(first))

        def of_example(*leaves):
            operands, residuals, bars = structure.unflatten(leaves)
            return call.backward(rule, operands, residuals, bars)

        # What all examples share gets a sum over them: of products, one product.
        parts = over_examples(of_example, mapped, [d is None for d in dims], leaves)
        return [
            part if part is None or d is None else jnp.moveaxis(part, 0, d)
            for part, d in zip(parts, dims, strict=True)
        ]

    made = replace(
        call,
        results=tuple(jax.ShapeDtypeStruct((size, *r.shape), r.dtype) for r in call.results),
        apply=jax.vmap(call.apply, tuple(dims)),
        forward=lambda rule, *ins: jax.vmap(functools.partial(call.forward, rule), tuple(dims))(*ins),
        backward=backward,
    )
    results = layer_p.bind(*operands, call=made)
    return results, [0] * len(results)


def _jvp(
    primals: Sequence[Value], dots: Sequence[Value | ad.Zero], *, call: LayerCall
) -> tuple[list[Value], list[Value | ad.Zero]]:
    """What `jax.grad` inside a user's own code sees: the layer opened, and tangents by our rules."""
    closed = jax.make_jaxpr(call.apply)(*primals)
    given = [None if isinstance(dot, ad.Zero) else dot for dot in dots]
    results, result_dots = tangents.walk(closed.jaxpr, closed.consts, primals, given)
    return results, [
        ad.Zero(jax.typeof(y).to_tangent_aval()) if dot is None else dot
        for y, dot in zip(results, result_dots, strict=True)
    ]


batching.primitive_batchers[layer_p] = _batch
ad.primitive_jvps[layer_p] = _jvp


def whole_call(
    plain: Callable[..., PyTree],
    rule: Rule,
    bound: dict[str, Any],
    layer: Layer,
    path: str,
    args: tuple[PyTree, ...],
    kwargs: dict[str, Any],
) -> PyTree:
    """What the call returns, bound as one equation.

    Raises:
        DoesNotApply: the rule does not take this call.
    """
    inputs, options = _sorted_arguments(plain, layer, args, {**bound, **kwargs})
    is_module = isinstance(layer, nnx.Module)
    graphdef, params, state = split(layer) if is_module else (layer, {}, {})
    arrays = {name: value for name, value in options.items() if _is_array(value)}
    static = {name: value for name, value in options.items() if name not in arrays}
    _refuse(rule, layer, inputs, {**bound, **options})
    operands, structure = jax.tree.flatten((params, state, inputs, arrays))
    if any(jax.typeof(x).manual_axis_type.varying for x in operands):
        raise registry.DoesNotApply("inside shard_map the types of results hold more than a rule tells")

    def taken_apart(operands):
        params, state, inputs, arrays = structure.unflatten(operands)
        return merge(graphdef, params, state) if is_module else layer, inputs, {**static, **arrays}

    moved: list[jax.tree_util.KeyPath] = []  # paths of the variables that the call changes

    def new_state(callee):
        variables = dict(jax.tree.leaves_with_path(state_of(callee))) if is_module else {}
        return [variables[path] for path in moved]

    def apply(*operands):
        callee, inputs, options = taken_apart(operands)
        y = plain(callee, *inputs, **options) if is_module else plain(*inputs, **{**bound, **options})
        return jax.tree.leaves((y, new_state(callee)))

    def forward(rule, *operands):
        with keeping(False):
            callee, inputs, options = taken_apart(operands)
            y, residuals = rule.forward(callee, *inputs, **{**bound, **options})
            return jax.tree.leaves((y, new_state(callee))), residuals

    def backward(rule, operands, residuals, bars):
        with keeping(False):
            callee, inputs, options = taken_apart(operands)
            y_bar, _ = results_structure.unflatten(bars)
            grads, x_bar = rule.backward(callee, residuals, y_bar, **{**bound, **options})
            x_bar = (x_bar,) if len(inputs) == 1 else x_bar
            params_bar = jax.tree.leaves(gather(callee, grads)) if is_module else []
            leaves, inputs_structure = jax.tree.flatten(inputs)
            bars = [
                bar if bar is None or not is_floating(x) else bar.astype(x.dtype)
                for x, bar in zip(leaves, inputs_structure.flatten_up_to(x_bar), strict=True)
            ]
            nothing = [None] * len(jax.tree.leaves(arrays))
            return [*params_bar, *[None] * len(jax.tree.leaves(state)), *bars, *nothing]

    def returned(*operands):
        with keeping(False):
            callee, inputs, options = taken_apart(operands)
            before = dict(jax.tree.leaves_with_path(state_of(callee))) if is_module else {}
            y, _ = rule.forward(callee, *inputs, **{**bound, **options})
            after = dict(jax.tree.leaves_with_path(state_of(callee))) if is_module else {}
            moved[:] = [path for path, value in after.items() if value is not before.get(path)]
            return y, new_state(callee)

    results = jax.eval_shape(returned, *operands)  # here the rule says whether it takes the call
    results_structure = jax.tree.structure(results)
    count = len(jax.tree.leaves(results[0]))
    total = results_structure.num_leaves
    groups = (params, True), (state, False), (inputs, True), (arrays, False)
    call = LayerCall(
        name=_name(layer),
        path=path,
        layer=_abstract(layer, operands, taken_apart),
        options={**bound, **static},
        rule=rule,
        results=tuple(jax.tree.leaves(results)),
        answers=(True,) * count + (False,) * (total - count),
        moving=tuple(moves for tree, moves in groups for _ in jax.tree.leaves(tree)),
        names=_names(params, len(operands) - len(jax.tree.leaves(params))),
        apply=apply,
        forward=forward,
        backward=backward,
    )
    y, values = results_structure.unflatten(layer_p.bind(*operands, call=call))
    if moved:
        nnx.update(layer, nnx.State(_nested(moved, values)))
    return y


def _nested(paths: Sequence[jax.tree_util.KeyPath], values: Sequence[Value]) -> State:
    """A nested dict from paths of keys and their values."""
    nested: State = {}
    for path, value in zip(paths, values, strict=True):
        inner = nested
        for key in path[:-1]:
            inner = inner.setdefault(key.key, {})
        inner[path[-1].key] = value
    return nested


def _sorted_arguments(
    plain: Callable[..., PyTree], layer: Layer, args: tuple[PyTree, ...], kwargs: dict[str, Any]
) -> tuple[tuple[PyTree, ...], dict[str, Any]]:
    """Positional arrays, or trees of them, are inputs; everything else is an option, by its name."""
    signature = inspect.signature(plain)
    called = signature.bind(*((layer,) if isinstance(layer, nnx.Module) else ()), *args, **kwargs)
    inputs, options, in_order = [], {}, True
    for name, value in list(called.arguments.items())[isinstance(layer, nnx.Module) :]:
        parameter = signature.parameters[name]
        by_position = parameter.kind is not parameter.KEYWORD_ONLY and name not in kwargs
        if parameter.kind is parameter.VAR_POSITIONAL:
            inputs.extend(value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            options.update(value)
        elif in_order and by_position and _is_arrays(value):
            inputs.append(value)
        else:
            in_order = False  # an array behind something else is not the rule's next input
            if value is not parameter.default:
                options[name] = value
    return tuple(inputs), options


def _refuse(rule: Rule, layer: Layer, inputs: tuple[PyTree, ...], options: dict[str, Any]) -> None:
    """Raises `DoesNotApply` where the rule cannot be asked about the call."""
    if not inputs or not all(map(_is_arrays, inputs)):
        raise registry.DoesNotApply("an input is not an array")
    if any(isinstance(value, nnx.Pytree) for value in options.values()):
        raise registry.DoesNotApply("a module or random stream is among the options")
    try:
        inspect.signature(rule.forward).bind(layer, *inputs, **options)
        inspect.signature(rule.backward).bind(layer, None, None, **options)
    except TypeError as error:
        raise registry.DoesNotApply(str(error)) from error


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray)


def _is_arrays(value: Any) -> bool:
    """Whether a value is an array or a tree of arrays, and no module."""
    if isinstance(value, nnx.Pytree):
        return False
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(map(_is_array, leaves))


def _abstract(layer: Layer, operands: Sequence[Value], taken_apart: Callable[..., tuple[Any, ...]]) -> Layer:
    if not isinstance(layer, nnx.Module):
        return layer
    shapes = [jax.ShapeDtypeStruct(jnp.shape(x), x.dtype) for x in operands]
    return taken_apart(shapes)[0]


def _name(layer: Layer) -> str:
    if isinstance(layer, nnx.Module):
        return type(layer).__name__
    while isinstance(layer, functools.partial):
        layer = layer.func
    return getattr(layer, "__name__", repr(layer))


def _names(params: Params, others: int) -> tuple[str, ...]:
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    of_params = [f"gradient of {format_path(tuple(key.key for key in path))}" for path in paths]
    return (*of_params, *["cotangent of its input"] * others)
