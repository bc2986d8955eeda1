"""Second order: the hand-written product of the loss's Hessian with a vector against autodiff's.

H v is the derivative of the gradient along v. The rules carry it beside every value, forward and backward
(Pearlmutter 1994); autodiff takes `jax.jvp` of `jax.grad`. One random v shows every element of each leaf's
rows of H at once, and misses an error only if v is orthogonal to what is wrong, with probability zero.
"""

import math
from typing import Any

import jax
import numpy as np
from flax import nnx

from bpresearch import autodiff, chainrule
from bpresearch.functional import split
from bpresearch.verify.comparison import MATHEMATICS, compare
from bpresearch.verify.engines import leaf_names
from bpresearch.verify.precision import compiled, jittered, random_like
from bpresearch.verify.report import Row


def second_order_rows(model: nnx.Module, loss_fn: Any, x: Any, y: Any, seed: int) -> list[Row]:
    """A row for each parameter: `hvp` against autodiff for a random vector.

    Undecided, with the reason, where a layer has no second-order rule.

    Args:
        model: in float64, as `x` and `y` are; JAX's 64-bit mode is on.
        loss_fn: as `verify.model` takes it.
        seed: of the vector.
    """
    graphdef, params, state = split(model)
    vector = random_like(params, jax.random.key(seed))
    gradient = autodiff.gradient(graphdef, loss_fn)

    def expected(params, x):
        return jax.jvp(lambda p: gradient(p, state, (x, y))[1], (params,), (vector,))[1]

    @compiled
    def program(params, x):
        eps = float(np.finfo("float64").eps)
        return jax.vmap(expected)(*jittered((params, x), (eps, eps)))

    names = leaf_names((params, ()))
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    try:
        found = jax.tree.leaves(chainrule.hvp(model, loss_fn, x, y, vector))
    except chainrule.NoRuleError as error:  # of a primitive, too
        reason = str(error).splitlines()[0]
        return [
            Row(name, shape, "second order", math.nan, math.nan, None, reason)
            for name, shape in zip(names, shapes, strict=True)
        ]
    lanes = [np.asarray(leaf) for leaf in jax.tree.leaves(program(params, x))]
    largest = max((float(np.max(np.abs(lane[0]), initial=0.0)) for lane in lanes), default=0.0)
    rows = []
    for name, value, lane in zip(names, found, lanes, strict=True):
        noise = float(np.max(np.abs(lane[1:] - lane[0]), initial=0.0))
        result = compare(np.asarray(value), lane[0], noise, largest)
        passed = result.error <= MATHEMATICS
        detail = "Hessian times a random vector"
        rows.append(
            Row(name, value.shape, "second order", result.error, MATHEMATICS, passed, detail, result.worst)
        )
    return rows
