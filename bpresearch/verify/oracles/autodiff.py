"""Autodiff: JAX's reverse mode on a twin that has no hand-written rule in it. Exact to rounding."""

from collections.abc import Iterator

import numpy as np

from bpresearch.verify.hints import hint
from bpresearch.verify.oracles import Answer, Measures
from bpresearch.verify.question import Question
from bpresearch.verify.verdict import Estimates

name = "autodiff"


def program(question: Question):
    """The derivative in question and the twin's, for each of the cotangents."""
    derivative, count = question.derivative, len(question.point)

    def pairs(point, others, y_bars, seed):
        found = [derivative.gradient(point, others, y_bar) for y_bar in y_bars]
        values = [derivative.expected(point, others, y_bar) for y_bar in y_bars]
        return {
            "found": [bars[leaf] for leaf in range(count) for bars in found],
            "values": [bars[leaf] for leaf in range(count) for bars in values],
        }

    return pairs


def estimates(question: Question, answer: Answer, measures: Measures) -> Iterator[Estimates]:
    """One for each leaf and cotangent; errors are relative to the largest element of the leaf."""
    count = len(question.y_bars)
    floor = 1e3 * question.eps * max(map(largest, map(np.asarray, answer["values"])), default=0.0)
    for leaf, path in enumerate(question.names):
        for number in range(count):
            index = leaf * count + number
            found, values = np.asarray(answer["found"][index]), np.asarray(answer["values"][index])
            yield Estimates(
                name, path, question.shape(leaf), found, values,
                scale=largest(values),
                measure=measures.of(index),
                elements=True,
                floor=floor,
                hint=lambda f=found, v=values: hint(f, v, examples(question)),
            )  # fmt: skip


def largest(values: np.ndarray) -> float:
    """The largest finite magnitude."""
    return float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))


def examples(question: Question) -> int | None:
    """The length of the first axes of outputs, or else of arguments, if it is one: perhaps a batch."""
    for leaves in (question.y_bars[0], [leaf for leaf in question.point if leaf.ndim > 1]):
        lengths = {leaf.shape[0] for leaf in leaves if leaf.ndim}
        if len(lengths) == 1:
            return lengths.pop()
    return None
