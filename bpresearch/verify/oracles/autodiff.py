"""Autodiff: JAX's reverse mode on a twin that has no hand-written rule in it. Exact to rounding."""

from collections.abc import Iterator
from functools import partial

import jax.numpy as jnp
import numpy as np

from bpresearch.verify.hints import hint, is_conjugate
from bpresearch.verify.oracles import Answer, Measures
from bpresearch.verify.question import Question
from bpresearch.verify.verdict import Estimates

name = "autodiff"


def program(question: Question):
    """The derivative in question and the twin's, for each of the cotangents."""
    derivative, count = question.derivative, len(question.point)

    def pairs(point, others, y_bars, seed):
        gradients = [derivative.gradient(point, others, y_bar) for y_bar in y_bars]
        values = [derivative.expected(point, others, y_bar) for y_bar in y_bars]
        return {
            "found": [bars[leaf] for leaf in range(count) for bars in gradients],
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
            gradient, values = np.asarray(answer["found"][index]), np.asarray(answer["values"][index])
            yield Estimates(
                name, path, question.shape(leaf), gradient, values,
                scale=largest(values),
                measure=measures.of(index),
                elements=True,
                floor=floor,
                eps=question.eps,
                hint=partial(_hint, question, answer, leaf, number),
            )  # fmt: skip


def _hint(question: Question, sides: Answer, leaf: int, number: int) -> str:
    """What the error of a leaf looks like."""
    count = len(question.y_bars)
    pairs = [(sides["found"][leaf * count + i], sides["values"][leaf * count + i]) for i in range(count)]
    gradient, values = map(np.asarray, pairs[number])
    if count > 1 and gradient.any() and np.allclose(pairs[0][0], pairs[1][0], 1e-9, 1e-12):
        return "it is the same for every cotangent: y_bar has no part in it"
    if leaf < len(question.complex) and question.complex[leaf] and is_conjugate(gradient, values):
        return "it is the complex conjugate of the right one"
    return hint(gradient, values, examples(question)) or _first_for_all(question, gradient, leaf, number)


def _first_for_all(question: Question, gradient: np.ndarray, leaf: int, number: int) -> str:
    """Whether the cotangent of the first example was used for all of them."""
    y_bar = question.y_bars[number]
    if not all(bar.ndim and bar.shape[0] > 1 for bar in y_bar):
        return ""
    first = [jnp.broadcast_to(bar[:1], bar.shape) for bar in y_bar]
    program = question.derivative.program("expected", lambda: question.derivative.expected)
    other = np.asarray(program(question.point, question.others, first)[leaf])
    same = np.allclose(gradient, other, 1e-6, 1e-9 * largest(other))
    return "the cotangent of the first example was used for all" if same else ""


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
