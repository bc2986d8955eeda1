"""Central finite differences in float64: a derivative from values of the function alone.

    D(h) = (f(t + h d) - f(t - h d)) / 2h = f'(t; d) + c2 h^2 + c4 h^4 + ...

Two steps cancel the leading term (Richardson 1911): with a step four times smaller,

    R(h) = (16 D(h / 4) - D(h)) / 15 = f'(t; d) + O(h^4).

Large steps err by truncation, small ones by rounding, about eps |f| / h. So R is computed on a ladder of
steps, and the difference between neighbours on the ladder shows how wrong it is there: the step taken is
the one whose estimate differs least from both its neighbours, and that difference is the estimate's own
uncertainty (Ridders 1982).

At a kink, such as ReLU's at zero, the derivatives to the right and to the left differ. Each is measured from
one side, as (f(t + h d) - f(t)) / h = f' + c1 h + c2 h^2 + ..., with the first two terms extrapolated away.
Any value between the two is a derivative that a rule may choose.

Directions are random signs (Rademacher): every element of a leaf takes part in every direction with the
same weight, so a single wrong element shows in each of them; that two errors of equal size cancel in all of
n directions has probability 2^-n. Leaves of few elements are taken in every coordinate.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bpresearch.verify.precision import compiled

STEPS = tuple(2.0 ** -(4 + 2 * k) for k in range(13))
"""The ladder, relative to the root mean square of the leaf: from 1/16 down to 3.7e-9. Of a kink
that is further away than 2.4e-7 some neighbouring steps know nothing."""

SAFETY = 10.0
"""A difference from the estimate is an error when it is this many times the estimate's uncertainty."""

SHARPEST = 1e-7
"""The smallest relative error that this oracle is asked to see, in float64."""

BLUNTEST = 1e-4
"""The largest relative uncertainty with which it still gives a verdict, in float64."""


def resolution(eps: float) -> tuple[float, float]:
    """The smallest error asked for and the largest uncertainty borne, in a precision, as eps^(2/3)."""
    coarser = (eps / np.finfo(np.float64).eps) ** (2 / 3)
    return min(SHARPEST * coarser, 1e-2), min(BLUNTEST * coarser, 3e-2)


@dataclass(frozen=True)
class Directions:
    """Which directions are taken: `leaf` of each, and its coordinate, or -1 for random signs."""

    leaf: np.ndarray
    coordinate: np.ndarray

    def of(self, leaf: int) -> np.ndarray:
        """Which of the directions belong to a leaf."""
        return self.leaf == leaf


def choose_directions(sizes: Sequence[int], random: int = 8, every_coordinate_up_to: int = 64) -> Directions:
    """`random` directions for each leaf, or every coordinate of leaves with few elements."""
    leaf: list[int] = []
    coordinate: list[int] = []
    for index, size in enumerate(sizes):
        chosen = list(range(size)) if size <= every_coordinate_up_to else [-1] * random
        leaf += [index] * len(chosen)
        coordinate += chosen
    return Directions(np.asarray(leaf, np.int32), np.asarray(coordinate, np.int32))


def directional_derivatives(
    function: Callable[[list[Array]], Float[Array, ""]],
    point: list[Array],
    directions: Directions,
    gradient: list[Array],
    key: jax.Array,
    together: bool = True,
) -> dict[str, Float[Array, "directions ..."]]:
    """Finite differences of a scalar function of a list of float64 arrays, and what a gradient predicts.

    All evaluations are one program: a loop over directions, the steps of the ladder side by side, or with
    `together=False` one after the other, for functions that `jax.vmap` does not take.

    Returns:
        What `richardson` does, `predicted` = <gradient, d>, the `scale` of the steps, and the values `above`
        at t + h d and `here` at t.
    """
    sizes = [leaf.size for leaf in point]
    ends = np.cumsum(sizes)
    flat = jnp.concatenate([leaf.ravel() for leaf in point])
    flat_gradient = jnp.concatenate([leaf.ravel() for leaf in gradient])
    position = jnp.arange(flat.size)
    scales = jnp.stack([_step_scale(leaf) for leaf in point])
    steps = jnp.asarray(STEPS)

    def evaluate(vector):
        parts = jnp.split(vector, ends[:-1])
        return function([part.reshape(leaf.shape) for part, leaf in zip(parts, point, strict=True)])

    def one(direction):
        start, end, coordinate, scale, key = direction
        inside = (position >= start) & (position < end)
        signs = jax.random.rademacher(key, flat.shape, flat.dtype)
        d = jnp.where(coordinate < 0, inside * signs, position == start + coordinate)
        h = scale * steps
        away = jnp.outer(h, d)
        points = jnp.concatenate([flat[None] + away, flat[None] - away, flat[None]])
        values = jax.vmap(evaluate)(points) if together else jax.lax.map(evaluate, points)
        above, below, here = values[: len(STEPS)], values[len(STEPS) : -1], values[-1]
        answer = richardson(above, below, here, h)
        answer |= {"predicted": jnp.sum(flat_gradient * d), "scale": scale}
        return answer | {"above": above, "here": here}

    starts = np.concatenate([[0], ends[:-1]])
    return jax.lax.map(
        one,
        (
            jnp.asarray(starts[directions.leaf]),
            jnp.asarray(ends[directions.leaf]),
            jnp.asarray(directions.coordinate),
            scales[directions.leaf],
            jax.random.split(key, directions.leaf.size),
        ),
    )


