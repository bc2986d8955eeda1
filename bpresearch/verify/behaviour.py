"""How a gradient program behaves around one point: things that the right values at that point do not show.

* `half the batch`: a rule that knows the batch size by heart is right for that size only;
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

from bpresearch.verify.comparison import MATHEMATICS
from bpresearch.verify.contract import difference
from bpresearch.verify.precision import compiled, is_floating
from bpresearch.verify.report import Row

Gradient = Callable[..., tuple[Any, Any]]


def behaviour_rows(
    by_rules: Gradient, by_autodiff: Gradient, params: Any, state: Any, x: Any, y: Any
) -> list[Row]:
    """Rows of the first three kinds for two gradients `(params, state, x, y) -> leaves, loss`."""
    examples = jax.tree.leaves(x)[0].shape[0] if jnp.ndim(jax.tree.leaves(x)[0]) else 0

    def first_half(tree):
        def cut(leaf):
            return leaf[: examples // 2] if jnp.shape(leaf)[:1] == (examples,) else leaf

        return jax.tree.map(cut, tree)

    def pair(leaf):
        return jnp.stack([leaf, 0.9 * leaf if is_floating(leaf) else leaf])

    def program(params, state, x, y):
        def gradient(params):
            return by_rules(params, state, x, y)[0]

        pairs = jax.tree.map(pair, params)
        answers = {"vmap": (jax.vmap(gradient)(pairs), jax.lax.map(gradient, pairs))}
        if examples > 1:
            half = (params, state, first_half(x), first_half(y))
            answers["half the batch"] = (by_rules(*half)[0], by_autodiff(*half)[0])
        return answers

    run = compiled(program)
    first, second = (jax.device_get(run(params, state, x, y)) for _ in range(2))
    rows = []
    for name, (found, expected) in first.items():
        error = difference(found, expected)
        rows.append(Row(name, (), "behaviour", error, MATHEMATICS, error <= MATHEMATICS, COMPLAINTS[name]))
    apart = difference(jax.tree.leaves(second), jax.tree.leaves(first))
    rows.append(Row("deterministic", (), "behaviour", apart, 0.0, apart == 0, COMPLAINTS["deterministic"]))
    return rows


COMPLAINTS = {
    "vmap": "the gradients of two models side by side against one by one",
    "half the batch": "against autodiff on the first half of the examples",
    "deterministic": "two evaluations against each other",
}


def finite_row(value: float, gradient: Sequence[np.ndarray], where: str) -> Row:
    """Whether the gradient is finite if the loss is; `where` is the layer in which it first is not."""
    broken = bool(np.isfinite(value)) and not all(np.isfinite(leaf).all() for leaf in gradient)
    detail = f"the loss is finite and its derivative is not, from {where or 'an unknown layer'} on"
    return Row("finite", (), "behaviour", float(broken), 0.0, not broken, detail if broken else "")
