"""The one place that decides: right, wrong or undecided, from estimates and their uncertainty.

An oracle says of a leaf what the derivative is at some places (its elements, or along directions), and how
uncertain that is. The rule is the same for all of them:

* What agrees to `AGREEMENT`, far below the smallest fault that is claimed to be found, is right.
* Where it does not, the uncertainty is measured: by random rounding (`bpresearch.verify.spread`) of the
  derivative in question and of the oracle's own. A difference beyond it is wrong. How many spreads that are
  follows from the lanes it was measured with (Student's t), the number of elements, and the probability of a
  false alarm, `FALSE_ALARM`: nothing in it was tuned to cases.
* A difference within it is right only if the uncertainty is a small part of the leaf, `COARSEST`; else
  nothing was resolved, and that is undecided. A leaf that is zero within its uncertainty for two oracles is
  decided: zero is right.
* What is not finite in an oracle silences it at that element; in the derivative in question, where the oracle
  has a finite value, it is wrong.

Right as a whole means that for each leaf some independent oracle resolved the answer and none disagrees.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bpresearch.verify.report import Row

AGREEMENT = 1e-10
"""Relative difference that is accepted without measuring; the smallest fault claimed is 1e-6."""

FALSE_ALARM = 1e-6
"""Probability that rounding alone is called wrong in some element of a leaf."""

COARSEST = 1e-3
"""Largest uncertainty, as a part of the leaf, with which an answer counts as resolved."""

ENOUGH = 4.0
"""A difference of so few spreads is rounding, whatever the number of lanes."""

ROUNDS = 8
"""How often the lanes are evaluated where few of them leave a doubt."""

CLEARLY = 10.0
"""What is unresolved by an uncertainty that is no measured spread is wrong all the same if it differs by so
many times that."""


def limit(freedom: int, elements: int) -> float:
    """How many spreads a difference may be: the quantile of Student's t for so many degrees of freedom.

    >>> round(limit(5, 1)), round(limit(40, 1), 1), round(limit(40, 10_000), 1)
    (28, 5.8, 8.7)
    """
    from scipy import special  # a quarter of the time of importing this package, and few verdicts need it

    return -float(special.stdtrit(freedom, FALSE_ALARM / (2 * max(elements, 1))))


Measure = Callable[[int], tuple[np.ndarray, int]]
"""`rounds -> (spread of the difference at each place, degrees of freedom)`."""


@dataclass(frozen=True)
class Estimates:
    """What one oracle says of one leaf.

    Attributes:
        oracle, path, shape: of the row that is made of it.
        found: the derivative in question at the places.
        values: the oracle's.
        scale: what errors are relative to.
        uncertainty: half-widths at the places; infinite where the oracle does not know.
        measure: measures the spread of the difference; None where the uncertainty is all there is.
        agreement: relative difference accepted without more ado.
        coarsest: largest relative uncertainty that counts as resolved.
        detail: what was looked at.
        elements: whether places are the elements of the leaf, so that one can be named.
        silent: a reason for saying nothing at all.
        eps: machine precision of the values.
        floor: a rounding of the largest number around, for when nothing is measured.
        hint: what a difference looks like, asked if there is one.
    """

    oracle: str
    path: str
    shape: tuple[int, ...]
    found: np.ndarray
    values: np.ndarray
    scale: float
    uncertainty: np.ndarray | float = 0.0
    measure: Measure | None = None
    agreement: float = AGREEMENT
    coarsest: float = COARSEST
    detail: str = ""
    elements: bool = False
    silent: str = ""
    floor: float = 0.0
    eps: float = math.ulp(1.0)
    hint: Callable[[], str] | None = None


@dataclass(frozen=True)
class Decision:
    """A row, at which places it is wrong, and whether the leaf is zero within its uncertainty."""

    row: Row
    wrong: np.ndarray
    zero: bool = False


def decide(estimates: Estimates, tolerance: float = 0.0) -> Decision:
    """Right, wrong or undecided, with the reason.

    Args:
        estimates: what an oracle says.
        tolerance: a relative error that passes whatever its cause.
    """
    e = estimates
    nowhere = np.zeros(np.shape(e.values), bool)
    if e.silent:
        return Decision(_row(e, math.nan, e.agreement, None, e.silent), nowhere)
    if np.size(e.values) == 0:
        return Decision(_row(e, 0.0, e.agreement, True, "no elements"), nowhere)
    actual, values = (np.asarray(a, np.float64) for a in (e.found, e.values))
    known = np.isfinite(values) & (np.asarray(e.uncertainty) != np.inf)
    if not known.any():
        why = "" if np.isfinite(values).all() else "the oracle has no finite value"
        return Decision(_row(e, math.nan, e.agreement, None, _joined(e.detail, why)), nowhere)
    accepted = max(e.agreement, tolerance) * (e.scale if math.isfinite(e.scale) else 0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(np.isfinite(actual), np.abs(actual - values), np.inf)
    apart = np.where(known, apart, 0.0)
    uncertainty = np.broadcast_to(np.where(known, e.uncertainty, 0.0), values.shape)
    agrees = np.asarray(apart <= accepted)
    measured = np.zeros(values.shape)
    if e.measure is not None and not agrees.all() and np.isfinite(apart).all():
        measured = _measured(e.measure, apart, np.asarray(~agrees))
    uncertainty = np.maximum(uncertainty, measured)
    allowed = np.maximum(uncertainty, accepted)
    resolved = known & (uncertainty <= max(e.coarsest * e.scale, accepted))
    beyond = known & ((apart > allowed) | ~np.isfinite(apart))
    is_measured = (measured > 0) & (measured >= uncertainty)
    wrong = beyond & (resolved | is_measured | (apart > CLEARLY * uncertainty))
    if wrong.any():
        worst = _place(np.where(wrong, apart, -1.0))
        element = (worst, float(actual[worst]), float(values[worst])) if e.elements else None
        error, bound = (_relative(x[worst], e.scale) for x in (apart, allowed))
        return Decision(_row(e, error, bound, False, e.detail, element), np.asarray(wrong))
    worst = _place(apart)
    element = (worst, float(actual[worst]), float(values[worst])) if e.elements else None
    error, bound = (_relative(np.max(x[known]), e.scale) for x in (apart, allowed))
    is_zero = (np.abs(values) <= uncertainty) & (np.abs(actual) <= allowed) | ~known
    zero = bool(is_zero.all()) and bool(uncertainty.any())
    if 2 * (resolved & ~beyond).sum() < known.sum():
        why = "zero within what rounding does" if zero else "its uncertainty is too large to tell"
        return Decision(_row(e, error, bound, None, _joined(e.detail, why), element), nowhere, zero)
    unresolved = values.size - int((resolved & ~beyond).sum())
    detail = _joined(e.detail, f"{unresolved} unresolved" if unresolved else "")
    return Decision(_row(e, error, bound, True, detail, element), nowhere, zero)


def _place(sizes: np.ndarray) -> tuple[int, ...]:
    """The index of the largest."""
    return tuple(int(i) for i in np.unravel_index(np.argmax(sizes), sizes.shape))


def _relative(size: float, scale: float) -> float:
    if scale > 0 and math.isfinite(scale):
        return float(size / scale)
    return 0.0 if size == 0 else math.inf


def _measured(measure: Measure, apart: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The half-widths that the spread gives: of few lanes first, of more where those leave a doubt."""
    sizes, freedom = measure(1)
    few = limit(freedom, apart.size) * sizes
    if (apart <= ENOUGH * sizes)[asked].all() or (apart > few)[asked].all():
        return np.where(apart <= ENOUGH * sizes, ENOUGH * sizes, few)
    sizes, freedom = measure(ROUNDS)
    return limit(freedom, apart.size) * sizes