def _step_scale(leaf: Array) -> Array:
    """Root mean square of a leaf; 1 where it is all zeros and says nothing about its scale."""
    rms = jnp.sqrt(jnp.mean(leaf**2))
    return jnp.where(rms > 0, rms, 1.0)


def richardson(
    above: Float[Array, "steps"],
    below: Float[Array, "steps"],
    here: Float[Array, ""],
    h: Float[Array, "steps"],
) -> dict[str, Float[Array, ""]]:
    """The derivative from f(t + h d), f(t - h d) and f(t) on a ladder of steps, each a quarter of the last.

    Returns:
        `estimate` and its `uncertainty`; the derivatives to the `right` and `left` and the `side_uncertainty`
        of both.
    """
    largest = jnp.maximum(jnp.max(jnp.abs(above)), jnp.max(jnp.abs(below)))
    rounding = jnp.finfo(here.dtype).eps * largest / h
    estimate, uncertainty = _settled(_extrapolated((above - below) / (2 * h), (2,)), rounding)
    right, right_uncertainty = _settled(_extrapolated((above - here) / h, (1, 2)), rounding)
    left, left_uncertainty = _settled(_extrapolated((here - below) / h, (1, 2)), rounding)
    return {
        "estimate": estimate,
        "uncertainty": uncertainty,
        "right": right,
        "left": left,
        "side_uncertainty": right_uncertainty + left_uncertainty,
    }


def _extrapolated(ladder: Float[Array, "steps"], orders: Sequence[int]) -> Float[Array, "fewer"]:
    """The ladder without its terms in h^order, each in turn: steps shrink by 4, the terms by 4^order."""
    for order in orders:
        ladder = (4**order * ladder[1:] - ladder[:-1]) / (4**order - 1)
    return ladder


