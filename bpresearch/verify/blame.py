"""Which equation's rule is wrong: every rule is asked about its own equation alone.

A wrong rule spoils the gradients of everything before it, so the leaves that are wrong say little about where
the mistake is. Therefore the gradient is computed once while each equation is watched: what its rule answers,
at the operands that it has in the model and with the *reference* cotangent of its results, is compared with
`jax.vjp` of the equation, and the reference's answer is handed on. So cotangents are right at every equation,
in the bodies of loops and branches as well. Where a rule and the reference do not agree there, the equation
by itself becomes a question like any other, at the operands that were seen: how far rounding moves both,
whether there is a kink, and what the verdict is. The culprits are those whose own rule is wrong.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from bpresearch import chainrule
from bpresearch.chainrule.engine import filled, rule_of, several
from bpresearch.chainrule.notes import collecting, note
from bpresearch.chainrule.primitives import Equation, is_floating
from bpresearch.functional import Loss
from bpresearch.verify.answers import answers
from bpresearch.verify.directions import choose_directions
from bpresearch.verify.equations import OPENED, Label, Plant, evaluated, label, reference
from bpresearch.verify.hints import cotangent_hint
from bpresearch.verify.oracles.contract import Clause
from bpresearch.verify.precision import compiled, random_signs
from bpresearch.verify.question import Derivative, Question
from bpresearch.verify.report import Row
from bpresearch.verify.verdict import AGREEMENT, severity

EPS = float(np.finfo("float64").eps)
OUTPUT, INPUT = "output", "cotangent of its input"
BY_JAX = "by JAX: it has no rule of its own, so nothing was checked here"
OF_EQUATION = "autodiff", "kinks"
"""The oracles of a single equation."""


@dataclass(frozen=True)
class Answer:
    """What the rule of one equation says and what is expected.

    All but `ins` and `bars` are lists over results, or over the wanted operands; `found` and `expected` have
    a first axis: at the model's own cotangent and, for layers, at another one.

    Attributes:
        outs: the results by the rule.
        own_outs: by the equation itself.
        found, expected: cotangents of the wanted operands.
        ins: all operands; random keys as their data.
        bars: cotangents of the floating results.
    """

    outs: PyTree
    own_outs: PyTree
    found: PyTree
    expected: PyTree
    ins: PyTree
    bars: PyTree


jax.tree_util.register_dataclass(Answer)


@dataclass(eq=False)
class Blame:
    """The program that watches every equation, and what it was asked about.

    Attributes:
        graphdef, loss_fn: the model and its loss.
        plant_of: what is planted, by the number of the fault.
        seen, order: filled, when the program is traced, with the equations, and with their labels in the
            order of the forward pass.
        derivatives: of the single equations that were asked about by themselves.
    """

    graphdef: nnx.GraphDef
    loss_fn: Loss
    plant_of: Callable[[jax.Array], Plant]

    def __post_init__(self) -> None:
        self.seen: dict[Label, Equation] = {}
        self.order: list[Any] = []
        self.derivatives: dict[Label, Derivative] = {}
        self.program = compiled(self._watched)

    def _watched(
        self, fault: jax.Array, params: PyTree, state: PyTree, x: PyTree, y: PyTree
    ) -> dict[Hashable, PyTree]:
        """For each equation the error of its rule and its `Answer`; in a loop those of the worst step."""
        gradient = chainrule.gradient(self.graphdef, self.loss_fn, inputs=True)
        with (
            chainrule.replacing(self.plant_of(fault)),
            chainrule.watching(self._watch),
            collecting() as notes,
        ):
            gradient(params, state, (x, y))
        self.order = list(reversed(notes))
        return dict(notes)

    def _watch(self, e: Equation, bars: Sequence[PyTree], x_bars: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        """Compares an equation's answer with the reference's, and hands the latter on."""
        if e.primitive.name in OPENED:
            return x_bars
        about = label(e)
        results = ", ".join(f"{y.dtype}{y.shape}" for y in e.outs)  # notes of one name have one structure
        about = replace(about, signature=f"{about.signature} {results}")
        self.seen[about] = e
        compared = _compared(e, bars, x_bars, twice=about.is_layer)
        note(about, _size_of_error(compared), compared)
        right = iter(compared.expected)
        return tuple(next(right)[0] if wanted else None for wanted in e.wanted)

    def __call__(self, fault: jax.Array, of_model: tuple[PyTree, ...], seed: int = 0) -> "Blamed":
        """Asks every rule, and those that do not agree with the reference once more by themselves.

        `of_model` is `(params, state, x, y)`.
        """
        comparisons = jax.device_get(self.program(fault, *of_model))
        rows: list[Row] = []
        glue: dict[str, list[Row]] = {}
        for about in self.order:
            row = self._row(about, comparisons[about][1], fault, seed)
            if about.is_layer or row.passed is not True:
                rows.append(row)
            else:
                glue.setdefault(about.layer or "model", []).append(row)
        for path, several_rows in glue.items():
            worst = max(several_rows, key=lambda row: row.error)
            said = f"{len(several_rows)} equations outside of layers that have a rule"
            rows.append(replace(worst, path=path, detail=said, worst=None))
        return Blamed(rows, first_not_finite({about: comparisons[about][1] for about in self.order}))

    def _row(self, about: Label, comparison: Answer, fault: jax.Array, seed: int) -> Row:
        """The row of one equation."""
        e = self.seen[about]
        shape = np.shape(comparison.own_outs[0]) if comparison.own_outs else ()
        if getattr(rule_of(e), "by_jax", False):
            return Row(about.where, shape, "rule", np.nan, AGREEMENT, None, BY_JAX)
        error = _largest_error(about, e, comparison)
        if error <= AGREEMENT:
            return Row(about.where, shape, "rule", error, AGREEMENT, True)
        if about not in self.derivatives:
            self.derivatives[about] = derivative_of(e, self.plant_of)
        question = question_about(self.derivatives[about], e, comparison, fault, seed)
        clause = Clause(OUTPUT, "it computes something else than the layer", _outputs(e, self.plant_of))
        outcome = answers(question, OF_EQUATION, clauses=(clause,), key=about.is_layer)
        return _of_equation(about, shape, question.names, outcome.rows, comparison)


@dataclass(frozen=True)
class Blamed:
    """The rows of all rules, and the equation in which the gradient first is not finite, if any."""

    rows: list[Row]
    trap: str

    @property
    def culprits(self) -> tuple[str, ...]:
        """Where a rule is wrong, in the order of the forward pass."""
        return tuple(dict.fromkeys(row.path for row in self.rows if row.passed is False))


def _compared(e: Equation, bars: Sequence[PyTree], x_bars: tuple[PyTree, ...], twice: bool) -> Answer:
    """The x_bars that were given beside `jax.vjp` of the equation; `twice`: for another cotangent as well."""
    filled_bars = filled(bars, e.outs)
    some = [x for x, wanted in zip(e.ins, e.wanted, strict=True) if wanted]
    own, pull = jax.vjp(reference(e), some)
    of_floats = _floating(filled_bars, e.outs)
    by_rule, expected = [_wanted(e, x_bars)], [pull(of_floats)[0]]
    if twice:
        pairs: list[Any] = list(zip(filled_bars, e.outs, strict=True))
        other: list[Any] = [_another_like(bar) if is_floating(y) else None for bar, y in pairs]
        by_rule.append(_wanted(e, several(rule_of(e).backward(e, *other))))
        expected.append(pull(_floating(other, e.outs))[0])
    return Answer(
        _floating(e.outs, e.outs),
        own,
        [jnp.stack(leaves) for leaves in zip(*by_rule, strict=True)],
        [jnp.stack(leaves) for leaves in zip(*expected, strict=True)],
        [jax.random.key_data(x) if _is_key(x) else x for x in e.ins],
        of_floats,
    )


def _is_key(x: PyTree) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.extended)


def _wanted(e: Equation, x_bars: Sequence[PyTree]) -> list[PyTree]:
    """An answer's cotangents of the wanted operands, with zeros for None, as rules may say it."""
    return [
        jnp.zeros_like(x) if bar is None else bar
        for x, bar, wanted in zip(e.ins, x_bars, e.wanted, strict=True)
        if wanted
    ]


