"""Which of Flax's layers and activations and of Optax's losses have a hand-written rule.

The table is made by walking the namespaces of the installed versions. A name without a rule needs a reason
here, or it is missing: a layer that a new version brings shows up by itself.
"""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import optax
from flax import nnx

from bpresearch.chainrule.registry import NoRuleError, rule_for

NAMESPACES = {"flax.nnx": nnx, "optax.losses": optax.losses}

REASONS = {
    "flax.nnx.Module": "the base class of layers",
    "flax.nnx.RNNCellBase": "the base class of recurrent cells",
    "flax.nnx.Dict": "a container, which is not called",
    "flax.nnx.List": "a container, which is not called",
    "flax.nnx.pool": "the frame of the pooling functions, for any reduction",
    "flax.nnx.one_hot": "no derivative: its input is integers",
    "flax.nnx.combine_masks": "no derivative: makes a mask",
    "flax.nnx.make_attention_mask": "no derivative: makes a mask",
    "flax.nnx.make_causal_mask": "no derivative: makes a mask",
    "optax.losses.make_fenchel_young_loss": "makes a loss of any function, whose derivative it needs",
}

# What else Flax exports is recognised by the base class or by where it is defined.
BASES = {
    nnx.Variable: "not a layer: a kind of variable",
    nnx.Metric: "not a layer: a metric",
    nnx.Optimizer: "not a layer: an optimizer",
}
ORIGINS = {
    "flax.nnx.transforms": "not a layer: a transformation",
    "flax.nnx.graphlib": "not a layer: takes models apart and puts them together",
    "flax.nnx.statelib": "not a layer: handles states",
    "flax.nnx.filterlib": "not a layer: chooses variables",
    "flax.nnx.variablelib": "not a layer: handles variables",
    "flax.nnx.rnglib": "not a layer: random streams",
    "flax.nnx.spmd": "not a layer: sharding",
    "flax.core.spmd": "not a layer: sharding",
    "flax.nnx.extract": "not a layer: takes models apart and puts them together",
    "flax.nnx.pytreelib": "not a layer: models as trees",
    "flax.nnx.module": "not a layer: walks and changes models",
    "flax.nnx.helpers": "not a layer: training states",
    "flax.nnx.training": "not a layer: training states",
    "flax.nnx.summary": "not a layer: shows models",
    "flax.nnx.visualization": "not a layer: shows models",
    "flax.nnx.compat": "not a layer: for older code",
    "flax.typing": "not a layer: a type",
    "typing": "not a layer: a type",
    "types": "not a layer: a type",
    "builtins": "not a layer: a type",
}


@dataclass(frozen=True)
class Row:
    """One exported name: file and formula of its rule, or the reason for having none; neither: missing."""

    namespace: str
    name: str
    rule: str
    reason: str

    @property
    def missing(self) -> bool:
        return not self.rule and not self.reason


@dataclass(frozen=True)
class Coverage:
    """The table, its rows sorted by namespace and name."""

    rows: tuple[Row, ...]

    @property
    def with_rule(self) -> list[str]:
        return [f"{row.namespace}.{row.name}" for row in self.rows if row.rule]

    @property
    def excused(self) -> list[str]:
        return [f"{row.namespace}.{row.name}" for row in self.rows if not row.rule and row.reason]

    @property
    def missing(self) -> list[str]:
        return [f"{row.namespace}.{row.name}" for row in self.rows if row.missing]

    def __str__(self) -> str:
        """One line for each name; layers, activations and losses first, the rest of the namespaces after."""
        rows = sorted(self.rows, key=lambda row: (row.reason.startswith("not a layer"), row.namespace))
        width = max(len(f"{row.namespace}.{row.name}") for row in rows)
        lines = [
            f"{f'{row.namespace}.{row.name}':{width}}  {row.rule or row.reason or 'MISSING'}" for row in rows
        ]
        counts = (
            f"{len(self.with_rule)} with a rule, {len(self.excused)} excused, {len(self.missing)} missing"
        )
        return "\n".join([*lines, "", f"{len(rows)} names: {counts}"])


def coverage(namespaces: dict[str, ModuleType] | None = None) -> Coverage:
    """Every public name of `flax.nnx` and `optax.losses`, with its rule or the reason for having none.

    Args:
        namespaces: other modules to walk, by name.

    >>> table = bp.chainrule.coverage()
    >>> "flax.nnx.Linear" in table.with_rule, "optax.losses.ctc_loss" in table.with_rule
    (True, True)
    >>> print(next(row.rule for row in table.rows if row.name == "Linear"))
    linear.py  y = x W + b.      W_bar = x^T y_bar,   b_bar = sum(y_bar),   x_bar = y_bar W^T
    """
    return Coverage(tuple(_rows(NAMESPACES if namespaces is None else namespaces)))


def _rows(namespaces: dict[str, ModuleType]) -> Iterable[Row]:
    for namespace, module in namespaces.items():
        for name in sorted(vars(module)):
            value = getattr(module, name)
            if not name.startswith("_") and not inspect.ismodule(value):
                rule = _rule(value)
                yield Row(namespace, name, rule, "" if rule else _reason(f"{namespace}.{name}", value))


def _rule(value: Any) -> str:
    """File and first line of a name's rule."""
    if not callable(value) or (isinstance(value, type) and not issubclass(value, nnx.Module)):
        return ""
    try:
        # A rule belongs to a type: an object of it finds its rule, without the constructor being run.
        found, _ = rule_for(object.__new__(value) if isinstance(value, type) else value)
    except NoRuleError:
        return ""
    formula = (inspect.getdoc(found) or "").partition("\n")[0]
    return f"{inspect.getmodule(found).__name__.rsplit('.', 1)[-1]}.py  {formula}".rstrip()


def _reason(full_name: str, value: Any) -> str:
    if full_name in REASONS:
        return REASONS[full_name]
    if isinstance(value, type):
        if issubclass(value, nnx.Module):
            return ""
        for base, reason in BASES.items():
            if issubclass(value, base):
                return reason
    if not callable(value):
        return "not a layer: a constant"
    origin = getattr(value, "__module__", None) or type(value).__module__
    reasons = (reason for start, reason in ORIGINS.items() if f"{origin}.".startswith(f"{start}."))
    return next(reasons, "")
