"""Forward mode: the derivative along a direction, pushed through the primitive operations by `jax.jvp`.

    D f(t)[d] = <grad f(t), d>

It starts from the arguments where the backward pass starts from the result, and transposes nothing, so it
shares no code with a reverse rule, hand-written or JAX's own. Exact to rounding.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bpresearch.verify.oracles import Answer, Body, Measures
from bpresearch.verify.question import Question, product
from bpresearch.verify.verdict import Estimates

name = "forward mode"


def body(question: Question) -> Body:
    """Both derivatives of the scalar in a direction."""
    derivative, twin = question.derivative, question.derivative.independent()

    def at(point, others, y_bars):
        gradient = derivative.gradient(point, others, y_bars[0])

        def derivatives(d, leaf, number):
            outputs, dots = jax.jvp(lambda point: twin(point, others), (point,), (d,))
            return {"found": inner(gradient, d), "values": product(y_bars[0], dots, outputs)}

        return derivatives

    return at


def estimates(question: Question, answer: Answer, measures: Measures) -> Iterator[Estimates]:
    """One for each leaf."""
    return along_directions(name, question, answer, measures)


def inner(gradient: list[Array], d: list[Array]) -> Float[Array, ""]:
    """<gradient, d>"""
    terms = [jnp.sum(g * e) for g, e in zip(gradient, d, strict=True)]
    return sum(terms[1:], terms[0])


def along_directions(
    oracle: str, question: Question, answer: Answer, measures: Measures, uncertainty: np.ndarray | float = 0.0
) -> Iterator[Estimates]:
    """An estimate for each leaf from an oracle that sees one direction at a time and is exact to rounding.

    Errors are relative to the size of the leaf's derivative: its norm for random directions, its root mean
    square for coordinates.
    """
    (predicted,), (values,) = answer["found"], answer["values"]
    for leaf, path in enumerate(question.names):
        mine = question.directions.of(leaf)

        def measure(rounds, mine=mine):
            sizes, freedom = measures.of(0)(rounds)
            return sizes[mine], freedom

        norm = np.linalg.norm(np.nan_to_num(question.found[leaf], posinf=0.0, neginf=0.0))
        if question.directions.in_every_coordinate(leaf):
            norm = norm / np.sqrt(max(question.found[leaf].size, 1))
        yield Estimates(
            oracle, path, question.shape(leaf), predicted[mine], values[mine],
            scale=max(float(norm), _typical(values[mine])),
            uncertainty=np.broadcast_to(uncertainty, predicted.shape)[mine],
            measure=measure,
            detail=question.directions.describe(leaf),
        )  # fmt: skip


def _typical(values: np.ndarray) -> float:
    """The root mean square of what is finite."""
    finite = values[np.isfinite(values)]
    most = float(np.max(np.abs(finite), initial=0.0))
    return most * float(np.sqrt(np.mean((finite / most) ** 2))) if most else 0.0