def _floating(values: Sequence[PyTree], like: Sequence[PyTree]) -> list[PyTree]:
    return [value for value, y in zip(values, like, strict=True) if is_floating(y)]


def _another_like(y_bar: jax.Array) -> jax.Array:
    """A cotangent of the same size with random signs; ones where `y_bar` is zero."""
    size = jnp.sqrt(jnp.sum(jnp.abs(y_bar) ** 2) / max(y_bar.size, 1))
    return random_signs(y_bar.shape, 7).astype(y_bar.dtype) * jnp.where(size > 0, size, 1).astype(y_bar.dtype)


def _size_of_error(comparison: Answer) -> jax.Array:
    """The largest error of any cotangent, relative to the largest of them: tells the worst step of a loop."""
    pairs = [
        *zip(comparison.found, comparison.expected, strict=True),
        *zip(comparison.outs, comparison.own_outs, strict=True),
    ]
    apart = [jnp.max(jnp.abs(f - e), initial=0.0) for f, e in pairs]
    sizes = [jnp.max(jnp.abs(e), initial=0.0) for _, e in pairs]
    largest = jnp.stack([jnp.asarray(size, jnp.float64) for size in sizes]).max()
    return jnp.stack([jnp.asarray(a, jnp.float64) for a in apart]).max() / jnp.where(largest > 0, largest, 1)


