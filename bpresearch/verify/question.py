"""What a verification asks about: a derivative in question, an independent twin, and where.

A *derivative* is a set of functions that can be compiled: what is differentiated, the derivative in question
and the twin that JAX differentiates by itself. A *question* is a derivative at a point. Oracles
(`bpresearch.verify.oracles`) answer questions with estimates; `bpresearch.verify.verdict` decides.

A point is a list of real floating-point arrays. `others` is whatever else the functions take: integer arrays,
the state of a model, the number of a planted fault.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from bpresearch.verify.directions import Directions
from bpresearch.verify.precision import compiled

Point = list[Array]
Outputs = list[Array]


@dataclass(eq=False)
class Derivative:
    """A derivative in question, as functions that can be compiled; the programs made of them are kept.

    Attributes:
        apply: `(point, others) -> outputs`, what is differentiated.
        gradient: `(point, others, y_bar) -> list like point`, the derivative in question: y_bar times the
            Jacobian of `apply`.
        twin: `(point, others) -> outputs`, the same values from operations that JAX differentiates by itself;
            None where there is nothing independent.
        values: `(point, others) -> outputs`, for oracles that look at values alone.
        programs: what was compiled, by name.
    """

    apply: Callable[[Point, PyTree], Outputs]
    gradient: Callable[[Point, PyTree, Outputs], Point]
    twin: Callable[[Point, PyTree], Outputs] | None
    values: Callable[[Point, PyTree], Outputs]
    programs: dict[Hashable, Any] = field(default_factory=dict)

    def program(
        self, name: Hashable, make: Callable[[], Callable[..., PyTree]], fused: bool = True
    ) -> Callable[..., PyTree]:
        """The compiled program of that name, made once."""
        if (name, fused) not in self.programs:
            self.programs[name, fused] = compiled(make(), fused=fused)
        return self.programs[name, fused]

    def independent(self) -> Callable[[Point, PyTree], Outputs]:
        """The twin.

        Raises:
            NotAskedError: there is none.
        """
        if self.twin is None:
            raise NotAskedError("no custom rule inside, so autodiff is what is being checked")
        return self.twin

    def expected(self, point: Point, others: PyTree, y_bar: Outputs) -> Point:
        """The derivative of the twin, by JAX.

        Raises:
            NotAskedError: there is no twin.
        """
        twin = self.independent()
        outputs, vjp = jax.vjp(lambda point: twin(point, others), point)
        # At a complex point, where a complex step is taken, outputs are complex.
        return vjp([bar.astype(y.dtype) for bar, y in zip(y_bar, outputs, strict=True)])[0]

    def scalar(self, point: Point, others: PyTree, y_bar: Outputs) -> Array:
        """<y_bar, values>, whose gradient is what a backward pass answers to y_bar."""
        outputs = self.values(point, others)
        # Which are finite is held constant: what becomes infinite a step away has no part in a difference.
        return product(y_bar, outputs, jax.lax.stop_gradient(outputs))


def product(y_bar: Outputs, values: list[Array], outputs: Outputs) -> Array:
    """<y_bar, values>, without the outputs that are not finite: the -inf of what is masked is constant.

    A single number that is not finite, a loss say, is said as it is.
    """
    triples = zip(y_bar, values, outputs, strict=True)
    pairs = ((bar, jnp.where(jnp.isfinite(y), value, 0) if y.ndim else value) for bar, value, y in triples)
    terms = [jnp.sum(bar * value) for bar, value in pairs]
    return sum(terms[1:], terms[0])


@dataclass(frozen=True)
class Question:
    """A derivative at a point.

    Attributes:
        derivative: what is asked about.
        point, others: where.
        names: of the leaves of the point.
        y_bars: cotangents of the outputs: two of them, or one.
        directions: along which oracles look that see one direction at a time.
        seed: of random directions.
        eps: machine precision of the computations.
        found: the derivative in question for the first of `y_bars`, on the host.
        value: of the scalar.
        tolerance: a relative error that passes whatever its cause; 0 for none.
        complex: which leaves came as complex arrays.
        outputs: names of the outputs, where they have one.
    """

    derivative: Derivative
    point: Point
    others: PyTree
    names: Sequence[str]
    y_bars: Sequence[Outputs]
    directions: Directions
    seed: int
    eps: float
    found: Sequence[np.ndarray] = ()
    value: float = 0.0
    tolerance: float = 0.0
    complex: Sequence[bool] = ()
    outputs: Sequence[str] = ()

    @property
    def arguments(self) -> tuple[PyTree, ...]:
        """What the programs of oracles take."""
        return self.point, self.others, list(self.y_bars), np.uint32(self.seed % 2**32)

    @property
    def sizes(self) -> list[int]:
        """How many elements each leaf has."""
        return [leaf.size for leaf in self.point]

    def with_answer(self, found: Sequence[np.ndarray], value: float) -> "Question":
        """The same question, with what the derivative in question says."""
        return replace(self, found=found, value=value)

    def shape(self, leaf: int) -> tuple[int, ...]:
        """The shape of a leaf."""
        return tuple(self.point[leaf].shape)


class NotAskedError(Exception):
    """An oracle cannot be asked about this function; the message says why."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:300]
