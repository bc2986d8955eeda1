"""What any backward pass owes, whatever its values.

* `structure`: one cotangent for each argument, with that argument's tree, shape and dtype;
* `forward`: differentiating a function does not change what it returns;
* `zero cotangent`: it is answered by zero;
* `linear`: J^T (2 u - 3 v) = 2 J^T u - 3 J^T v;
* `unused outputs`: if only one of several outputs is used, the others count as zero cotangents;
* `finite`: no NaN or infinity where the function itself is finite (the trap of `jnp.where`);
* `vmap`: the same values inside of `jax.vmap`;
* `deterministic`: the same bits twice;
* `without jit`, only if "eager" or adversarial points are asked for, since each of the operations is
  compiled: the same values outside of `jax.jit`.

A clause is a program that computes two things that should be equal, and is decided as any other oracle.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpresearch.verify.oracles import Answer, Measures
from bpresearch.verify.oracles.autodiff import largest
from bpresearch.verify.question import Derivative, NotAskedError, Question, first_line
from bpresearch.verify.report import Row
from bpresearch.verify.verdict import Estimates

CONTRACT = "contract"

Pairs = Callable[[Derivative, PyTree, PyTree, PyTree], tuple[list[PyTree], list[PyTree]]]
"""`(derivative, point, others, y_bars) -> found, values`, which should be equal."""


@dataclass(frozen=True)
class Clause:
    """A clause of the contract, as an oracle."""

    clause: str
    complaint: str
    pairs: Pairs
    oracle: str = CONTRACT
    of_outputs: bool = False

    @property
    def name(self) -> str:
        """Distinguishes its program from those of the other clauses."""
        return f"{self.oracle}: {self.clause}"

    def program(self, question: Question) -> Callable[..., Answer]:
        """The two sides."""
        derivative = question.derivative

        def program(point, others, y_bars, seed):
            actual, values = self.pairs(derivative, point, others, y_bars)
            return {"found": actual, "values": values}

        return program

    def estimates(self, question: Question, answer: Answer, measures: Measures) -> Iterator[Estimates]:
        """One for each array; they become one row."""
        for index, (actual, values) in enumerate(zip(answer["found"], answer["values"], strict=True)):
            actual, values = np.asarray(actual), np.asarray(values)
            named = self.of_outputs and len(question.outputs) == len(answer["found"]) > 1
            where = f", at {question.outputs[index]}" if named else ""
            yield Estimates(
                self.oracle, self.clause, (), actual, values,
                scale=largest(values), measure=measures.of(index),
                detail=self.complaint + where,
            )  # fmt: skip


def _forward(derivative, point, others, y_bars):
    outputs, _ = jax.vjp(lambda point: derivative.apply(point, others), point)
    return outputs, derivative.apply(point, others)


def _zero(derivative, point, others, y_bars):
    zeros = [jnp.zeros_like(bar) for bar in y_bars[0]]
    gradient = derivative.gradient(point, others, zeros)
    usual = derivative.gradient(point, others, y_bars[0])  # of what is not finite, 0 times is not zero either
    gradient = [jnp.where(jnp.isfinite(u), x, 0) for x, u in zip(gradient, usual, strict=True)]
    return gradient, [jnp.zeros_like(x) for x in gradient]


def _linear(derivative, point, others, y_bars):
    u, v = y_bars
    mixed = [2 * a - 3 * b for a, b in zip(u, v, strict=True)]
    of_u, of_v, of_mixed = (derivative.gradient(point, others, bar) for bar in (u, v, mixed))
    return of_mixed, [2 * a - 3 * b for a, b in zip(of_u, of_v, strict=True)]


def _unused(derivative, point, others, y_bars):
    outputs = jax.eval_shape(lambda point: derivative.apply(point, others), point)
    if len(outputs) < 2:
        raise NotAskedError("it has one output")
    parts = []
    for index, bar in enumerate(y_bars[0]):
        _, vjp = jax.vjp(lambda point, index=index: derivative.apply(point, others)[index], point)
        parts.append(vjp(bar)[0])
    return [sum(leaves[1:], leaves[0]) for leaves in zip(*parts, strict=True)], derivative.gradient(
        point, others, y_bars[0]
    )


def _vmap(derivative, point, others, y_bars):
    pair = [jnp.stack([leaf, (0.9 * leaf).astype(leaf.dtype)]) for leaf in point]

    def gradient(point):
        return derivative.gradient(point, others, y_bars[0])

    try:
        jax.eval_shape(jax.vmap(lambda point: derivative.apply(point, others)), pair)
    except Exception as error:
        raise NotAskedError(f"the function itself has no vmap: {first_line(error)}") from error
    one_by_one = [gradient([leaf[i] for leaf in pair]) for i in range(2)]
    return jax.vmap(gradient)(pair), [jnp.stack(leaves) for leaves in zip(*one_by_one, strict=True)]


FORWARD = Clause("forward", "fwd returns other values than the function", _forward, of_outputs=True)
ZERO = Clause("zero cotangent", "bwd of zero is not zero", _zero)
LINEAR = Clause("linear", "bwd is not linear in its cotangent", _linear)
UNUSED = Clause("unused outputs", "other values where only one output is used", _unused)
VMAP = Clause("vmap", "other values side by side than one after the other", _vmap)
CLAUSES = (FORWARD, ZERO, LINEAR, UNUSED, VMAP)


def structure_row(error: str = "") -> Row:
    """Whether cotangents have the trees, shapes and dtypes of the arguments; `error` says what is wrong."""
    return Row("structure", (), CONTRACT, float(bool(error)), 0.0, not error, error)


def finite_row(outputs: Sequence[np.ndarray], gradient: Sequence[np.ndarray], names: Sequence[str]) -> Row:
    """No NaN or infinity where the function is finite; says in which leaf, and where."""
    finite = all(np.isfinite(y).all() for y in outputs)
    broken = [(name, g) for name, g in zip(names, gradient, strict=True) if not np.isfinite(g).all()]
    if not finite or not broken:
        return Row("finite", (), CONTRACT, 0.0, 0.0, True)
    name, leaf = broken[0]
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(leaf))[0])
    where = f"{name}[{', '.join(map(str, index))}]" if index else name
    detail = f"the function is finite and its derivative is {leaf[index]} at {where}"
    return Row("finite", (), CONTRACT, 1.0, 0.0, False, detail)


def deterministic_row(first: PyTree, second: PyTree) -> Row:
    """The same bits twice."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    apart = max((_apart(a, b) for a, b in pairs), default=0.0)
    detail = "" if apart == 0 else "two evaluations differ"
    return Row("deterministic", (), CONTRACT, apart, 0.0, apart == 0, detail)


def _apart(first: PyTree, second: PyTree) -> float:
    a, b = np.asarray(first), np.asarray(second)
    if np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"):
        return 0.0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        a, b = a.astype(np.float64), b.astype(np.float64)
        return float(np.nan_to_num(np.max(np.abs(a - b)) / max(np.max(np.abs(a)), 1e-300), nan=np.inf))
