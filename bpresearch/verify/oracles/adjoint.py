"""The adjoint identity: a backward pass is the transpose of the forward-mode derivative.

    <y_bar, J v> = <J^T y_bar, v>      for every direction v and every cotangent y_bar.

J v is computed forward (`jax.jvp`) from the function's primitive operations, so hand-written reverse rules
have no part in it. Each direction v comes with a cotangent y_bar of its own: what is checked is the linear
map, not one gradient. Both sides are exact to rounding.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from bpresearch.verify.oracles import Answer, Body, Measures
from bpresearch.verify.oracles.forward_mode import along_directions, inner
from bpresearch.verify.precision import random_signs
from bpresearch.verify.question import Question, product
from bpresearch.verify.verdict import Estimates

name = "adjoint"


def body(question: Question) -> Body:
    """Both sides of the identity in a direction, with a new random y_bar for each."""
    derivative, twin = question.derivative, question.derivative.independent()

    def at(point, others, y_bars):
        def sides(v, leaf, number):
            outputs, dots = jax.jvp(lambda point: twin(point, others), (point,), (v,))
            seeds = [number + jnp.uint32(1_000_003 * (i + 1)) for i in range(len(outputs))]
            y_bar = [random_signs(o.shape, s).astype(o.dtype) for o, s in zip(outputs, seeds, strict=True)]
            predicted = inner(derivative.gradient(point, others, y_bar), v)
            return {"found": predicted, "values": product(y_bar, dots, outputs)}

        return sides

    return at


def estimates(question: Question, answer: Answer, measures: Measures) -> Iterator[Estimates]:
    """One for each leaf."""
    return along_directions(name, question, answer, measures)
