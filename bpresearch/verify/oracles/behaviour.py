"""How a gradient program behaves around one point: things that the right values at that point do not show.

* `half the batch`: a rule that knows the batch size by heart is right for that size only;
* `additive`: the gradient of the whole batch is the mean of those of its examples, each alone, unless a
  layer mixes examples (as batch normalisation does) or draws other random numbers for them;
* `vmap`: sweeps differentiate many models side by side, so rules must not depend on being alone;
* `deterministic`: the same bits twice;
* `finite`: no NaN or infinity where the loss is finite, as when `jnp.where` selects between a value and the
  square root of a negative number: the derivative of what was not selected is zero times infinity.

The first three are pairs that should be equal, and are decided as any other oracle.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpresearch.verify.oracles.contract import Clause
from bpresearch.verify.precision import is_floating
from bpresearch.verify.question import NotAskedError
from bpresearch.verify.report import Row

BEHAVIOUR = "behaviour"
HALF, ADDITIVE, MIXING = "half the batch", "additive", "mixing"
MIXED = "Its examples depend on each other, so that its gradient is not the mean of theirs."

Gradient = Callable[..., PyTree]
"""`(params, state, x, y) -> leaves of the gradient`."""

TakeApart = Callable[[PyTree, PyTree], tuple[PyTree, PyTree, PyTree, PyTree, Gradient, Gradient]]
"""`(point, others) -> params, state, x, y, gradient in question, gradient by autodiff`."""


def number_of_examples(x: PyTree, y: PyTree) -> int:
    """The length of the first axis that every leaf of inputs and targets has, or 0."""
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((x, y))}
    return lengths.pop()[0] if len(lengths) == 1 and () not in lengths else 0


def clauses(take_apart: TakeApart) -> tuple[Clause, ...]:
    """The clauses of a model's gradient; `mixing` is autodiff's own, and no clause of the report.

    Args:
        take_apart: gives parameters, state and data, and both gradients as functions of them.
    """

    def vmap(derivative, point, others, y_bars):
        params, state, x, y, gradient, _ = take_apart(point, others)
        pairs = jax.tree.map(
            lambda leaf: jnp.stack([leaf, 0.9 * leaf if is_floating(leaf) else leaf]), (params, x)
        )

        def of(pair):
            return gradient(pair[0], state, pair[1], y)

        return jax.vmap(lambda *pair: of(pair))(*pairs), jax.lax.map(of, pairs)

    def half(derivative, point, others, y_bars):
        params, state, x, y, gradient, by_autodiff = take_apart(point, others)
        count = _examples(x, y)
        some = jax.tree.map(lambda leaf: leaf[: count // 2], (x, y))
        return gradient(params, state, *some), by_autodiff(params, state, *some)

    def mean_of_singles(which):
        def pairs(derivative, point, others, y_bars):
            params, state, x, y, *gradients = take_apart(point, others)
            _examples(x, y)
            singles = jax.tree.map(lambda leaf: leaf[:, None], (x, y))
            count = len([leaf for leaf in jax.tree.leaves(params) if is_floating(leaf)])
            gradient = gradients[which]
            each = jax.vmap(lambda x, y: gradient(params, state, x, y)[:count])(*singles)
            return gradient(params, state, x, y)[:count], [jnp.mean(leaf, axis=0) for leaf in each]

        return pairs

    return (
        Clause("vmap", "the gradients of two models side by side against one by one", vmap, BEHAVIOUR),
        Clause(HALF, "against autodiff on the first half of the examples", half, BEHAVIOUR),
        Clause(ADDITIVE, "the gradient of the batch against the mean of those of its examples",
               mean_of_singles(0), BEHAVIOUR),
        Clause(MIXING, "", mean_of_singles(1), BEHAVIOUR),
    )  # fmt: skip


def _examples(x: PyTree, y: PyTree) -> int:
    count = number_of_examples(x, y)
    if count < 2:
        raise NotAskedError("it has no examples to take apart")
    return count


def without_mixing(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows without those that examples which depend on each other make meaningless, and a note of it."""
    mixing = next((row for row in rows if row.oracle == BEHAVIOUR and row.path == MIXING), None)
    rows = [row for row in rows if row is not mixing]
    if mixing is None or mixing.passed is True:
        return rows, []
    return [row for row in rows if (row.oracle, row.path) != (BEHAVIOUR, ADDITIVE)], [MIXED]


def undecided_at_kinks(rows: list[Row]) -> list[Row]:
    """Half the batch is compared with autodiff, which says nothing where both rightly differ at a kink."""
    if not any(row.oracle == "kinks" and row.passed for row in rows):
        return rows
    why = "at a kink another derivative than autodiff's is right"
    is_half = [row.oracle == BEHAVIOUR and row.path == HALF and row.passed is False for row in rows]
    return [
        replace(row, passed=None, detail=why) if half else row
        for row, half in zip(rows, is_half, strict=True)
    ]


def finite_row(value: float, gradient: list[np.ndarray], where: str) -> Row:
    """Whether the gradient is finite if the loss is; `where` is the layer in which it first is not."""
    broken = bool(np.isfinite(value)) and not all(np.isfinite(leaf).all() for leaf in gradient)
    detail = f"the loss is finite and its derivative is not, from {where or 'an unknown layer'} on"
    return Row("finite", (), BEHAVIOUR, float(broken), 0.0, not broken, detail if broken else "")
