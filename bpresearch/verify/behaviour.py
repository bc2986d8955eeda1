"""How a gradient program behaves around one point: things that the right values at that point do not show.

* `half the batch`: a rule that knows the batch size by heart is right for that size only;
* `additive`: the gradient of the whole batch is the mean of those of its examples, each alone, unless a
  layer mixes examples (as batch normalisation does) or draws other random numbers for them;
* `vmap`: sweeps differentiate many models side by side, so rules must not depend on being alone;
* `deterministic`: the same bits twice;
* `finite`: no NaN or infinity where the loss is finite, as when `jnp.where` selects between a value and the
  square root of a negative number: the derivative of what was not selected is zero times infinity.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bpresearch.verify.calls import Plant
from bpresearch.verify.comparison import MATHEMATICS
from bpresearch.verify.contract import difference
from bpresearch.verify.engines import by_autodiff, by_rules
from bpresearch.verify.precision import is_floating
from bpresearch.verify.report import Row

COMPLAINTS = {
    "vmap": "the gradients of two models side by side against one by one",
    "half the batch": "against autodiff on the first half of the examples",
    "additive": "the gradient of the batch against the mean of those of its examples",
    "deterministic": "two evaluations against each other",
}
MIXED = "Its examples depend on each other, so that its gradient is not the mean of theirs."


def number_of_examples(x: Any, y: Any) -> int:
    """The length of the first axis that every leaf of inputs and targets has, or 0."""
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((x, y))}
    return lengths.pop()[0] if len(lengths) == 1 and () not in lengths else 0


def behaviour_program(
    graphdef: nnx.GraphDef, loss_fn: Any, plant_of: Callable[[jax.Array], Plant]
) -> Callable[..., Any]:
    """`(fault, params, state, x, y) -> {name: (found, expected)}`; for `mixing` both are autodiff's."""
    expected_gradient = by_autodiff(graphdef, loss_fn)

    def program(fault, params, state, x, y):
        gradient = by_rules(graphdef, loss_fn, plant_of(fault))
        pairs = jax.tree.map(
            lambda leaf: jnp.stack([leaf, 0.9 * leaf if is_floating(leaf) else leaf]), (params, x)
        )

        def of_pair(pair):
            return gradient(pair[0], state, pair[1], y)[0]

        answers = {"vmap": (jax.vmap(lambda *pair: of_pair(pair))(*pairs), jax.lax.map(of_pair, pairs))}
        examples = number_of_examples(x, y)
        if examples > 1:
            half = jax.tree.map(lambda leaf: leaf[: examples // 2], (x, y))
            answers["half the batch"] = (
                gradient(params, state, *half)[0],
                expected_gradient(params, state, *half)[0],
            )
            singles = jax.tree.map(lambda leaf: leaf[:, None], (x, y))
            of_parameters = len([leaf for leaf in jax.tree.leaves(params) if is_floating(leaf)])

            def mean(gradient):
                each = jax.vmap(lambda x, y: gradient(params, state, x, y)[0][:of_parameters])(*singles)
                return [jnp.mean(leaf, axis=0) for leaf in each]

            whole = gradient(params, state, x, y)[0][:of_parameters]
            autodiff = expected_gradient(params, state, x, y)[0][:of_parameters]
            answers |= {"additive": (whole, mean(gradient)), "mixing": (autodiff, mean(expected_gradient))}
        return answers

    return program


def behaviour_rows(program: Callable[..., Any], *arguments: Any) -> tuple[list[Row], list[str]]:
    """A row for each of the first four kinds, and a note if the batch cannot be taken apart."""
    first, second = (jax.device_get(program(*arguments)) for _ in range(2))
    notes = []
    if "mixing" in first and difference(*first.pop("mixing")) > MATHEMATICS:
        del first["additive"]
        notes.append(MIXED)
    rows = []
    for name, (found, expected) in first.items():
        error = difference(found, expected)
        rows.append(Row(name, (), "behaviour", error, MATHEMATICS, error <= MATHEMATICS, COMPLAINTS[name]))
    same = {name: second[name] for name in first}
    apart = difference(jax.tree.leaves(same), jax.tree.leaves(first))
    rows.append(Row("deterministic", (), "behaviour", apart, 0.0, apart == 0, COMPLAINTS["deterministic"]))
    return rows, notes


def finite_row(value: float, gradient: Sequence[np.ndarray], where: str) -> Row:
    """Whether the gradient is finite if the loss is; `where` is the layer in which it first is not."""
    broken = bool(np.isfinite(value)) and not all(np.isfinite(leaf).all() for leaf in gradient)
    detail = f"the loss is finite and its derivative is not, from {where or 'an unknown layer'} on"
    return Row("finite", (), "behaviour", float(broken), 0.0, not broken, detail if broken else "")
