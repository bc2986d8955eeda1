"""Central finite differences in float64: a derivative from values of the function alone.

    D(h) = (f(t + h d) - f(t - h d)) / 2h = f'(t; d) + c2 h^2 + c4 h^4 + ...

Two steps cancel the leading term (Richardson 1911): with a step four times smaller,

    R(h) = (16 D(h / 4) - D(h)) / 15 = f'(t; d) + O(h^4).

Large steps err by truncation, small ones by rounding, about eps |f| / h. So R is computed on a ladder of
steps, and the difference between neighbours on the ladder shows how wrong it is there: the step taken is
the one whose estimate differs least from both its neighbours, and that difference is the estimate's own
uncertainty (Ridders 1982).

The derivatives to the right and to the left are each measured from one side, as
(f(t + h d) - f(t)) / h = f' + c1 h + c2 h^2 + ..., with the first two terms extrapolated away: where they
differ, the function has a kink (see kinks.py).

What the function holds constant stays as it is at t (see `plain.holding_constants`).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from bpresearch.verify.directions import Directions, along
from bpresearch.verify.plain import holding_constants
from bpresearch.verify.precision import Seed

STEPS = tuple(2.0 ** -(4 + 2 * k) for k in range(13))
"""The ladder, relative to the root mean square of the leaf: from 1/16 down to 3.7e-9. Of a kink
that is further away than 2.4e-7 some neighbouring steps know nothing."""


def directional_derivatives(
    function: Callable[[list[Array]], Float[Array, ""]],
    point: list[Array],
    gradient: list[Array],
    directions: Directions,
    seed: Seed = 0,
    together: bool = True,
) -> dict[str, Float[Array, "directions ..."]]:
    """Finite differences of a scalar function of a list of arrays, and what a gradient predicts.

    All evaluations are one program: a loop over directions, the steps of the ladder side by side, or with
    `together=False` one after the other, for functions that `jax.vmap` does not take.

    Returns:
        What `richardson` makes derivatives of: the values `above` at t + h d, `below` at t - h d and `here`
        at t, and the `scale` of the steps; and `predicted` = <gradient, d>.
    """
    scales = jnp.stack([step_scale(leaf) for leaf in point])
    function = holding_constants(function, point)
    centre = function(point)
    every = jax.vmap if together else lambda f: lambda all_: jax.lax.map(f, all_)

    def evaluations(d, leaf, number):
        h = scales[leaf] * jnp.asarray(STEPS, scales.dtype)
        values = every(lambda h: function([x + h * e for x, e in zip(point, d, strict=True)]))(
            jnp.concatenate([h, -h])
        )
        above, below = jnp.split(values, 2)
        predicted = sum(jnp.sum(g * e) for g, e in zip(gradient, d, strict=True))
        return {
            "predicted": predicted, "scale": scales[leaf], "above": above, "below": below, "here": centre,
        }  # fmt: skip

    return along(directions, point, seed, evaluations)


def step_scale(leaf: PyTree) -> Array:
    """Root mean square of the finite elements; 1 where they are all zeros and say nothing of a scale."""
    sizes = jnp.abs(leaf).astype(jnp.promote_types(leaf.dtype, jnp.float32))
    finite = jnp.isfinite(sizes)
    largest = jnp.max(sizes, initial=0.0, where=finite)  # whose square may be no number of the type
    parts = jnp.where(finite & (largest > 0), sizes / largest, 0)
    rms = largest * jnp.sqrt(jnp.sum(parts**2) / jnp.maximum(jnp.sum(finite), 1))
    return jnp.where(rms > 0, rms, 1.0).astype(leaf.dtype)


def richardson(
    above: Float[np.ndarray, "directions steps"],
    below: Float[np.ndarray, "directions steps"],
    here: Float[np.ndarray, "directions"],
    scale: Float[np.ndarray, "directions"],
    eps: float,
) -> dict[str, Float[np.ndarray, "directions"]]:
    """Derivatives from f(t + h d), f(t - h d) and f(t) on a ladder of steps h, each a quarter of the last.

    On the host: it is little work, and compiling it would take longer than doing it.

    Args:
        above, below, here: the values.
        scale: h is `STEPS` times that.
        eps: machine precision of the values.

    Returns:
        `estimate`, its `uncertainty` and the `step` at which it settles; the derivatives to the `right` and
        `left` and the `side_uncertainty` of both.
    """
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    here = np.asarray(here, np.float64)[:, None]
    h = np.asarray(scale, np.float64)[:, None] * np.asarray(STEPS)
    with np.errstate(invalid="ignore", over="ignore"):
        sizes = np.maximum(np.abs(above), np.abs(below))
        largest = np.max(sizes, axis=1, keepdims=True, initial=0.0, where=np.isfinite(sizes))
        rounding = eps * largest / h
        estimate, uncertainty, best = _settled(_extrapolated((above - below) / (2 * h), (2,)), rounding)
        right, right_uncertainty, _ = _settled(_extrapolated((above - here) / h, (1, 2)), rounding)
        left, left_uncertainty, _ = _settled(_extrapolated((here - below) / h, (1, 2)), rounding)
    return {
        "estimate": estimate,
        "uncertainty": uncertainty,
        "step": h[np.arange(len(h)), best + 2],
        "right": right,
        "left": left,
        "side_uncertainty": right_uncertainty + left_uncertainty,
    }


def _extrapolated(ladder: np.ndarray, orders: Sequence[int]) -> np.ndarray:
    """The ladder without its terms in h^order, each in turn: steps shrink by 4, the terms by 4^order."""
    for order in orders:
        ladder = (4**order * ladder[:, 1:] - ladder[:, :-1]) / (4**order - 1)
    return ladder


def _settled(ladder: np.ndarray, rounding: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The value that is nearest to both its neighbours, how near, rounding included, and which it is."""
    apart = np.abs(np.diff(ladder))
    uncertainty = np.maximum(apart[:, 1:], apart[:, :-1]) + rounding[:, 1 - ladder.shape[1] : -1]
    uncertainty = np.where(np.isfinite(uncertainty), uncertainty, np.inf)
    best = np.argmin(uncertainty, axis=1)
    rows = np.arange(len(ladder))
    return ladder[:, 1:-1][rows, best], uncertainty[rows, best], best


