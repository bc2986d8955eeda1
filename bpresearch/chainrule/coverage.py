"""Which of JAX's primitives, of Flax's layers and activations and of Optax's losses have a hand-written rule.

The table is made by walking the namespaces of the installed versions and JAX's table of derivatives. What has
no rule needs a reason, or it is missing: what a new version brings shows up by itself. The reasons for names
are here, those for primitives in `rules/lax`.
"""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import optax
from flax import nnx
from jax.interpreters import ad

from bpresearch.chainrule.primitives import LAYER, PrimitiveRule, table
from bpresearch.chainrule.registry import NoRuleError, Rule, rule_for

NAMESPACES = {"flax.nnx": nnx, "optax.losses": optax.losses}

COMPOSITE = "a composite: its own __call__ is traced, and its parts answer"

REASONS = {
    "flax.nnx.Sequential": COMPOSITE,
    "flax.nnx.RNN": COMPOSITE,
    "flax.nnx.Bidirectional": COMPOSITE,
    "flax.nnx.MultiHeadAttention": COMPOSITE,
    "flax.nnx.WeightNorm": COMPOSITE,
    "flax.nnx.SpectralNorm": COMPOSITE,
    "flax.nnx.dot_product_attention_with_rope": "a composite: it is traced, and its parts answer",
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


EXTENSIONS = (
    "jax.experimental.pallas",
    "jax.experimental.buffer_callback",
    "jax.experimental.multihost_utils",
)
"""Parts of JAX that bring primitives when they are imported."""


@dataclass(frozen=True)
class Row:
    """One exported name or primitive: file and formula of its rule, or the reason for having none."""

    namespace: str
    name: str
    rule: str
    reason: str

    @property
    def full_name(self) -> str:
        return f"{self.namespace}.{self.name}"

    @property
    def missing(self) -> bool:
        return not self.rule and not self.reason


@dataclass(frozen=True)
class Rows:
    """A part of the table, sorted by namespace and name."""

    rows: tuple[Row, ...]
    what: str = "names"

    @property
    def with_rule(self) -> list[str]:
        return [row.full_name for row in self.rows if row.rule]

    @property
    def excused(self) -> list[str]:
        return [row.full_name for row in self.rows if not row.rule and row.reason]

    @property
    def missing(self) -> list[str]:
        return [row.full_name for row in self.rows if row.missing]

    @property
    def counts(self) -> str:
        """How many there are of each kind."""
        kinds = f"{len(self.with_rule)} with a rule, {len(self.excused)} excused, {len(self.missing)} missing"
        return f"{len(self.rows)} {self.what}: {kinds}"

    def __str__(self) -> str:
        """One line for each; layers, activations and losses first, the rest of the namespaces after."""
        rows = sorted(self.rows, key=lambda row: (row.reason.startswith("not a layer"), row.namespace))
        width = max((len(row.full_name) for row in rows), default=0)
        lines = [f"{row.full_name:{width}}  {row.rule or row.reason or 'MISSING'}" for row in rows]
        return "\n".join([*lines, "", self.counts])


@dataclass(frozen=True)
class Coverage(Rows):
    """The whole table: the names in its own rows, and the primitives."""

    primitives: Rows = Rows((), "primitives")

    def __str__(self) -> str:
        return f"{self.primitives}\n\n{super().__str__()}"


def coverage(namespaces: dict[str, ModuleType] | None = None) -> Coverage:
    """Every public name of `flax.nnx` and `optax.losses` and every primitive that JAX has a derivative for.

    Each has its rule or the reason for having none.

    Args:
        namespaces: other modules to walk, by name.

    >>> table = bp.chainrule.coverage()
    >>> "flax.nnx.Linear" in table.with_rule, "optax.losses.ctc_loss" in table.with_rule
    (True, True)
    >>> print(next(row.rule for row in table.rows if row.name == "Linear"))
    rules/layers/linear.py  y = x W + b.      W_bar = x^T y_bar,   b_bar = sum(y_bar),   x_bar = y_bar W^T
    >>> print(next(row.rule for row in table.primitives.rows if row.name == "sin"))
    rules/lax/elementwise.py  elementwise("sin", lambda x, y: lax.cos(x))
    """
    names = tuple(_rows(NAMESPACES if namespaces is None else namespaces))
    return Coverage(names, primitives=Rows(tuple(_primitives()), "primitives"))


def _primitives() -> Iterable[Row]:
    """The primitives in JAX's table of derivatives."""
    for extension in EXTENSIONS:
        import_module(extension)
    for name in sorted({primitive.name for primitive in ad.primitive_jvps} - {LAYER}):
        rule, reason = table.rules.get(name), table.refused.get(name, "")
        if name in table.constants:
            reason = f"its derivative is zero: {table.constants[name]}"
        yield Row("primitive", name, _file_and_formula(rule) if rule else "", "" if rule else reason)


def _file_and_formula(rule: PrimitiveRule | Rule) -> str:
    """Where a rule is written, and its first line.

    `elementwise` and `linear` make the rule of functions that are written elsewhere; where an elementwise one
    has no formula in words, its derivative is one.
    """
    written, formula = rule, inspect.getdoc(rule) or inspect.getdoc(inspect.getmodule(rule)) or ""
    if rule.__module__ == table.__module__:
        held, formula = (
            inspect.getclosurevars(inspect.unwrap(rule.backward)).nonlocals,
            inspect.getdoc(rule) or "",
        )
        written = held.get("transpose") or next(p for p in held["partials"] if p is not None)
        formula = (
            formula if "=" in formula or "transpose" in held else _first_line(inspect.getsource(written))
        )
    path = written.__module__.rpartition("chainrule.")[2].replace(".", "/")
    return f"{path}.py  {_first_line(formula)}".rstrip()


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


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
        rule, _ = rule_for(object.__new__(value) if isinstance(value, type) else value)
    except NoRuleError:
        return ""
    return _file_and_formula(rule)


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