def _settled(
    ladder: Float[Array, "fewer"], rounding: Float[Array, "steps"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The value that is nearest to both its neighbours, and how near, rounding included."""
    apart = jnp.abs(jnp.diff(ladder))
    uncertainty = jnp.maximum(apart[1:], apart[:-1]) + rounding[1 - ladder.size : -1]
    uncertainty = jnp.where(jnp.isfinite(uncertainty), uncertainty, jnp.inf)
    best = jnp.argmin(uncertainty)
    return ladder[1:-1][best], uncertainty[best]


def only_kinks(
    function: Callable[[list[Array]], Array],
    point: list[Array],
    found: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    tolerance: float,
    at_most: int = 256,
) -> bool:
    """Whether two gradients differ only where the function has a kink and `found` lies between both sides.

    Args:
        function: a scalar function of a list of arrays.
        point: where the gradients were taken.
        found: the gradient in question.
        expected: the other one.
        tolerance: relative to the norm of the leaf, from which on an element counts as different.
        at_most: how many elements are looked at; if more differ, the answer is no.
    """
    leaf, coordinate = [], []
    for index, (f, e) in enumerate(zip(found, expected, strict=True)):
        different = np.flatnonzero(np.abs(f - e) > tolerance * max(np.linalg.norm(e), np.linalg.norm(f)))
        leaf += [index] * different.size
        coordinate += different.tolist()
    if not 0 < len(leaf) <= at_most:
        return False
    directions = Directions(np.asarray(leaf, np.int32), np.asarray(coordinate, np.int32))

    def differences(point, found):
        key = jax.random.key(0)  # coordinates are asked for: nothing is drawn
        return directional_derivatives(function, point, directions, found, key, together=False)

    answer = jax.device_get(compiled(differences)(point, [jnp.asarray(f) for f in found]))
    norm = max(np.linalg.norm(f) for f in (*found, *expected))
    eps = float(jnp.finfo(point[0].dtype).eps)
    kink, outside = at_kinks(answer, float(norm), eps)
    return bool((kink & (outside <= SAFETY * resolution(eps)[0])).all())


@dataclass(frozen=True)
class Verdict:
    """Error and tolerance of a gradient leaf against finite differences; None is undecided."""

    error: float
    tolerance: float
    passed: bool | None
    detail: str


def at_kinks(found: dict[str, np.ndarray], scale: float, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """In which directions the point is at a kink, and how far outside of both sides the prediction lies.

    Args:
        found: what `directional_derivatives` returns.
        scale: what the second answer, zero between the sides, is relative to.
        eps: machine precision of the values.
    """
    sharpest, _ = resolution(eps)
    right, left, predicted = (found[name] / scale for name in ("right", "left", "predicted"))
    doubt = np.maximum(found["side_uncertainty"], found["uncertainty"]) / scale
    kink = np.abs(right - left) > np.maximum(sharpest, SAFETY * doubt)
    outside = np.maximum(predicted - np.maximum(left, right), np.minimum(left, right) - predicted)
    return kink, np.maximum(outside, 0.0)


def judge(
    sizes: Sequence[int],
    norms: Sequence[float],
    directions: Directions,
    found: dict[str, np.ndarray],
    loss: float,
    eps: float = float(np.finfo(np.float64).eps),
) -> list[Verdict]:
    """One verdict for each leaf from the differences in all of its directions.

    Errors are relative to the leaf's gradient: its norm for random directions, its root mean square for
    coordinates; at least to what changes the loss a million times less than the most influential leaf.
    """
    error = np.abs(found["estimate"] - found["predicted"])
    sharpest, bluntest = resolution(eps)
    norms = [float(np.nan_to_num(norm, posinf=0.0)) for norm in norms]
    step = np.asarray([found["scale"][directions.of(leaf)].max(initial=0.0) for leaf in range(len(sizes))])
    moved = np.max(np.abs(found["estimate"] * found["scale"]), initial=0.0)
    influence = max([abs(loss), moved, *(norm * s for norm, s in zip(norms, step, strict=True))])
    verdicts = []
    for leaf, (size, norm) in enumerate(zip(sizes, norms, strict=True)):
        mine = directions.of(leaf)
        if not mine.any():
            verdicts.append(Verdict(0.0, sharpest, True, "no elements"))
            continue
        every = bool((directions.coordinate[mine] >= 0).all())
        typical = norm / math.sqrt(size) if every else norm
        scale = max(typical, 1e-6 * influence / step[leaf]) or 1.0
        relative, uncertainty = error[mine] / scale, found["uncertainty"][mine] / scale
        kink, outside = at_kinks({name: values[mine] for name, values in found.items()}, scale, eps)
        predicted = found["predicted"][mine]
        relative = np.where(kink, outside, relative)
        relative = np.where(np.isfinite(predicted), relative, np.inf)
        uncertainty = np.where(kink, found["side_uncertainty"][mine] / scale, uncertainty)
        tolerance = np.maximum(sharpest, SAFETY * uncertainty)
        # Several kinks in one direction can make up for each other: then its two sides bound nothing.
        resolved = (uncertainty <= bluntest) & (every | ~kink | (relative <= tolerance))
        looked = f"every coordinate ({size})" if every else f"{int(mine.sum())} random directions"
        if kink.any():
            looked += f", {int(kink.sum())} at a kink: not differentiable there"
        if not resolved.all():
            looked += f", {int((~resolved).sum())} unresolved"
        if 2 * resolved.sum() < resolved.size:
            verdicts.append(Verdict(float(np.nanmin(relative)), bluntest, None, looked))
            continue
        worst = np.argmax(np.where(resolved, relative / tolerance, -1.0))
        passed = bool(relative[worst] <= tolerance[worst])
        verdicts.append(Verdict(float(relative[worst]), float(tolerance[worst]), passed, looked))
    return verdicts