LANES = 2**16
"""How many numbers there are in the copies that are perturbed side by side: they fit a core's cache."""


def coordinate_derivatives(
    function: Callable[[list[Array]], Float[Array, ""]],
    point: list[Array],
    leaves: Sequence[int],
    coordinates: Int[Array, " some"],
) -> dict[str, Float[Array, " some"]]:
    """The short way to derivatives along coordinates: two evaluations, where the ladder takes 26.

    Good where the function is smooth over the step h, and holds its constants by itself. The coordinates
    count through all elements of these leaves, one leaf after the other.

    Returns:
        `estimate` = (f(x + h e) - f(x - h e)) / 2h, its `uncertainty`, the `step` h and the `scale` s of
        which it is a small part, s eps^(1/4) / 2: at smaller steps rounding would blur what is asked for, at
        larger ones more kinks are near. The uncertainty is that of rounding alone. The error of order h^2 is
        not measured: it can only make a right derivative look wrong, which the ladder then decides.
    """
    x = jnp.concatenate([point[leaf].ravel() for leaf in leaves])
    scale = jnp.concatenate([jnp.full(point[leaf].size, step_scale(point[leaf])) for leaf in leaves])
    ends = np.cumsum([point[leaf].size for leaf in leaves])[:-1]
    count = coordinates.size
    together = min(count, max(1, LANES // max(2 * x.size, 1)))
    blocks = jnp.pad(coordinates, (0, -count % together), mode="edge").reshape(-1, together)
    # Copies of a matrix lie side by side, row by row: then its products need no transposition.
    rows = len(point[leaves[0]]) if len(leaves) == 1 and point[leaves[0]].ndim > 1 else 1
    width = x.size // rows
    copies = jnp.broadcast_to(x.reshape(rows, 1, width), (rows, 2 * together, width)).ravel()

    def evaluate(changed):
        moved = dict(zip(leaves, jnp.split(changed.ravel(), ends) if len(ends) else [changed], strict=True))
        return function([moved.get(i, leaf).reshape(leaf.shape) for i, leaf in enumerate(point)])

    eps = float(jnp.finfo(x.dtype).eps)

    def derivatives(copies, block):
        h, element = scale[block] * eps**0.25 / 2, jnp.concatenate([block, block])
        own = x[element]
        row, column = element // width, element % width
        indices = (row * (2 * together) + jnp.arange(2 * together)) * width + column
        moved = copies.at[indices].set(own + jnp.concatenate([h, -h]), mode="promise_in_bounds")
        values = jax.vmap(evaluate, in_axes=1)(moved.reshape(rows, 2 * together, width))
        above, below = values[:together], values[together:]
        rounding = eps * jnp.maximum(jnp.abs(above), jnp.abs(below)) / h
        differences = {"estimate": (above - below) / (2 * h), "uncertainty": rounding, "step": h}
        differences["scale"] = scale[block]
        return moved.at[indices].set(own, mode="promise_in_bounds"), differences

    _, answers = jax.lax.scan(derivatives, copies, blocks)
    return {name: values.reshape(-1)[:count] for name, values in answers.items()}
