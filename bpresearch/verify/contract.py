"""What any backward pass owes, whatever its values: checked first and reported apart.

* `structure`: one cotangent for each argument, with that argument's tree, shape and dtype;
* `forward`: differentiating a function does not change what it returns;
* `zero cotangent`: it is answered by zero;
* `linear`: J^T (2 u - 3 v) = 2 J^T u - 3 J^T v;
* `unused outputs`: if only one of several outputs is used, the others count as zero cotangents;
* `finite`: no NaN or infinity where the function itself is finite (the trap of `jnp.where`);
* `without jit`, `vmap`: the same values outside of `jax.jit` and inside of `jax.vmap`;
* `deterministic`: the same bits twice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpresearch.verify.comparison import tolerance_in
from bpresearch.verify.precision import compiled
from bpresearch.verify.report import Row

Apply = Callable[[list[Array]], list[Array]]


def contract_rows(apply: Apply, point: list[Array], y_bars: list[list[Array]], eps: float) -> list[Row]:
    """One row for each clause of the contract; only `structure` if that is broken already."""
    u, v = y_bars

    def backward(point, *cotangents):
        outputs, vjp = jax.vjp(apply, point)
        return outputs, [vjp(y_bar)[0] for y_bar in cotangents]

    def program(point, u, v):
        mixed = [2 * a - 3 * b for a, b in zip(u, v, strict=True)]
        outputs, answers = backward(point, u, v, mixed, [jnp.zeros_like(a) for a in u])
        return apply(point), outputs, answers

    try:
        compiled_program = compiled(program)
        answer = compiled_program(point, u, v)
    except Exception as error:
        return [_row("structure", 1.0, 0.0, first_line(error))]
    direct, outputs, (gradient, other, mixed, zero) = jax.device_get(answer)
    expected = [2 * a - 3 * b for a, b in zip(gradient, other, strict=True)]
    tolerance = tolerance_in(eps)
    rows = [
        _row("structure", 0.0, 0.0),
        _row("forward", difference(outputs, direct), tolerance, "fwd returns other values than the function"),
        _row("zero cotangent", float(max(_largest(g) for g in zero)), 0.0, "bwd of zero is not zero"),
        _row("linear", difference(mixed, expected), tolerance, "bwd is not linear in its cotangent"),
    ]
    if len(outputs) > 1:
        rows.append(_unused_outputs(apply, point, u, gradient, tolerance))
    broken = all(np.isfinite(o).all() for o in outputs) and not all(np.isfinite(g).all() for g in gradient)
    rows.append(_row("finite", float(broken), 0.0, "the function is finite and its derivative is not"))
    again = jax.device_get(compiled_program(point, u, v))[2][0]
    same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(gradient, again, strict=True))
    rows.append(_row("deterministic", difference(again, gradient), 0.0, "two evaluations differ", same))
    rows.append(_attempt("without jit", lambda: backward(point, u)[1][0], gradient, tolerance))
    rows.append(_vmap(apply, backward, point, u, tolerance))
    return rows


def _unused_outputs(apply: Apply, point: list[Array], u: list[Array], gradient: Any, tolerance: float) -> Row:
    """The gradient put together from one output at a time, the others being used by nobody."""

    def one_by_one():
        parts = []
        for index, y_bar in enumerate(u):
            _, vjp = jax.vjp(lambda point, index=index: apply(point)[index], point)
            parts.append(vjp(y_bar)[0])
        return [sum(leaves) for leaves in zip(*parts, strict=True)]

    return _attempt("unused outputs", compiled(one_by_one), gradient, tolerance)


def _vmap(apply: Apply, backward: Any, point: list[Array], u: list[Array], tolerance: float) -> Row:
    """Both the point and nine tenths of it, side by side and one by one."""
    pair = [jnp.stack([leaf, (0.9 * leaf).astype(leaf.dtype)]) for leaf in point]

    def gradient(point):
        return backward(point, u)[1][0]

    try:
        jax.eval_shape(jax.vmap(apply), pair)
    except Exception as error:
        detail = f"the function itself has no vmap: {first_line(error)}"
        return Row("vmap", (), "contract", float("nan"), tolerance, None, detail)
    expected = jax.device_get(compiled(lambda pair: jax.lax.map(gradient, pair))(pair))
    return _attempt("vmap", lambda: compiled(jax.vmap(gradient))(pair), expected, tolerance)


def _attempt(name: str, compute: Callable[[], Any], expected: Any, tolerance: float) -> Row:
    try:
        found = jax.device_get(compute())
    except Exception as error:
        return _row(name, 1.0, 0.0, first_line(error))
    return _row(name, difference(found, expected), tolerance, "other values than under jit alone")


def _row(name: str, error: float, tolerance: float, complaint: str = "", passed: bool | None = None) -> Row:
    passed = bool(error <= tolerance) if passed is None else passed
    return Row(name, (), "contract", error, tolerance, passed, "" if passed else complaint)


def difference(found: Any, expected: Any) -> float:
    """The largest difference between leaves relative to the leaf, or to 1e-5 of the largest leaf.

    A leaf whose derivative is zero in exact arithmetic, such as that of a bias in front of a normalization,
    is rounding of about 1e-16 of the largest leaf: an error below 1e-10, then, as in any other leaf.
    """
    largest = max((_largest(e) for e in expected), default=0.0)
    worst = 0.0
    for f, e in zip(found, expected, strict=True):
        if not np.array_equal(f, e, equal_nan=True):
            apart = _largest(np.asarray(f, np.float64) - np.asarray(e, np.float64))
            scale = max(_largest(e), 1e-5 * largest)
            worst = max(worst, apart / scale if scale > 0 else np.inf)
    return float(worst)


def _largest(leaf: Any) -> float:
    values = np.abs(np.asarray(leaf, np.float64))
    return float(np.nan_to_num(np.max(values, initial=0.0), nan=np.inf))


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]
