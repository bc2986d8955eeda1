"""What any backward pass owes, whatever its values: checked first and reported apart.

* `structure`: one cotangent for each argument, with that argument's tree, shape and dtype;
* `forward`: differentiating a function does not change what it returns;
* `zero cotangent`: it is answered by zero;
* `linear`: J^T (2 u - 3 v) = 2 J^T u - 3 J^T v;
* `unused outputs`: if only one of several outputs is used, the others count as zero cotangents;
* `finite`: no NaN or infinity where the function itself is finite (the trap of `jnp.where`);
* `without jit`, `vmap`: the same values outside of `jax.jit` and inside of `jax.vmap`;
* `deterministic`: the same bits twice.

Values that may differ by rounding are compared with regard to how far rounding of the arguments moves them
(see `comparison.compare`): a derivative that is zero in exact arithmetic is nothing but that.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpresearch.verify.comparison import largest_error, tolerance_in
from bpresearch.verify.precision import compiled, jittered
from bpresearch.verify.report import Row

Apply = Callable[[list[Array]], list[Array]]


def contract_rows(apply: Apply, point: list[Array], y_bars: list[list[Array]], eps: float) -> list[Row]:
    """One row for each clause of the contract; only `structure` if that is broken already."""
    of = _Clauses(apply, point, y_bars, eps)
    zeros = [jnp.zeros_like(bar) for bar in of.u]

    def program(point, *cotangents):
        return apply(point), of.backward(point, *cotangents)

    try:
        program = compiled(program)
        answer = program(point, of.u, of.v, of.mixed, zeros)
    except Exception as error:
        return [_row("structure", 1.0, 0.0, first_line(error))]
    direct, (outputs, (gradient, other, mixed, zero)) = jax.device_get(answer)
    expected = [2 * a - 3 * b for a, b in zip(gradient, other, strict=True)]
    again = jax.device_get(program(point, of.u, of.v, of.mixed, zeros))[1][1][0]
    broken = all(np.isfinite(o).all() for o in outputs) and not all(np.isfinite(g).all() for g in gradient)
    rows = [
        _row("structure", 0.0, 0.0),
        of.equal("forward", outputs, direct, 0, "fwd returns other values than the function"),
        _row("zero cotangent", float(max(map(_largest, zero))), 0.0, "bwd of zero is not zero"),
        of.equal("linear", mixed, expected, 2, "bwd is not linear in its cotangent"),
        _row("finite", float(broken), 0.0, "the function is finite and its derivative is not"),
        _row("deterministic", largest_error(again, gradient), 0.0, "two evaluations differ"),
        of.attempt("without jit", lambda: of.backward(point, of.u)[1][0], gradient),
        of.side_by_side(),
    ]
    if len(outputs) > 1:
        rows.append(of.attempt("unused outputs", compiled(of.one_by_one), gradient))
    return rows


class _Clauses:
    """What several clauses ask of one backward pass, and how far rounding moves its answers."""

    def __init__(self, apply: Apply, point: list[Array], y_bars: list[list[Array]], eps: float):
        self.apply, self.point, self.eps, self.tolerance = apply, point, eps, tolerance_in(eps)
        self.u, self.v = y_bars
        self.mixed = [2 * a - 3 * b for a, b in zip(self.u, self.v, strict=True)]

    def backward(self, point: list[Array], *cotangents: list[Array]) -> Any:
        """What the function returns, and the gradient for each of the cotangents."""
        outputs, vjp = jax.vjp(self.apply, point)
        return outputs, [vjp(y_bar)[0] for y_bar in cotangents]

    @cached_property
    def noise(self) -> Any:
        """Of the outputs and of the gradients for u and 2 u - 3 v. Seldom needed, so measured when it is."""

        def lane(point):
            outputs, gradients = self.backward(point, self.u, self.mixed)
            return outputs, *gradients

        program = compiled(lambda points: jax.lax.map(lane, points))
        lanes = jax.device_get(program(jittered(self.point, (self.eps, self.eps))))
        return jax.tree.map(lambda lane: np.max(np.abs(lane[1:] - lane[:1]), initial=0.0), lanes)

    def equal(self, name: str, found: Any, expected: Any, noise: int, complaint: str) -> Row:
        """Whether two lists are equal but for rounding, whose size is that number of `noise`."""
        error = largest_error(found, expected, 0.0, self.tolerance)
        if error > self.tolerance:
            error = largest_error(found, expected, list(self.noise[noise]), self.tolerance)
        return _row(name, error, self.tolerance, complaint)

    def attempt(self, name: str, compute: Callable[[], Any], expected: Any) -> Row:
        """Whether something else than the compiled program gives the same gradient."""
        try:
            found = jax.device_get(compute())
        except Exception as error:
            return _row(name, 1.0, self.tolerance, first_line(error))
        return self.equal(name, found, expected, 1, "other values than under jit alone")

    def one_by_one(self) -> list[Array]:
        """The gradient put together from one output at a time, the others being used by nobody."""
        parts = []
        for index, y_bar in enumerate(self.u):
            _, vjp = jax.vjp(lambda point, index=index: self.apply(point)[index], self.point)
            parts.append(vjp(y_bar)[0])
        return [sum(leaves) for leaves in zip(*parts, strict=True)]

    def side_by_side(self) -> Row:
        """Both the point and nine tenths of it, under `jax.vmap` and one after the other."""
        pair = [jnp.stack([leaf, (0.9 * leaf).astype(leaf.dtype)]) for leaf in self.point]

        def gradient(point):
            return self.backward(point, self.u)[1][0]

        try:
            jax.eval_shape(jax.vmap(self.apply), pair)
        except Exception as error:
            detail = f"the function itself has no vmap: {first_line(error)}"
            return Row("vmap", (), "contract", float("nan"), self.tolerance, None, detail)
        expected = jax.device_get(compiled(lambda pair: jax.lax.map(gradient, pair))(pair))
        return self.attempt("vmap", lambda: compiled(jax.vmap(gradient))(pair), expected)


def _row(name: str, error: float, tolerance: float, complaint: str = "") -> Row:
    passed = bool(error <= tolerance)
    return Row(name, (), "contract", error, tolerance, passed, "" if passed else complaint)


def _largest(leaf: Any) -> float:
    values = np.abs(np.asarray(leaf, np.float64))
    return float(np.nan_to_num(np.max(values, initial=0.0), nan=np.inf))


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]