def _row(
    e: Estimates,
    error: float,
    bound: float,
    passed: bool | None,
    detail: str,
    worst: object = None,
) -> Row:
    hint = e.hint() if e.hint and passed is False else ""
    row = Row(e.path, e.shape, e.oracle, error, float(bound), passed, detail, worst, hint)  # type: ignore[arg-type]
    return replace(row, eps=e.eps)


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def severity(row: Row) -> tuple[int, float]:
    """By what the worst of several rows is found: a wrong one, else a right one, and then by their errors."""
    error = float(np.nan_to_num(row.error, nan=np.inf, posinf=np.inf))
    return {False: 2, True: 1, None: 0}[row.passed], error


def worst_of(decisions: Sequence[Decision]) -> Decision:
    """Of several decisions of one oracle about one leaf."""
    return max(decisions, key=lambda decision: severity(decision.row))


def conclude(decisions: Iterable[Decision]) -> list[Row]:
    """The rows of a verification: what several oracles together say of a leaf that one cannot decide.

    * Zero within its uncertainty for two oracles, and wrong for none: zero is right.
    * A complex step that disagrees with all others, of which there are two or more, is silenced: functions
      that are not analytic give it wrong values.
    """
    decisions = list(decisions)
    of_leaf: dict[str, list[Decision]] = {}
    for decision in decisions:
        of_leaf.setdefault(decision.row.path, []).append(decision)
    rows = []
    for decision in decisions:
        row, others = decision.row, of_leaf[decision.row.path]
        zeros = len({d.row.oracle for d in others if d.zero})
        if (
            row.passed is None
            and decision.zero
            and zeros > 1
            and all(d.row.passed is not False for d in others)
        ):
            row = replace(row, passed=True, detail=_joined(row.detail, "as another oracle finds, too"))
        rest = [d.row.passed for d in others if d.row.oracle != "complex step" and d.row.passed is not None]
        if row.oracle == "complex step" and row.passed is False and len(rest) > 1 and all(rest):
            row = replace(
                row, passed=None, hint="", detail="it alone disagrees: the function is not analytic here"
            )
        rows.append(row)
    return rows