def _largest_error(about: Label, e: Equation, comparison: Answer) -> float:
    """Of any leaf, relative to its own largest element; infinite where only one of the two is finite."""
    names = [OUTPUT] * len(comparison.outs) + operand_names(e)
    worst = 0.0
    pairs = zip(
        [*comparison.outs, *comparison.found], [*comparison.own_outs, *comparison.expected], strict=True
    )
    for name, (actual, expected) in zip(names, pairs, strict=True):
        actual, expected = np.asarray(actual), np.asarray(expected)
        if actual.shape != expected.shape:
            raise ValueError(
                f"the rule of {about.where} gives shape {actual.shape} for its {name}, not {expected.shape}"
            )
        same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
        apart = np.where(same, 0.0, np.abs(actual - expected))
        apart = np.where(np.isnan(apart), np.inf, apart)
        size = np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))
        if apart.any():
            worst = max(worst, float(np.max(apart) / size) if size else np.inf)
    return worst


def operand_names(e: Equation) -> list[str]:
    """What the cotangents of the wanted operands are, in words."""
    call = e.params.get("call")
    names = getattr(call, "names", None)
    if names is None:
        several_wanted = sum(e.wanted) > 1
        names = [f"cotangent of operand {i}" if several_wanted else INPUT for i in range(len(e.ins))]
    chosen = [name for name, wanted in zip(names, e.wanted, strict=True) if wanted]
    if len(set(chosen)) < len(chosen):  # a layer of several inputs
        return [f"{name} {i}" if chosen.count(name) > 1 else name for i, name in enumerate(chosen)]
    return chosen


# --------------------------------------------------------------------------- an equation as a question


def derivative_of(e: Equation, plant_of: Callable[[jax.Array], Plant]) -> Derivative:
    """The derivative of one equation by its rule; `others` are the number of the fault and all operands."""

    def apply(point, others):
        at = _equation_at(e, point, others)
        some = [x for x, wanted in zip(at.ins, at.wanted, strict=True) if wanted]
        return [_as_real(y) for y in reference(at)(some)]

    def gradient(point, others, y_bar):
        at = _equation_at(e, point, others)
        with chainrule.replacing(plant_of(others[0])), collecting():
            whole = evaluated(at)
            given = iter(y_bar)
            bars = [_as_cotangent(next(given), y) if is_floating(y) else None for y in whole.outs]
            x_bars = _wanted(whole, several(rule_of(whole).backward(whole, *bars)))
        return [_as_real(jnp.conj(bar)) for bar in x_bars]

    return Derivative(apply, gradient, apply, apply)


def _equation_at(e: Equation, point: Sequence[PyTree], others: PyTree) -> Equation:
    """The equation, not yet evaluated, with the point in the places of its wanted operands."""
    moving = iter(point)
    ins = [
        _as_operand(next(moving), own) if wanted else x
        for own, x, wanted in zip(e.ins, _operands(e, others[1]), e.wanted, strict=True)
    ]
    return replace(e, ins=tuple(ins), outs=(), kept=())


