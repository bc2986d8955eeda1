"""Second order: the hand-written product of the loss's Hessian with a vector against autodiff's.

H v is the derivative of the gradient along v. The rules carry it beside every value, forward and backward
(Pearlmutter 1994); autodiff differentiates <gradient, v> once more. One random v shows every element of each
leaf's rows of H at once, and misses an error only if v is orthogonal to what is wrong, with probability zero.
It is a question like any other: the derivative in question is H v, and <gradient, v> is differentiated.
"""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from bpresearch import chainrule
from bpresearch.chainrule.second_order import hessian_vector_product
from bpresearch.functional import Loss, split
from bpresearch.verify.answers import answers
from bpresearch.verify.directions import choose_directions
from bpresearch.verify.engines import by_autodiff, floating_leaves, leaf_names
from bpresearch.verify.precision import is_floating, random_like
from bpresearch.verify.question import Derivative, Question
from bpresearch.verify.report import Row
from bpresearch.verify.verdict import AGREEMENT


def second_order_rows(model: nnx.Module, loss_fn: Loss, x: PyTree, y: PyTree, seed: int) -> list[Row]:
    """A row for each parameter: `hvp` against autodiff for a random vector.

    Undecided, with the reason, where something has no tangent rule.

    Args:
        model: in float64, as `x` and `y` are; JAX's 64-bit mode is on.
        loss_fn: as `verify.model` takes it.
        seed: of the vector.
    """
    graphdef, params, state = split(model)
    leaves, structure = jax.tree.flatten(params)
    point = [leaf for leaf in leaves if is_floating(leaf)]
    names = leaf_names((params, ()))
    of_rules, of_autodiff = hessian_vector_product(graphdef, loss_fn), by_autodiff(graphdef, loss_fn)

    def whole(some):
        remaining = iter(some)
        return structure.unflatten([next(remaining) if is_floating(leaf) else leaf for leaf in leaves])

    def along(point, others):
        v, state, x, y = others
        gradient = of_autodiff(whole(point), state, x, y)[0]
        return [sum(jnp.sum(g * u) for g, u in zip(gradient, v, strict=False))]

    def product(point, others, y_bar):
        v, state, x, y = others
        tangent = of_rules(whole(point), state, (x, y), whole(v))
        return [y_bar[0] * leaf for leaf in floating_leaves(params, tangent)]

    others = random_like(point, seed), state, x, y
    try:
        jax.eval_shape(product, point, others, [jnp.ones(())])
    except chainrule.NoRuleError as error:  # of a primitive, too
        reason = str(error).splitlines()[0]
        return [
            Row(name, leaf.shape, "second order", math.nan, AGREEMENT, None, reason)
            for name, leaf in zip(names, point, strict=True)
        ]
    derivative = Derivative(along, product, along, along)
    directions = choose_directions([leaf.size for leaf in point], 0.5, 1)
    eps = float(np.finfo(np.float64).eps)
    question = Question(derivative, point, others, names, [[jnp.ones(())]], directions, seed, eps)
    rows = answers(question, ("autodiff",)).rows
    detail = "Hessian times a random vector"
    return [
        replace(row, oracle="second order", detail=", ".join(filter(None, (detail, row.detail))))
        for row in rows
        if row.oracle == "autodiff"
    ]
