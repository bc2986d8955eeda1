"""Following a model's layers through the chain-rule engine, and reference derivatives for each of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.tracers import TraceState

from bpresearch.chainrule import Rule, forward, replacing
from bpresearch.functional import as_inputs, merge, split
from bpresearch.verify.precision import is_floating

Path = tuple[Any, ...]
Plant = Callable[[Path, Any, Rule], Rule]


@dataclass(frozen=True)
class Call:
    """One use of a layer: where, its static part, the rule under test and the options bound to it."""

    path: Path
    layer: Any
    rule: Rule
    options: dict[str, Any]

    @cached_property
    def scalar(self) -> Callable[..., jax.Array]:
        """<y_bar, y> of `(point, inputs, params, state, y_bar)`, for finite differences.

        The elements of `point` take the places of the floating leaves of `inputs`.
        """

        def scalar(point, inputs, params, state, y_bar):
            remaining = iter(point)
            inputs = jax.tree.map(lambda leaf: next(remaining) if is_floating(leaf) else leaf, inputs)
            outputs = jax.tree.leaves(own_computation(self.layer, state, self.options)(params, *inputs))
            y_bars = jax.tree.leaves(y_bar)
            floating = [y for y in outputs if is_floating(y)]
            return sum(jnp.sum(y * bar) for y, bar in zip(floating, y_bars, strict=True))

        return scalar

    @property
    def name(self) -> str:
        """The type of the module, or the name of the function, for messages."""
        layer = self.layer.func if hasattr(self.layer, "func") else self.layer
        if isinstance(layer, nnx.GraphDef):
            layer = next(iter(layer.nodes)).type
        return getattr(layer, "__name__", repr(layer))


def take_apart(layer: Any) -> tuple[Any, Any, Any]:
    """A layer as (static part, parameters, state); a function is all static."""
    return split(layer) if isinstance(layer, nnx.Module) else (layer, {}, {})


def put_together(static: Any, params: Any, state: Any) -> Any:
    """The inverse of `take_apart`."""
    return merge(static, params, state) if isinstance(static, nnx.GraphDef) else static


def pullback(function: Callable[..., Any], arguments: Any, y_bar: Any = None) -> tuple[Any, Any]:
    """`function(*arguments)` and the cotangents of `arguments`, by `jax.vjp`; None for what has none.

    `y_bar` has the structure of the output, with None for outputs that are not floating point; without it,
    every output has the cotangent one, which makes the gradient of a scalar.
    """
    leaves, structure = jax.tree.flatten(arguments)
    floating = [is_floating(leaf) for leaf in leaves]
    whole: Any = None

    def of_floats(floats):
        nonlocal whole
        remaining = iter(floats)
        filled = [next(remaining) if f else leaf for f, leaf in zip(floating, leaves, strict=True)]
        outputs, whole = jax.tree.flatten(function(*structure.unflatten(filled)))
        return [leaf for leaf in outputs if is_floating(leaf)], outputs

    floats = [leaf for f, leaf in zip(floating, leaves, strict=True) if f]
    _, vjp, outputs = jax.vjp(of_floats, floats, has_aux=True)
    y_bar = jax.tree.map(jnp.ones_like, outputs) if y_bar is None else whole.flatten_up_to(y_bar)
    bars = [bar for leaf, bar in zip(outputs, y_bar, strict=True) if is_floating(leaf)]
    (floats_bar,) = vjp(bars)
    remaining = iter(floats_bar)
    cotangents = structure.unflatten([next(remaining) if f else None for f in floating])
    return whole.unflatten(outputs), cotangents


def reference_rule(rule: Rule) -> Rule:
    """A rule that computes what the layer computes and differentiates it by `jax.vjp`."""

    def reference_forward(layer, *inputs, **options):
        _, _, state = take_apart(layer)
        return layer(*inputs, **options), (inputs, state)

    def reference_backward(layer, residuals, y_bar, **options):
        inputs, state = residuals
        static, params, _ = take_apart(layer)
        own = own_computation(static, state, options)
        _, (params_bar, *inputs_bar) = pullback(own, (params, *inputs), y_bar)
        return params_bar, tuple(inputs_bar) if len(inputs) > 1 else inputs_bar[0]

    return SimpleNamespace(forward=reference_forward, backward=reference_backward)


def own_computation(static: Any, state: Any, options: dict[str, Any]) -> Callable[..., Any]:
    """The layer's own computation as a function of its parameters and inputs."""
    return lambda params, *inputs: put_together(static, params, state)(*inputs, **options)