def _outputs(e: Equation, plant_of: Callable[[jax.Array], Plant]) -> Callable[..., PyTree]:
    def pairs(derivative, point, others, y_bars):
        with chainrule.replacing(plant_of(others[0])), collecting():
            outs = evaluated(_equation_at(e, point, others)).outs
        return [_as_real(y) for y in outs if is_floating(y)], derivative.apply(point, others)

    return pairs


def question_about(
    derivative: Derivative, e: Equation, answer: Answer, fault: jax.Array, seed: int
) -> Question:
    """The question whether the rule of one equation is right, at the operands that were seen."""
    point = [jnp.asarray(_as_real(answer.ins[i])) for i, wanted in enumerate(e.wanted) if wanted]
    y_bar = [jnp.asarray(_as_real(jnp.conj(bar))) for bar in answer.bars]
    other = [_another_like(bar) for bar in y_bar]
    others = fault, list(answer.ins)
    sizes = [leaf.size for leaf in point]
    eps = max([EPS, *(float(jnp.finfo(x.dtype).eps) for x in (*point, *y_bar))])
    directions = choose_directions(sizes, 0.5, 1)
    return Question(derivative, point, others, operand_names(e), [y_bar, other], directions, seed, eps)


def _operands(e: Equation, ins: Sequence[PyTree]) -> list[PyTree]:
    """Operands with the data of random keys made keys again."""
    return [
        jax.random.wrap_key_data(x, impl=jax.random.key_impl(own)) if _is_key(own) else x
        for own, x in zip(e.ins, ins, strict=True)
    ]


def _as_real(x: PyTree) -> PyTree:
    """A complex array as pairs of real numbers."""
    return jnp.stack([jnp.real(x), jnp.imag(x)], axis=-1) if jnp.iscomplexobj(x) else x


def _as_operand(x: PyTree, like: PyTree) -> PyTree:
    complex_ = jnp.issubdtype(like.dtype, jnp.complexfloating)
    return jax.lax.complex(x[..., 0], x[..., 1]) if complex_ and not jnp.iscomplexobj(x) else x


def _as_cotangent(bar: PyTree, like: PyTree) -> PyTree:
    """The cotangent of a complex result in JAX's convention, from that of its real and imaginary parts."""
    return jnp.conj(_as_operand(bar, like)) if jnp.issubdtype(like.dtype, jnp.complexfloating) else bar


def _of_equation(
    about: Label, shape: tuple[int, ...], names: Sequence[str], rows: Sequence[Row], comparison: Answer
) -> Row:
    """One row of what was said of an equation: the worst."""
    worst = max(rows, key=severity)
    at_kinks = [row.detail for row in rows if row.oracle == "kinks"]
    detail, said = ", ".join(dict.fromkeys([worst.detail, *at_kinks])).strip(", "), worst.hint
    if worst.passed is False:
        detail = f"its rule ({about.name}) is wrong in the {worst.path}"
        if worst.oracle == "autodiff":
            place = names.index(worst.path)
            pair = [np.asarray(leaves[place]) for leaves in (comparison.found, comparison.expected)]
            bar: Any = next(iter(comparison.bars), np.zeros(()))
            if worst.path == INPUT:
                own, right = (np.asarray(leaf[0]) for leaf in pair)
                said = cotangent_hint(own, right, np.asarray(bar)) or said
            if len(pair[0]) == 2 and np.allclose(pair[0][0], pair[1][0], AGREEMENT, AGREEMENT):
                detail += ", for another cotangent than this model's own"
        detail = ", ".join([detail, *at_kinks])
    error = max([row.error for row in rows if row.error == row.error], default=np.nan)
    reported = error if worst.passed is not False else worst.error
    return Row(about.where, shape, "rule", reported, worst.tolerance, worst.passed, detail, worst.worst, said)


def first_not_finite(answers: dict[Label, Answer]) -> str:
    """The equation that makes NaN or infinity of a finite cotangent: the first on the way back.

    It may have a correct rule, as far as formulas go, and so may autodiff.
    """

    def finite(leaves):
        return all(np.isfinite(leaf).all() for leaf in leaves)

    for about, comparison in reversed(answers.items()):
        if finite((*comparison.bars, *comparison.outs)) and not finite(
            [leaf[0] for leaf in comparison.found]
        ):
            return about.where
    return ""
