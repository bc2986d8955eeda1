"""How a gradient program behaves around one point: things that the right values at that point do not show.

* `half the batch`: a rule that knows the batch size by heart is right for that size only;
* `additive`: the gradient of the whole batch is the mean of those of its examples, each alone, unless a
  layer mixes examples (as batch normalisation does) or draws other random numbers for them;
* `vmap`: sweeps differentiate many models side by side, so rules must not depend on being alone;
* `deterministic`: the same bits twice;
* `finite`: no NaN or infinity where the loss is finite, as when `jnp.where` selects between a value and the
  square root of a negative number: the derivative of what was not selected is zero times infinity.

All but the last are compared with regard to how far rounding moves the gradient: see `comparison.compare`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bpresearch.verify.comparison import MATHEMATICS, largest_error, magnitude
from bpresearch.verify.engines import by_autodiff, by_rules
from bpresearch.verify.equations import Plant
from bpresearch.verify.precision import is_floating, jittered, random_like
from bpresearch.verify.report import Row

HALF = "half the batch"
COMPLAINTS = {
    "vmap": "the gradients of two models side by side against one by one",
    HALF: "against autodiff on the first half of the examples",
    "additive": "the gradient of the batch against the mean of those of its examples",
    "deterministic": "two evaluations against each other",
}
MIXED = "Its examples depend on each other, so that its gradient is not the mean of theirs."


def number_of_examples(x: Any, y: Any) -> int:
    """The length of the first axis that every leaf of inputs and targets has, or 0."""
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((x, y))}
    return lengths.pop()[0] if len(lengths) == 1 and () not in lengths else 0


def largest(leaf: jax.Array) -> jax.Array:
    """The largest finite magnitude in an array, 0 if it has none."""
    return jnp.max(jnp.abs(leaf), initial=0.0, where=jnp.isfinite(leaf))


def behaviour_program(
    graphdef: nnx.GraphDef, loss_fn: Any, plant_of: Callable[[jax.Array], Plant]
) -> Callable[..., Any]:
    """`(fault, params, state, x, y, whole) -> {name: (found, expected, noise)}`, `mixing` autodiff's own.

    `whole` is the gradient of the whole batch in question, autodiff's, and how far rounding moves it.
    """
    expected_gradient = by_autodiff(graphdef, loss_fn)
    eps = float(np.finfo("float64").eps)

    def program(fault, params, state, x, y, whole):
        found, expected, noise = whole
        gradient = by_rules(graphdef, loss_fn, plant_of(fault))
        pairs = jax.tree.map(
            lambda leaf: jnp.stack([leaf, 0.9 * leaf if is_floating(leaf) else leaf]), (params, x)
        )

        def of_pair(pair):
            return gradient(pair[0], state, pair[1], y)[0]

        side_by_side, one_by_one = jax.vmap(lambda *pair: of_pair(pair))(*pairs), jax.lax.map(of_pair, pairs)
        answers = {"vmap": (side_by_side, one_by_one, noise)}
        examples = number_of_examples(x, y)
        if examples > 1 and _takes_parts(expected_gradient, params, state, x, y):
            x_half, y_half = jax.tree.map(lambda leaf: leaf[: examples // 2], (x, y))
            found_of_half = gradient(params, state, x_half, y_half)[0]
            stacked = jittered((params, x_half), (eps, eps))
            lanes = jax.vmap(lambda params, x: expected_gradient(params, state, x, y_half)[0])(*stacked)
            # Where the half's own derivative is zero but for rounding, jitter may move nothing: it is known
            # no better than the whole batch's, and than to a hundred roundings of what it is elsewhere.
            elsewhere = expected_gradient(params, state, random_like(x_half, jax.random.key(0)), y_half)[0]
            bounds = [
                jnp.stack([n, largest(f - e), 100 * eps * largest(o)]).max()
                for n, f, e, o in zip(noise, found, expected, elsewhere, strict=True)
            ]
            of_half = [
                jnp.max(jnp.abs(lane[1:] - lane[:1]), initial=bound)
                for lane, bound in zip(lanes, bounds, strict=True)
            ]
            answers["elsewhere"] = elsewhere
            answers[HALF] = (found_of_half, [lane[0] for lane in lanes], of_half)
            singles = jax.tree.map(lambda leaf: leaf[:, None], (x, y))
            count = len([leaf for leaf in jax.tree.leaves(params) if is_floating(leaf)])

            def mean(gradient):
                each = jax.vmap(lambda x, y: gradient(params, state, x, y)[0][:count])(*singles)
                return [jnp.mean(leaf, axis=0) for leaf in each]

            answers["additive"] = (found[:count], mean(gradient), noise[:count])
            answers["mixing"] = (expected[:count], mean(expected_gradient), noise[:count])
        return answers

    return program


def _takes_parts(gradient: Callable[..., Any], params: Any, state: Any, x: Any, y: Any) -> bool:
    """Whether the model and the loss take half a batch, and one example; not all do whose axes agree."""
    try:
        for some in (lambda leaf: leaf[: leaf.shape[0] // 2], lambda leaf: leaf[:1]):
            jax.eval_shape(gradient, params, state, *jax.tree.map(some, (x, y)))
    except Exception:  # any reason: it is the model's own
        return False
    return True


def behaviour_rows(program: Callable[..., Any], *arguments: Any) -> tuple[list[Row], list[str]]:
    """A row for each of the first four kinds, and a note if the batch cannot be taken apart."""
    first, second = (jax.device_get(program(*arguments)) for _ in range(2))
    notes = []
    if "mixing" in first and largest_error(*first.pop("mixing")) > MATHEMATICS:
        del first["additive"]
        notes.append(MIXED)
    rows = []
    whole = max(map(magnitude, [*first["vmap"][1], *first.pop("elsewhere", [])]), default=0.0)
    for name, (found, expected, noise) in first.items():
        error = largest_error(found, expected, noise, largest=whole)
        rows.append(Row(name, (), "behaviour", error, MATHEMATICS, error <= MATHEMATICS, COMPLAINTS[name]))
    apart = largest_error({name: second[name] for name in first}, first)
    rows.append(Row("deterministic", (), "behaviour", apart, 0.0, apart == 0, COMPLAINTS["deterministic"]))
    return rows, notes


def finite_row(value: float, gradient: Sequence[np.ndarray], where: str) -> Row:
    """Whether the gradient is finite if the loss is; `where` is the layer in which it first is not."""
    broken = bool(np.isfinite(value)) and not all(np.isfinite(leaf).all() for leaf in gradient)
    detail = f"the loss is finite and its derivative is not, from {where or 'an unknown layer'} on"
    return Row("finite", (), "behaviour", float(broken), 0.0, not broken, detail if broken else "")
