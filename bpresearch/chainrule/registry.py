"""Which rule belongs to which layer: one dict, filled by one decorator."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Protocol, TypeAlias, runtime_checkable

from flax import nnx
from jaxtyping import PyTree

Layer: TypeAlias = nnx.Module | Callable[..., Any]


@runtime_checkable
class Rule(Protocol):
    """The hand-written local derivative of one layer: `forward` and `backward` side by side.

    Both are plain functions (no `self`). `forward(layer, *inputs) -> output, residuals` computes what the
    layer itself computes and keeps what `backward` needs. `backward(layer, residuals, y_bar) -> grads,
    x_bar` takes the cotangent of the output and returns the cotangents of the layer's own parameters, as a
    nested dict by attribute name, and of its input (a tuple of them where the layer has several inputs).
    The residuals are a pytree of arrays, so a rule fits `jax.custom_vjp` as it is. `backward` reads the
    layer's parameters and options but never its other variables, which `forward` may have advanced.

    A function used with options, as in `functools.partial(nnx.leaky_relu, negative_slope=0.1)`, has its
    keywords passed on to both.
    """

    forward: Callable[..., tuple[PyTree, PyTree]]
    backward: Callable[..., tuple[dict[Any, PyTree], PyTree]]


class NoRuleError(LookupError):
    """A layer has no hand-written rule. The message names its type and shows the remedy.

    >>> try:
    ...     bp.chainrule.rule_for(jnp.sinc)
    ... except bp.chainrule.NoRuleError as error:
    ...     print(str(error)[:51])
    no chain-rule derivative for the function jax.numpy
    """


class DoesNotApply(Exception):
    """What `forward` raises on a call that its rule does not take; the layer is opened then, and traced."""


_rules: dict[Layer | type, Rule] = {}
_version = 0


def rule(*targets: Layer | type) -> Callable[[Any], Any]:
    """Class decorator that registers a rule for module types or for functions used as layers.

    A rule for a module type also serves its subclasses, as long as they do not define another `__call__`.

    >>> class Scale(nnx.Module):
    ...     def __init__(self, size):
    ...         self.scale = nnx.Param(jnp.ones(size))
    ...     def __call__(self, x):
    ...         return x * self.scale[...]
    >>> @rule(Scale)
    ... class ScaleRule:
    ...     '''y = s x.      s_bar = sum(x y_bar),   x_bar = s y_bar'''
    ...     def forward(layer, x):
    ...         return x * layer.scale[...], x
    ...     def backward(layer, x, y_bar):
    ...         return {"scale": jnp.sum(x * y_bar, axis=0)}, y_bar * layer.scale[...]
    """

    def register(class_: Any) -> Any:
        for target in targets:
            _rules[target] = class_
        changed()
        return class_

    return register


def registered() -> dict[Layer | type, Rule]:
    """Every module type and function that has a rule, with its rule.

    >>> bp.chainrule.registered()[nnx.Linear].__name__
    'LinearRule'
    """
    return dict(_rules)


def changed() -> None:
    """To be called when a rule has changed, of a layer or a primitive: compiled programs hold the old one."""
    global _version
    _version += 1


def version() -> int:
    """Changes whenever a rule is registered, so that no program compiled with an older rule is used."""
    return _version


def rule_for(layer: Layer) -> tuple[Rule, dict[str, Any]]:
    """The rule of a layer and the options bound to it; raises `NoRuleError` where there is none.

    >>> rule, options = bp.chainrule.rule_for(partial(nnx.leaky_relu, negative_slope=0.1))
    >>> options
    {'negative_slope': 0.1}
    """
    if isinstance(layer, nnx.Module):
        for base in type(layer).__mro__:
            if base in _rules:
                if plain_call(type(layer)) is not plain_call(base):
                    break  # a subclass that computes something else needs a rule of its own
                return _rules[base], {}
    elif isinstance(layer, partial) and not layer.args:
        rule, options = rule_for(layer.func)
        return rule, {**options, **layer.keywords}
    elif isinstance(layer, Hashable) and layer in _rules:
        return _rules[layer], {}
    raise NoRuleError(_missing(layer))


def has_rule(layer: Any) -> bool:
    """Whether a module or function has a rule."""
    try:
        rule_for(layer)
    except NoRuleError:
        return False
    return True


def plain_call(type_: type) -> Callable[..., PyTree]:
    """The `__call__` of a module type as its author wrote it, also while calls of layers are kept whole."""
    return getattr(type_.__call__, "plain_call", type_.__call__)


def _missing(layer: Layer) -> str:
    if isinstance(layer, nnx.Module):
        name = type(layer).__name__
        what = f"{type(layer).__module__}.{type(layer).__qualname__}"
    elif isinstance(layer, partial):
        name, what = "the_function", f"{layer} (bind options by keyword, not by position)"
    else:
        name = getattr(layer, "__name__", repr(layer))
        what = f"the function {getattr(layer, '__module__', '?')}.{name}"
    return (
        f"no chain-rule derivative for {what}: register one with "
        f"@bpresearch.chainrule.rule({name}) on a class with forward(layer, x) -> y, residuals and "
        f"backward(layer, residuals, y_bar) -> {{parameter: cotangent}}, x_bar"
    )
