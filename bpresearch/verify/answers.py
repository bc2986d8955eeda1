"""What all oracles together say of a question: asked, disputes at single points settled, decided.

Used for functions, for models and for single equations alike.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from bpresearch.verify import oracles as files
from bpresearch.verify.oracles import (
    Measures,
    ask,
    autodiff,
    complex_step,
    contract,
    finite_differences,
    kinks,
    taylor,
)
from bpresearch.verify.oracles.behaviour import BEHAVIOUR
from bpresearch.verify.oracles.kinks import Found
from bpresearch.verify.question import NotAskedError, Question
from bpresearch.verify.report import Row
from bpresearch.verify.verdict import Decision, Estimates, conclude, decide, worst_of

_files = (import_module(f"{files.__name__}.{file.name}") for file in iter_modules(files.__path__))
_with_program = [file for file in _files if hasattr(file, "program") or hasattr(file, "body")]
EXACT = {file.name: file for file in sorted(_with_program, key=lambda file: file is not autodiff)}
"""The oracles that are a program: every file of `oracles/` with a `program` or a `body`, autodiff first."""

FACT = (
    "A fact about the reference, not of the derivative: {oracle} disagrees with the derivative of the "
    "reference at {path}."
)


@dataclass(frozen=True)
class Outcome:
    """What oracles say of a question.

    Attributes:
        rows: of all oracles.
        notes: on what was not asked, and facts about a reference.
        wrong_twin: whether the twin was found wrong somewhere.
        found: the derivative in question; None where nothing could be asked.
        expected: autodiff's, where it was asked.
        value: of the scalar.
    """

    rows: list[Row]
    notes: list[str]
    wrong_twin: bool = False
    found: list[np.ndarray] | None = None
    expected: list[np.ndarray] | None = None
    value: float = 0.0


def answers(
    question: Question,
    asked: Sequence[str],
    is_real: bool = True,
    reference: Callable[..., PyTree] | None = None,
    surrogate: Callable[..., PyTree] | None = None,
    clauses: Sequence[contract.Clause] = (),
    key: Hashable = (),
    together: bool = False,
    measuring: bool = True,
    fused: bool = True,
) -> Outcome:
    """Asks the oracles, looks into what they dispute, and decides.

    What compares the results of two programs and says wrong, where differences do not, is asked once more
    with programs in which every operation rounds once: what the compiler does is no mistake of the rule.

    Args:
        question: what is asked.
        asked: names of the oracles.
        is_real: whether no argument was complex, so that a complex step can be taken.
        reference, surrogate: as `verify.function` takes them.
        clauses: further pairs that should be equal.
        key: what tells a program of the same derivative and oracles from another.
        together: whether the function can be evaluated side by side, by all devices.
        measuring: whether doubts are looked into: how far rounding moves things, and kinks. Where a rule is
            known to be wrong, differences need no explanation.
        fused: whether XLA may compute the same number again with another rounding.
    """
    exact = [module for name, module in EXACT.items() if name in asked]
    notes: list[str] = []
    if surrogate is not None:
        exact = [module for module in exact if module is not complex_step]
    elif complex_step in exact and not is_real:
        exact.remove(complex_step)
        notes.append("Not asked: complex step (it takes real arguments).")
    base = _Base()
    oracles: list[Any] = [
        *([REFERENCE] if reference is not None else []),
        *(contract.CLAUSES if "contract" in asked else []),
        *clauses,
        *exact,
    ]
    directions = question.directions.leaf.tobytes(), question.directions.coordinate.tobytes()
    name = key, tuple(oracle.name for oracle in oracles), directions
    given, more = ask(question, [base, *oracles], name, fused)
    notes += [note for note in more if note not in notes and "it has one output" not in note]
    if base.name not in given:
        return Outcome([], notes)
    first = given.pop(base.name)[0]
    gradient = [np.asarray(g) for g in first["found"]]
    question = question.with_answer(gradient, float(first["value"]))
    rows: list[Row] = []
    by_name = {oracle.name: oracle for oracle in oracles}
    estimates: list[Estimates] = []
    for oracle, (sides, measures) in given.items():
        made = list(by_name[oracle].estimates(question, sides, measures))
        if oracle in EXACT:
            estimates += made
        elif made:
            made = made if measuring else [_unmeasured(e) for e in made]
            rows.append(worst_of([decide(e) for e in made]).row)
    if "contract" in asked:
        rows.append(contract.finite_row(first["outputs"], gradient, question.names))
    if {"contract", BEHAVIOUR} & set(asked):
        again, _ = ask(question, [base], name, fused)
        row = contract.deterministic_row(first, again[base.name][0])
        rows.append(row if "contract" in asked else replace(row, oracle=BEHAVIOUR))
    if "eager" in asked:
        rows.append(_eager(question))
    if surrogate is None and {"finite differences", "taylor"} & set(asked):
        made, said = _differences(question, asked, together)
        estimates += made
        notes += said
    outputs = [np.asarray(y) for y in first["outputs"]]
    if any(y.size for y in outputs) and not any(np.isfinite(y).any() for y in outputs):
        estimates = [replace(e, silent="no output is finite") for e in estimates]
    wrong_twin = False
    if not measuring:
        estimates = [_unmeasured(e) for e in estimates]
    decisions = [decide(e, question.tolerance) for e in estimates]
    if measuring and reference is None and surrogate is None:
        only_rough = "finite differences" not in asked
        estimates, decisions, wrong_twin = _settle(question, estimates, decisions, only_rough)
    values = conclude(_one_each(decisions))
    if fused and measuring and _only_programs_disagree([*rows, *values]):
        of_same = is_real, reference, surrogate, clauses, key, together, measuring
        return answers(question, asked, *of_same, fused=False)
    if reference is not None:
        values, said = _facts(values)
        notes += said
    expected = given["autodiff"][0]["values"] if "autodiff" in given else None
    if expected is not None:  # for the first of the cotangents
        expected = [np.asarray(leaf) for leaf in expected[:: len(question.y_bars)]]
    return Outcome([*rows, *values], notes, wrong_twin, gradient, expected, question.value)


def _only_programs_disagree(rows: Sequence[Row]) -> bool:
    """Whether all that is wrong is so by a comparison of two programs, which the compiler has a part in."""
    wrong = {name for row in rows if row.passed is False for name in (row.oracle, row.path)}
    return bool(wrong) and not {"finite differences", "taylor", kinks.name, "deterministic", "finite"} & wrong


def _unmeasured(e: Estimates) -> Estimates:
    """An estimate that is taken at its word."""
    return replace(e, measure=None, uncertainty=np.maximum(e.uncertainty, e.floor))


class _Base:
    """What all oracles build on: the derivative in question, and the values."""

    name = "derivative in question"

    def program(self, question):
        derivative = question.derivative

        def program(point, others, y_bars, seed):
            outputs = derivative.apply(point, others)
            gradient = derivative.gradient(point, others, y_bars[0])
            value = derivative.scalar(point, others, y_bars[0])
            return {"found": gradient, "outputs": outputs, "value": value}

        return program

    def estimates(self, question, answer, measures):
        return ()


def _values(
    derivative: Any, point: PyTree, others: PyTree, y_bars: PyTree
) -> tuple[list[PyTree], list[PyTree]]:
    return derivative.apply(point, others), derivative.twin(point, others)


REFERENCE = contract.Clause(
    "values",
    "the function returns other values than the reference",
    _values,
    of_outputs=True,
)


def _eager(question: Question) -> Row:
    """The clause `without jit`: operation by operation, which compiles each of them."""
    derivative, (point, others, y_bars, _) = question.derivative, question.arguments

    def gradient(point, others, y_bars, seed):
        bars = derivative.gradient(point, others, y_bars[0])
        return {"found": bars, "values": bars}

    leaves = map(np.asarray, jax.device_get(derivative.gradient(point, others, y_bars[0])))
    measures = Measures(question, "without jit", gradient)
    made = [
        Estimates(
            "contract", "without jit", (), eager, values, autodiff.largest(values), measure=measures.of(leaf),
            detail="other values than under jit",
        )
        for leaf, (eager, values) in enumerate(zip(leaves, question.found, strict=True))
    ]  # fmt: skip
    return worst_of([decide(e) for e in made]).row


def _differences(
    question: Question, asked: Sequence[str], together: bool
) -> tuple[list[Estimates], list[str]]:
    try:
        measured = finite_differences.measure(question, together, spread=together)
    except NotAskedError as error:
        return [], [f"Not asked: finite differences ({error})."]
    made: list[Estimates] = []
    if "finite differences" in asked:
        made += finite_differences.estimates(question, measured)
    if "taylor" in asked and question.eps <= np.finfo(np.float64).eps:  # too coarse in others
        made += taylor.estimates(question, measured)
    return made, []


def _settle(
    question: Question, estimates: list[Estimates], decisions: list[Decision], only_rough: bool
) -> tuple[list[Estimates], list[Decision], bool]:
    """Looks for kinks where oracles disagree with the derivative in question, and silences them there."""
    wrong_twin = False
    for leaf, path in enumerate(question.names):
        mine = [(e, d) for e, d in zip(estimates, decisions, strict=True) if e.path == path]
        disputed = _disputed(question, leaf, mine)
        expected = next((e.values for e, _ in mine if e.oracle == "autodiff"), None)
        look = kinks.look(question, leaf, disputed, expected, only_rough)
        if look is None:
            continue
        wrong_twin |= Found.TWIN_WRONG in look.findings
        settled = look.elements[[f in (Found.BETWEEN, Found.TWIN_WRONG) for f in look.findings]]
        at_kink = look.elements[[f in (Found.BETWEEN, Found.OUTSIDE) for f in look.findings]]
        silent = np.union1d(settled, at_kink)
        if not silent.size:
            continue
        why = Found.TWIN_WRONG.value if Found.TWIN_WRONG in look.findings else "at a kink"
        for index, (e, d) in enumerate(zip(estimates, decisions, strict=True)):
            if e.path == path and d.row.passed is not True:
                estimates[index] = _silenced(question, leaf, e, silent, why)
                decisions[index] = decide(estimates[index], question.tolerance)
        made = _kink_estimates(question, leaf, look)
        estimates.append(made)
        decisions.append(decide(made))
    return estimates, decisions, wrong_twin


def _disputed(question: Question, leaf: int, mine: Iterable[tuple[Estimates, Decision]]) -> np.ndarray:
    """Numbers of the elements of a leaf at which some oracle is wrong, or silent for a kink."""
    elements: list[np.ndarray] = [np.zeros(0, int)]
    size = int(np.prod(question.shape(leaf)))
    for e, d in mine:
        if e.elements:
            elements.append(np.flatnonzero(d.wrong))
        elif d.wrong.size == size and question.directions.in_every_coordinate(leaf):
            at_kink = np.zeros(size, bool)
            if e.oracle == "finite differences":  # infinite where there is a kink, or the point is
                at_kink = np.isinf(e.uncertainty) & np.isfinite(np.asarray(question.point[leaf])).ravel()
            elements.append(np.flatnonzero(d.wrong | at_kink))
        elif d.row.passed is False and e.oracle in ("finite differences", "taylor") and size <= kinks.AT_MOST:
            elements.append(np.arange(size))
    return np.unique(np.concatenate(elements))


def _silenced(question: Question, leaf: int, e: Estimates, elements: np.ndarray, why: str) -> Estimates:
    """An estimate that says nothing of some elements; nor of directions that these have a part in."""
    size = int(np.prod(question.shape(leaf)))
    if np.size(e.values) != size or e.oracle == "taylor":
        return replace(e, silent=why)
    uncertainty = np.broadcast_to(np.asarray(e.uncertainty, np.float64), np.shape(e.values)).ravel().copy()
    uncertainty[elements] = np.inf
    left = uncertainty.reshape(np.shape(e.values))
    return replace(
        e,
        uncertainty=left,
        silent=why if np.isinf(left).all() else "",
        detail=f"{e.detail}, {why}".lstrip(", "),
    )


def _kink_estimates(question: Question, leaf: int, look: kinks.Dispute) -> Estimates:
    """What was found at kinks, as an estimate: how far outside of both sides the derivative lies."""
    outside = [float(f in (Found.OUTSIDE, Found.WRONG)) for f in look.findings]
    unknown = [f is Found.UNKNOWN for f in look.findings]
    values, worst = np.zeros(len(outside) + 1), np.asarray([*outside, look.worst])
    said = f"{sum(f is Found.BETWEEN for f in look.findings)} elements between both sides"
    if look.joint is Found.OUTSIDE:
        said = "outside of both sides along a joint direction: of tied elements each gets more than its share"
    if Found.TWIN_WRONG in look.findings:
        said = Found.TWIN_WRONG.value
    return Estimates(
        kinks.name, question.names[leaf], question.shape(leaf), worst, values,
        scale=1.0,
        uncertainty=np.where([*unknown, False], np.inf, 0.0),
        agreement=1e-6,
        detail=said,
    )  # fmt: skip


def _one_each(decisions: list[Decision]) -> list[Decision]:
    """One decision for each oracle and leaf: the worst."""
    of: dict[tuple[str, str], list[Decision]] = {}
    for decision in decisions:
        of.setdefault((decision.row.oracle, decision.row.path), []).append(decision)
    return [worst_of(several) for several in of.values()]


def _facts(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The reference is the authority: what looks at values alone and disagrees says something about it."""
    right = {row.path for row in rows if row.oracle == "autodiff" and row.passed}
    revised, notes = [], []
    for row in rows:
        of_values = row.oracle in ("complex step", "finite differences", "taylor", "kinks")
        if row.path in right and of_values and row.passed is False:
            notes.append(FACT.format(oracle=row.oracle, path=row.path))
            row = replace(row, passed=None, hint="", detail="it disagrees with the reference, which decides")
        revised.append(row)
    return revised, notes