class Watch:
    """Follows one forward pass: lists the calls and adds a perturbation to what each returns.

    Calls made inside a transformation that a rule uses itself, such as `lax.scan` in a recurrent layer,
    cannot be looked at one by one; `inside` lists them with the shapes of their inputs and variables.
    """

    def __init__(self, plant: Plant, perturbations: list[Any] | None = None):
        self.plant, self.perturbations = plant, perturbations
        self.calls: list[Call] = []
        self.values: list[tuple[Any, Any, tuple[Any, ...]]] = []
        self.outputs: list[Any] = []
        self.inside: dict[Path, tuple[Call, Any]] = {}
        self._trace = TraceState()

    def replace(self, path: Path, layer: Any, rule: Rule) -> Rule:
        """What `chainrule.replacing` takes."""
        tested = self.plant(path, layer, rule)
        if not self._trace.is_valid():
            return self._note(path, tested)

        def watched_forward(layer, *inputs, **options):
            index = len(self.calls)
            static, params, state = take_apart(layer)
            self.calls.append(Call(path, static, tested, options))
            self.values.append((params, state, inputs))
            self.outputs.append(None)
            outputs, _ = tested.forward(layer, *inputs, **options)
            if len(self.calls) == index + 1:  # no children: the layer itself is the reference
                if state:
                    nnx.update(layer, nnx.State(state))
                outputs = layer(*inputs, **options)
            self.outputs[index] = outputs
            if self.perturbations is not None:
                outputs = jax.tree.map(
                    lambda y, zero: y if zero is None else y + zero,
                    outputs,
                    self.perturbations[index],
                    is_leaf=lambda leaf: leaf is None,
                )
            return outputs, ()

        return SimpleNamespace(forward=watched_forward, backward=tested.backward)

    def _note(self, path: Path, tested: Rule) -> Rule:
        reference = reference_rule(tested)

        def noted_forward(layer, *inputs, **options):
            static, params, state = take_apart(layer)
            seen = (params, state, inputs)
            shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(jnp.shape(v), v.dtype), seen)
            self.inside.setdefault(path, (Call(path, static, tested, options), shapes))
            tested.forward(layer, *inputs, **options)  # notes the calls that it makes itself
            if state:
                nnx.update(layer, nnx.State(state))
            return reference.forward(layer, *inputs, **options)

        return SimpleNamespace(forward=noted_forward, backward=reference.backward)


def walk(model: nnx.Module, loss_fn: Callable[..., Any], x: Any, y: Any, replace: Plant) -> jax.Array:
    """The mean loss, computed through the rules' own chaining with each rule replaced."""
    with replacing(replace):
        outputs, _ = forward(model, *as_inputs(x))
        values, _ = forward(loss_fn, *as_inputs(outputs), *as_inputs(y), name=("loss",))
    return jnp.mean(values)


def list_calls(model: nnx.Module, loss_fn: Callable[..., Any], x: Any, y: Any) -> list[tuple[Path, Any]]:
    """Path and layer (module or function) of every call, in the order of the forward pass."""
    found: dict[Path, Any] = {}

    def note(path, layer, rule):
        found.setdefault(path, layer)
        return rule

    graphdef, params, state = split(model)

    def run(params, state, x, y):
        return walk(merge(graphdef, params, state), loss_fn, x, y, note)

    jax.eval_shape(run, params, state, x, y)
    return list(found.items())
