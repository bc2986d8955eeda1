"""Which equation's rule is wrong: every rule is asked about its own equation alone.

A wrong rule spoils the gradients of everything before it, so the leaves that are wrong say little about where
the mistake is. Therefore the gradient is computed once while each equation is watched: what its rule answers,
at the operands that it has in the model and with the *reference* cotangent of its results, is compared with
`jax.vjp` of the equation, and the reference's answer is handed on. So cotangents are right at every equation,
in the bodies of loops and branches as well, and the culprits are those whose own rule is wrong.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bpresearch import chainrule
from bpresearch.chainrule.engine import filled, rule_of, several
from bpresearch.chainrule.notes import collecting, note
from bpresearch.chainrule.primitives import Equation, is_floating
from bpresearch.verify.comparison import MATHEMATICS, Comparison, compare, largest_error, magnitude
from bpresearch.verify.equations import CALLS, Label, Plant, label, reference
from bpresearch.verify.hints import cotangent_hint, hint
from bpresearch.verify.kinks import BETWEEN, excuse
from bpresearch.verify.precision import jittered, random_like, random_signs
from bpresearch.verify.report import Row

JITTER = (float(np.finfo("float64").eps),) * 2
OUTPUT, INPUT = "output", "cotangent of its input"
NOT_DIFFERENTIABLE = (
    "the layer is not differentiable at some inputs; its rule takes a derivative between both sides"
)
AUTODIFF_IS_WRONG = "autodiff is wrong at some inputs of the layer: finite differences side with its rule"
BY_JAX = "by JAX: it has no rule of its own, so nothing was checked here"


@dataclass(frozen=True)
class Answer:
    """What the rule of one equation says and what is expected.

    All but `bars` are lists over results, or over the wanted operands. Cotangents have a first axis: at the
    model's own cotangent and, where it was asked carefully, at another one.

    Attributes:
        outs: the results by the rule.
        own_outs: by the equation itself.
        found, expected: cotangents of the wanted operands.
        noise: how far rounding moves what is expected; for results, then for operands.
        mixed: what the rule makes of twice the first cotangent less three times the other one.
        ins: all operands; None for random keys.
        bars: cotangents of the results.
    """

    outs: Any
    own_outs: Any
    found: Any
    expected: Any
    noise: Any
    mixed: Any
    ins: Any
    bars: Any


jax.tree_util.register_dataclass(Answer)


@dataclass(eq=False)
class Blame:
    """The program that watches every equation, and what it was asked about.

    Attributes:
        graphdef, loss_fn: the model and its loss.
        plant_of: what is planted, by the number of the fault.
        careful: equations that are asked about a second cotangent, and about rounding; layers always are.
        seen, order: filled, when the program is traced, with the equations, and with their labels in the
            order of the forward pass.
    """

    graphdef: nnx.GraphDef
    loss_fn: Any
    plant_of: Callable[[jax.Array], Plant]
    careful: frozenset[Label] = frozenset()

    def __post_init__(self) -> None:
        self.seen: dict[Label, Equation] = {}
        self.order: list[Any] = []

    def __call__(self, fault: jax.Array, params: Any, state: Any, x: Any, y: Any) -> dict[Any, Any]:
        """For each equation the error of its rule and its `Answer`; in a loop those of the worst step."""
        gradient = chainrule.gradient(self.graphdef, self.loss_fn, inputs=True)
        with chainrule.replacing(self.plant_of(fault)), chainrule.watching(self.watch), collecting() as notes:
            gradient(params, state, (x, y))
        self.order = list(reversed(notes))
        return dict(notes)

    def watch(self, e: Equation, bars: Sequence[Any], answer: tuple[Any, ...]) -> tuple[Any, ...]:
        """Compares an equation's answer with the reference's, and hands the latter on."""
        if e.primitive.name in CALLS:
            return answer
        about = label(e)
        results = ", ".join(f"{y.dtype}{y.shape}" for y in e.outs)  # notes of one name have one structure
        about = replace(about, signature=f"{about.signature} {results}")
        self.seen[about] = e
        ask = check_carefully if about.is_layer or about in self.careful else check
        found = ask(e, bars, answer)
        note(about, _size_of_error(found), found)
        right = iter(found.expected)
        return tuple(next(right)[0] if wanted else None for wanted in e.wanted)


def _size_of_error(answer: Answer) -> jax.Array:
    """The largest error of any cotangent, relative to the largest of them."""
    pairs = [
        *zip(answer.found, answer.expected, strict=True),
        *zip(answer.outs, answer.own_outs, strict=True),
    ]
    apart = [jnp.max(jnp.abs(f - e), initial=0.0) for f, e in pairs]
    sizes = [jnp.max(jnp.abs(e), initial=0.0) for _, e in pairs]
    largest = jnp.stack([jnp.asarray(size, jnp.float64) for size in sizes]).max()
    return jnp.stack([jnp.asarray(a, jnp.float64) for a in apart]).max() / jnp.where(largest > 0, largest, 1)


def _wanted(e: Equation, answer: Sequence[Any]) -> list[Any]:
    """An answer's cotangents of the wanted operands, with zeros for None, as rules may say it."""
    return [
        jnp.zeros_like(x) if bar is None else bar
        for x, bar, wanted in zip(e.ins, answer, e.wanted, strict=True)
        if wanted
    ]


