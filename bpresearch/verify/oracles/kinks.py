"""Kinks: points such as ReLU's zero, where the derivatives to the right and to the left differ.

There is no derivative there, and any element of Clarke's generalised gradient (1975) is one that a rule may
choose: a convex combination of the gradients at smooth points nearby. So at the elements where a derivative
is disputed, three things are measured:

* the gradients of the twin at points nearby, moved apart in several orders: what equals one of them is right;
* the derivatives to the right and to the left along each of the coordinates: what is outside of both, and of
  the gradients nearby, is wrong;
* the same along *joint* directions, all disputed elements of a leaf moved together. A vector may lie between
  both sides along each axis and still be none: of `n` tied numbers, a whole cotangent for each is n times too
  large, as raising all by h raises the maximum by h and not by n h. Elements at which the function is bent
  upwards are taken together, and those at which it is bent downwards, since one could hide the other.

Autodiff itself can be wrong at single points, where a function is written with a condition (the derivative of
`logsumexp(a, b=b)` with respect to b where b is 0): there is no kink, and differences side with the rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import PyTree

from bpresearch.verify.ladder import STEPS, richardson, step_scale
from bpresearch.verify.oracles.finite_differences import SAFETY, resolution
from bpresearch.verify.plain import NotOfValuesError, holding_constants
from bpresearch.verify.question import Question

name = "kinks"
AT_MOST = 256
"""So many disputed elements of a leaf are looked at."""

JOINT = 6
"""Joint directions: the signs of the derivative, all upwards, and random signs."""

NEARBY = 6
"""Points nearby: moved in order, in reverse order, and at random."""

DISTANCE = 1e-5
"""How far, relative to the leaf."""


class Found(Enum):
    """What there is at an element where a derivative is disputed."""

    BETWEEN = "at a kink, and between both sides"
    OUTSIDE = "outside of both sides of a kink"
    TWIN_WRONG = "autodiff is wrong here: finite differences side with this derivative"
    WRONG = "finite differences side with the oracle"
    UNKNOWN = "no side of it can be resolved"


@dataclass(frozen=True)
class Dispute:
    """The disputed elements of one leaf, what was found at each, and what was found of all together."""

    leaf: int
    elements: np.ndarray
    findings: tuple[Found, ...]
    joint: Found
    worst: float


def look(
    question: Question, leaf: int, elements: np.ndarray, expected: np.ndarray | None, only_rough: bool = False
) -> Dispute | None:
    """What there is at the disputed elements of a leaf; None where that cannot be measured.

    Args:
        question: whose `found` is disputed.
        leaf: which.
        elements: numbers of the disputed elements, at most `AT_MOST`.
        expected: what the oracle says of the leaf, if one does.
        only_rough: whether to look only where the gradients nearby differ from each other or from that.
    """
    if not 0 < elements.size <= AT_MOST or not np.isfinite(question.found[leaf]).all():
        return None
    count = 2 ** max(3, int(np.ceil(np.log2(elements.size))))
    padded = np.resize(elements, count).astype(np.int32)  # so that few programs serve all numbers of them
    key = ("kinks", leaf, count)
    arguments = question.point, question.others, question.y_bars[0]
    gradient = np.ravel(question.found[leaf]).astype(np.float64)
    try:
        if only_rough and not _is_rough(question, leaf, padded, expected):
            return None
        program = question.derivative.program(key, lambda: _program(question, leaf))
        mask = np.zeros(gradient.size)
        single = jax.device_get(program(*arguments, padded, [mask, mask], gradient))["single"]
        bend, least = _bend(question, gradient, _sides(question, leaf, single))
        masks = [_mask(gradient.size, padded, bent) for bent in (bend > least, bend < -least)]
        measured = jax.device_get(program(*arguments, padded, masks, gradient))
        measured |= {name: _sides(question, leaf, measured[name]) for name in ("single", "joint")}
    except (NotOfValuesError, NotImplementedError, TypeError, ValueError):
        return None
    return _judged(question, leaf, elements, expected, measured)


def _is_rough(question: Question, leaf: int, elements: np.ndarray, expected: np.ndarray | None) -> bool:
    """Whether the gradients at points nearby differ from each other, or from what the oracle says."""
    key = ("nearby", leaf, elements.size)
    program = question.derivative.program(key, lambda: lambda *arguments: _nearby(question, leaf, *arguments))
    nearby = jax.device_get(program(question.point, question.others, question.y_bars[0], elements))
    rows = np.asarray(nearby, np.float64)[:, elements]
    if expected is not None:
        rows = np.concatenate([rows, np.ravel(expected)[elements][None]])
    size = np.max(np.abs(rows), initial=0.0, where=np.isfinite(rows))
    return not (np.ptp(rows, axis=0) <= 100 * DISTANCE * size).all()


def _nearby(
    question: Question, leaf: int, point: Sequence[PyTree], others: PyTree, y_bar: PyTree, elements: PyTree
) -> jax.Array:
    """Gradients of the twin at points nearby, moved in order, in reverse order and at random."""
    derivative, x = question.derivative, point[leaf]
    disputed = jnp.zeros(x.size, x.dtype).at[elements].set(1)
    order = jnp.cumsum(disputed) / jnp.maximum(jnp.sum(disputed), 1)
    noise = jax.random.uniform(jax.random.key(question.seed), (NEARBY - 2, x.size), x.dtype, -1, 1)
    apart = jnp.concatenate([jnp.stack([order, -order]), noise])
    apart = apart * disputed[None] * (DISTANCE * step_scale(x))

    def gradient(by):
        moved = [part + by.reshape(x.shape) if i == leaf else part for i, part in enumerate(point)]
        if derivative.twin is None:
            return jnp.ravel(derivative.gradient(moved, others, y_bar)[leaf])
        return jnp.ravel(derivative.expected(moved, others, y_bar)[leaf])

    return lax.map(gradient, apart)


def _sides(question: Question, leaf: int, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    scale = np.full(len(values["here"]), float(step_scale(question.point[leaf])))
    return richardson(values["above"], values["below"], values["here"], scale, question.eps)


def _bend(
    question: Question, gradient: np.ndarray, sides: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """By how much the derivative to the right is larger than that to the left, and what counts as that."""
    doubt = SAFETY * np.maximum(sides["side_uncertainty"], sides["uncertainty"])
    return sides["right"] - sides["left"], np.maximum(
        resolution(question.eps)[0] * np.max(np.abs(gradient)), doubt
    )


def _mask(size: int, elements: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    mask = np.zeros(size)
    mask[elements[chosen]] = 1.0
    return mask


def _program(question: Question, leaf: int) -> Callable[..., PyTree]:
    """Both sides along each of the elements and along joint directions, and the gradients nearby."""
    derivative = question.derivative
    shape = question.point[leaf].shape

    def program(point, others, y_bar, elements, masks, gradient):
        dtype = point[leaf].dtype
        scale = step_scale(point[leaf])
        h = scale * jnp.asarray(STEPS, dtype)
        function = holding_constants(lambda point: derivative.scalar(point, others, y_bar), point)
        centre = function(point)

        def moved(by):
            return [x + by.reshape(shape) if i == leaf else x for i, x in enumerate(point)]

        def sides(d):
            values = lax.map(lambda step: function(moved(step * d)), jnp.concatenate([h, -h]))
            above, below = jnp.split(values, 2)
            return {"above": above, "below": below, "here": centre}

        size = point[leaf].size
        units = jax.nn.one_hot(elements, size, dtype=dtype)
        single = lax.map(sides, units)
        key = jax.random.key(question.seed)
        signs = jax.random.rademacher(key, (JOINT - 2, size), dtype)
        joint = jnp.stack([jnp.sign(gradient).astype(dtype), jnp.ones(size, dtype), *signs])
        together = lax.map(
            lambda d: sides(d), jnp.concatenate([joint * mask.astype(dtype)[None] for mask in masks])
        )
        return {
            "single": single,
            "joint": together,
            "directions": jnp.concatenate([joint * mask.astype(dtype)[None] for mask in masks]),
            "nearby": _nearby(question, leaf, point, others, y_bar, elements),
        }

    return program


def _judged(
    question: Question,
    leaf: int,
    elements: np.ndarray,
    expected: np.ndarray | None,
    measured: dict[str, PyTree],
) -> Dispute:
    n, gradient = elements.size, np.ravel(question.found[leaf]).astype(np.float64)
    single = {name: np.asarray(values)[:n] for name, values in measured["single"].items()}
    nearby = np.asarray(measured["nearby"], np.float64)[:, elements]
    nearby = nearby[np.isfinite(nearby).all(axis=1)]
    size = max(
        float(np.max(np.abs(a), initial=0.0)) for a in (gradient, nearby, single["right"], single["left"])
    )
    sharpest, bluntest = resolution(question.eps)
    doubt = SAFETY * np.maximum(single["side_uncertainty"], single["uncertainty"])
    margin = np.maximum(10 * sharpest * size, doubt)
    rough = np.ptp(nearby, axis=0) if len(nearby) else np.zeros(n)
    kink = (np.abs(single["right"] - single["left"]) > margin) | (rough > 100 * DISTANCE * size)
    columns = np.stack([single["right"], single["left"], *nearby])
    own = gradient[elements]
    within = (own <= columns.max(axis=0) + margin) & (own >= columns.min(axis=0) - margin)
    vertex = any((np.abs(own - row)[kink] <= 100 * DISTANCE * size).all() for row in nearby)
    unclear = doubt > bluntest * size
    findings = []
    for i in range(n):
        if kink[i]:
            findings.append(Found.BETWEEN if within[i] else Found.UNKNOWN if unclear[i] else Found.OUTSIDE)
            continue
        agrees = abs(single["estimate"][i] - own[i]) <= margin[i]
        other = np.nan if expected is None else float(np.ravel(expected)[elements[i]])
        excludes = not abs(single["estimate"][i] - other) <= SAFETY * margin[i]
        if unclear[i]:
            findings.append(Found.UNKNOWN)
        elif agrees:
            findings.append(Found.TWIN_WRONG if excludes else Found.UNKNOWN)
        else:
            findings.append(Found.WRONG)
    joint, worst = (Found.BETWEEN, 0.0) if vertex else _joint(gradient, measured, size, sharpest)
    return Dispute(leaf, elements, tuple(findings), joint, worst)


def _joint(
    gradient: np.ndarray, measured: dict[str, PyTree], size: float, sharpest: float
) -> tuple[Found, float]:
    """Whether the vector lies between both sides along the joint directions, and how far outside."""
    directions = np.asarray(measured["directions"], np.float64)
    together = {name: np.asarray(values, np.float64) for name, values in measured["joint"].items()}
    predicted = directions @ gradient
    length = np.maximum(np.sum(np.abs(directions), axis=1), 1)
    margin = np.maximum(10 * sharpest * size * length, SAFETY * together["side_uncertainty"])
    above = np.maximum(together["right"], together["left"])
    below = np.minimum(together["right"], together["left"])
    outside = np.maximum(predicted - above, below - predicted)
    half = len(directions) // 2  # bent upwards first, then downwards; a bend the other way bounds nothing
    bend = together["right"] - together["left"]
    honest = np.concatenate([bend[:half] >= -margin[:half], bend[half:] <= margin[half:]])
    wrong = honest & (outside > margin) & (together["side_uncertainty"] <= 0.01 * size * length)
    worst = float(np.max(np.where(wrong, outside, 0.0), initial=0.0)) / size if size else 0.0
    return (Found.OUTSIDE, worst) if wrong.any() else (Found.BETWEEN, 0.0)
