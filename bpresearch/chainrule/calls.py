"""Catching the calls of layers while a model is traced.

Modules with a rule, and functions with one that are attributes of modules, bind one equation (see
`whole.py`). All other modules open a scope with their path, so that each equation knows the layer it was
made in.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from flax import nnx
from jaxtyping import PyTree

from bpresearch.chainrule import registry
from bpresearch.chainrule.primitives import SCOPE
from bpresearch.chainrule.whole import PATH, is_active, keeping, whole_call
from bpresearch.paths import format_path

_lock = threading.Lock()
_users: dict[type, int] = {}

# JAX keeps inner traces (of `jax.jit` inside a model, say). Those in which layers are whole are no one
# else's.
_traced_with = jax.make_user_context(None)

_opened: ContextVar[bool] = ContextVar("layers are opened, rule or not", default=False)


@contextmanager
def layers_whole(models: Iterable[nnx.Module] = (), opened: bool = False) -> Iterator[None]:
    """Context in which the calls of layers that have a rule are one equation each.

    Args:
        models: models whose modules know their paths; see `named`.
        opened: no layer is kept whole; each equation still knows the layer it was made in.
    """
    types = {type(module) for model in models for _, module in nnx.iter_modules(model)}
    types |= {target for target in registry.registered() if isinstance(target, type)}
    owners = {owner for type_ in types for owner in type_.__mro__ if "__call__" in vars(owner)}
    owners = {owner for owner in owners if issubclass(owner, nnx.Module)}
    with ExitStack() as stack:
        _catch(owners)
        stack.callback(_release, owners)
        stack.enter_context(_traced_with((registry.version(), opened)))
        stack.enter_context(keeping(True))
        stack.callback(_opened.reset, _opened.set(opened))
        yield


def _catch(owners: set[type]) -> None:
    with _lock:
        for owner in owners:
            _users[owner] = _users.get(owner, 0) + 1
            if _users[owner] == 1:
                setattr(owner, "__call__", _caught(owner.__call__))  # noqa: B010


def _release(owners: set[type]) -> None:
    with _lock:
        for owner in owners:
            _users[owner] -= 1
            if _users[owner] == 0:
                setattr(owner, "__call__", registry.plain_call(owner))  # noqa: B010


def _caught(plain: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The `__call__` of a module type, which binds one equation where it is active and there is a rule."""

    @functools.wraps(plain)
    def call(layer, *args, **kwargs):
        if not is_active():
            return plain(layer, *args, **kwargs)
        path = getattr(layer, PATH, "")
        if not _opened.get() and registry.has_rule(layer) and registry.plain_call(type(layer)) is plain:
            try:
                return whole_call(plain, *registry.rule_for(layer), layer, path, args, kwargs)
            except registry.DoesNotApply:
                pass  # opened: its own code is traced
        if not path:
            return plain(layer, *args, **kwargs)
        with jax.named_scope(f"{SCOPE}{path}"):
            return plain(layer, *args, **kwargs)

    setattr(call, "plain_call", plain)  # noqa: B010
    return call


class WholeFunction:
    """A function with a rule in the place of a module's attribute: its call is one equation, too."""

    def __init__(self, function: Callable[..., PyTree], path: str):
        functools.update_wrapper(self, function)
        self.function, self.path = function, path

    def __call__(self, *args: PyTree, **kwargs: Any) -> PyTree:
        if not is_active():
            return self.function(*args, **kwargs)
        if _opened.get():
            with jax.named_scope(f"{SCOPE}{self.path}"):
                return self.function(*args, **kwargs)
        rule, bound = registry.rule_for(self.function)
        function = self.function
        while isinstance(function, functools.partial):
            function = function.func
        try:
            return whole_call(function, rule, bound, function, self.path, args, kwargs)
        except registry.DoesNotApply:
            return self.function(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WholeFunction) and self.function == other.function

    def __hash__(self) -> int:
        return hash(self.function)


def named(model: nnx.Module) -> nnx.Module:
    """The model itself, its modules with their paths and its functions that have a rule wrapped.

    Only for a model that nobody else holds: one that was just put together.
    """
    for path, module in list(nnx.iter_modules(model)):
        for name, value in list(vars(module).items()):
            plain = isinstance(module, nnx.List | nnx.Dict) or not registry.has_rule(module)
            if plain and _is_function(value) and registry.has_rule(value):
                object.__setattr__(module, name, WholeFunction(value, format_path((*path, name))))
        if not isinstance(module, nnx.List | nnx.Dict):
            setattr(module, PATH, format_path(path))
    return model


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, nnx.Module | type | WholeFunction)