def check(e: Equation, bars: Sequence[Any], answer: tuple[Any, ...]) -> Answer:
    """Compares the answer that was given with `jax.vjp` of the equation."""
    bars = _floating(filled(bars, e.outs), e.outs)
    some = [x for x, wanted in zip(e.ins, e.wanted, strict=True) if wanted]
    own, pull = jax.vjp(reference(e), some)
    (expected,) = pull(bars)
    outs = _floating(e.outs, e.outs)
    zeros = [jnp.zeros(()) for _ in (*outs, *expected)]
    found = [f[None] for f in _wanted(e, answer)]
    return Answer(outs, own, found, [x[None] for x in expected], zeros, None, _kept(e.ins), bars)


def check_carefully(e: Equation, bars: Sequence[Any], answer: tuple[Any, ...]) -> Answer:
    """`check` for two cotangents, with a mixture of both and with what rounding does."""
    bars = filled(bars, e.outs)
    some = [x for x, wanted in zip(e.ins, e.wanted, strict=True) if wanted]
    pairs: list[Any] = list(zip(bars, e.outs, strict=True))
    other: list[Any] = [_another_like(bar) if is_floating(y) else None for bar, y in pairs]
    mixed = [None if a is None else 2 * a - 3 * b for a, b in zip(bars, other, strict=True)]
    function = reference(e)

    def expected(some, bars):
        own, pull = jax.vjp(function, some)
        return own, pull(bars)[0]

    floats, others = _floating(bars, e.outs), _floating(other, e.outs)
    arguments, y_bars = jittered((some, floats), (*JITTER, 0.0))
    y_bars = [stacked.at[-1].set(last) for stacked, last in zip(y_bars, others, strict=True)]
    lanes = jax.vmap(expected)(arguments, y_bars)
    own, right = lanes[0], [lane[jnp.array([0, -1])] for lane in lanes[1]]
    noise = [[jnp.max(jnp.abs(v[1:-1] - v[:1]), initial=0.0) for v in part] for part in lanes]
    elsewhere = expected(random_like(some, jax.random.key(0)), floats)[1]
    noise[1] = [_at_least_one_rounding(n, v) for n, v in zip(noise[1], elsewhere, strict=True)]

    def by_rule(bars):
        return _wanted(e, several(rule_of(e).backward(e, *bars)))

    of_other, of_mixed = by_rule(other), by_rule(mixed)
    found = [jnp.stack([a, b]) for a, b in zip(_wanted(e, answer), of_other, strict=True)]
    outs = _floating(e.outs, e.outs)
    own = [lane[0] for lane in own]
    return Answer(outs, own, found, right, [*noise[0], *noise[1]], of_mixed, _kept(e.ins), floats)


def _kept(ins: Sequence[Any]) -> list[Any]:
    """The operands; None for random keys, which are no numbers."""
    return [None if jnp.issubdtype(x.dtype, jax.dtypes.extended) else x for x in ins]


def _floating(values: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    return [value for value, y in zip(values, like, strict=True) if is_floating(y)]


def _at_least_one_rounding(noise: jax.Array, elsewhere: jax.Array) -> jax.Array:
    """No derivative is known better than to one rounding of what it is elsewhere, where nothing is saturated.

    For large x rounding x moves 1 - tanh(x)^2 by nothing, and yet it is all rounding, of tanh(x).
    """
    usual = jnp.max(jnp.abs(elsewhere), initial=0.0, where=jnp.isfinite(elsewhere))
    return jnp.maximum(noise, jnp.finfo(elsewhere.dtype).eps * usual)


def _another_like(y_bar: jax.Array) -> jax.Array:
    """A cotangent of the same size with random signs; ones where `y_bar` is zero."""
    size = jnp.sqrt(jnp.sum(jnp.abs(y_bar) ** 2) / max(y_bar.size, 1))
    return random_signs(y_bar.shape, 7).astype(y_bar.dtype) * jnp.where(size > 0, size, 1).astype(y_bar.dtype)


def suspicious(seen: dict[Label, Equation], answers: dict[Label, Any]) -> frozenset[Label]:
    """The equations, not layers, that a first look does not find right: they are asked again, carefully."""
    return frozenset(
        about
        for about, (_, answer) in answers.items()
        if not about.is_layer and _judge(about, seen[about], answer).passed is False
    )


def judge_rules(seen: dict[Label, Equation], answers: dict[Label, Any]) -> list[Row]:
    """A row for each layer and each wrong equation, and one for all right equations in the same layer."""
    rows: list[Row] = []
    glue: dict[str, Row] = {}
    for about, (_, answer) in answers.items():
        row = _judge(about, seen[about], answer)
        if about.is_layer or row.passed is not True:
            rows.append(row)
            continue
        path = about.layer or "model"
        before = glue.get(path)
        count = 1 if before is None else int(before.detail.split()[0]) + 1
        if before is None or row.error > before.error:
            before = replace(row, path=path)
        glue[path] = replace(before, detail=f"{count} equations outside of layers that have a rule")
    return [*rows, *glue.values()]


def _judge(about: Label, e: Equation, answer: Answer) -> Row:
    names = [OUTPUT] * len(answer.outs) + _operand_names(e)
    found, expected = [*answer.outs, *answer.found], [*answer.own_outs, *answer.expected]
    largest = max((magnitude(leaf) for leaf in [*answer.expected, *answer.bars]), default=0.0)
    worst_name, worst, wrong = "", Comparison(0.0), None
    for name, f, x, noise in zip(names, found, expected, answer.noise, strict=True):
        if np.shape(f) != np.shape(x):
            raise ValueError(
                f"the rule of {about.where} gives shape {np.shape(f)} for its {name}, not {np.shape(x)}"
            )
        most = magnitude(x) if name == OUTPUT else largest
        result = compare(_real(f), _real(x), float(noise), most)
        if result.error > worst.error:
            worst_name, worst, wrong = name, result, (_real(f), _real(x))
    shape = np.shape(answer.own_outs[0]) if answer.own_outs else ()
    passed: bool | None = worst.error <= MATHEMATICS
    detail, said, element = "", "", worst.worst
    if getattr(rule_of(e), "by_jax", False):
        passed, detail = None, BY_JAX
    elif wrong is not None and not passed:
        detail, said, element = _explain(about, worst_name, worst, wrong, answer)
        if reason := _excuse(about, e, answer):
            passed, said, detail = True, "", reason
        elif answer.mixed is not None and not is_linear(answer):
            detail += ", and is not linear in the cotangent"
    return Row(about.where, shape, "rule", worst.error, MATHEMATICS, passed, detail, element, said)


def _real(leaf: Any) -> np.ndarray:
    """Complex numbers as pairs of real ones, along a new last axis."""
    leaf = np.asarray(leaf)
    return np.stack([leaf.real, leaf.imag], axis=-1) if np.iscomplexobj(leaf) else leaf


def _operand_names(e: Equation) -> list[str]:
    call = e.params.get("call")
    names = getattr(call, "names", None)
    if names is None:
        several_wanted = sum(e.wanted) > 1
        names = [f"cotangent of operand {i}" if several_wanted else INPUT for i in range(len(e.ins))]
    return [name for name, wanted in zip(names, e.wanted, strict=True) if wanted]


def is_linear(answer: Answer) -> bool:
    """Whether J^T (2 u - 3 v) = 2 J^T u - 3 J^T v, as it is for the transpose of any Jacobian J."""
    expected = [2 * v[0] - 3 * v[1] for v in answer.found]
    return largest_error(answer.mixed, expected) <= MATHEMATICS


def _explain(
    about: Label, name: str, worst: Comparison, wrong: tuple, answer: Answer
) -> tuple[str, str, Any]:
    """What is wrong with a rule, a hint, and the worst element as an index into the leaf itself."""
    detail = f"its rule ({about.name}) is wrong in the {name}"
    found, expected = wrong
    if name == OUTPUT:
        return detail, hint(found, expected), worst.worst
    first: Any = next(iter(answer.bars), np.zeros(()))
    pairs = [(np.asarray(f), np.asarray(x)) for f, x in zip(found, expected, strict=True)]
    errors = [compare(*pair).error for pair in pairs]
    elsewhere = len(pairs) == 2 and errors[0] <= MATHEMATICS < errors[1]
    if elsewhere:
        detail += ", for another cotangent than this model's own"
    of_found, of_expected = pairs[1 if elsewhere else 0]
    said = hint(of_found, of_expected, first.shape[0] if np.ndim(first) else None)
    if name == INPUT:
        said = cotangent_hint(of_found, of_expected, _real(first)) or said
    if worst.worst is None:
        return detail, said, None
    (_, *index), found_there, expected_there = worst.worst
    return detail, said, (tuple(index), found_there, expected_there)


def _excuse(about: Label, e: Equation, answer: Answer) -> str:
    """Why a layer's rule may differ from `jax.vjp` in its inputs' cotangents; "" where it may not."""
    if not about.is_layer or any(x is None or np.iscomplexobj(x) for x in answer.ins):
        return ""
    names = _operand_names(e)
    others = [(f, x) for n, f, x in zip(names, answer.found, answer.expected, strict=True) if n != INPUT]
    both = [*zip(answer.outs, answer.own_outs, strict=True), *others]
    if largest_error([f for f, _ in both], [x for _, x in both]) > MATHEMATICS:
        return ""
    places = [i for i, wanted in enumerate(e.wanted) if wanted]
    chosen = [i for i, name in zip(places, names, strict=True) if name == INPUT]
    picked = [n for n, name in enumerate(names) if name == INPUT]
    point = [jnp.asarray(answer.ins[i]) for i in chosen]
    found, expected = ([np.asarray(part[n])[0] for n in picked] for part in (answer.found, answer.expected))
    scalar = _scalar(e.params["call"].apply, tuple(chosen), len(e.ins))
    reason = excuse(scalar, point, found, expected, MATHEMATICS, (answer.ins, answer.bars))
    return reason and (NOT_DIFFERENTIABLE if reason == BETWEEN else AUTODIFF_IS_WRONG)


@lru_cache(maxsize=256)
def _scalar(apply: Callable[..., Any], chosen: tuple[int, ...], count: int) -> Callable[..., jax.Array]:
    """<y_bar, y> of `(point, ins, bars)` for finite differences; `point` takes the places of some operands.

    The same function for the same layer, so that programs compiled for it are found again.
    """

    def scalar(point, ins, bars):
        whole = dict(enumerate(ins)) | dict(zip(chosen, point, strict=True))
        outs = [y for y in apply(*(whole[i] for i in range(count))) if is_floating(y)]
        return sum(jnp.sum(y * bar) for y, bar in zip(outs, bars, strict=True))

    return scalar


def first_not_finite(answers: dict[Label, Any]) -> str:
    """The equation that makes NaN or infinity of a finite cotangent: the first on the way back.

    It may have a correct rule, as far as formulas go, and so may autodiff.
    """

    def finite(leaves):
        return all(np.isfinite(leaf).all() for leaf in leaves)

    for about, (_, answer) in reversed(answers.items()):
        if finite((*answer.bars, *answer.outs)) and not finite([leaf[0] for leaf in answer.found]):
            return about.where
    return ""
