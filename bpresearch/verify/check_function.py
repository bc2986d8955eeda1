"""Verification of any JAX function whose derivative was written by hand."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpresearch.verify.adjoint import adjoint_identity
from bpresearch.verify.comparison import compare, tolerance_in
from bpresearch.verify.complex_step import complex_step
from bpresearch.verify.contract import contract_rows, first_line
from bpresearch.verify.differences import Verdict, judge, measure
from bpresearch.verify.directions import MISSED, Directions, choose_directions, leaf_scales
from bpresearch.verify.finite_differences import STEPS
from bpresearch.verify.forward_mode import forward_mode
from bpresearch.verify.hints import hint
from bpresearch.verify.kinks import BETWEEN, excuse
from bpresearch.verify.plain import HeldInLoopError, has_custom_rule, without_custom_rules
from bpresearch.verify.precision import compiled, jittered, random_like
from bpresearch.verify.problem import Problem
from bpresearch.verify.report import Report, Row
from bpresearch.verify.taylor import ENOUGH, observed_order

FUNCTION_ORACLES = (
    "contract",
    "autodiff",
    "forward mode",
    "adjoint",
    "complex step",
    "finite differences",
    "taylor",
)


class NotAskedError(Exception):
    """An oracle cannot be asked about this function; the message says why."""


def function(
    f: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    order: int = 1,
    oracles: Sequence[str] = FUNCTION_ORACLES,
    every_coordinate_up_to: int = 64,
    missed: float = MISSED,
    seed: int = 0,
) -> Report:
    """Verifies the derivative of `f` at `args`: of a `custom_vjp`, a `custom_jvp`, a kernel, or any other.

    What `jax.vjp(f, *args)` gives for random cotangents is compared with

    * `autodiff` of `reference`, or without one of `f` itself with its custom rules left out;
    * `forward mode`: `jax.jvp` of the same;
    * `adjoint`: <y_bar, J v> = <J^T y_bar, v> for other cotangents;
    * `complex step` of `f`, where it is analytic;
    * `finite differences` of `f`;
    * `taylor`: the order at which the error of the linear approximation vanishes.

    All but the first take one direction at a time: every coordinate of small leaves, and of others so many
    random ones that a wrong element is missed with probability `missed` at most (see
    `bpresearch.verify.directions`); the rows say which. An oracle that cannot resolve the answer decides
    nothing, and one that does not apply is not asked, which a note says.

    Before that, and apart from values, the `contract` of a backward pass is checked: see
    `bpresearch.verify.contract`. Everything is computed in float64 if `f` and its backward pass take it,
    otherwise in the precision of `args`, with correspondingly less resolution.

    Args:
        f: any function of pytrees. Floating-point and complex arrays and Python floats are differentiated;
            integers, booleans, None, strings and functions among `args` are passed on as they are.
        args: where to check it.
        reference: a plain function that computes the same as `f`.
        order: 2 verifies the derivative of the backward pass as well.
        oracles: which of the above to ask.
        every_coordinate_up_to: leaves of at most so many elements are looked at in each of them.
        missed: the probability of missing a wrong element of a larger leaf that is borne.
        seed: of cotangents and directions.

    Raises:
        ValueError: unknown oracle, or nothing in `args` or among the outputs can be differentiated.

    >>> @jax.custom_vjp
    ... def square(x):
    ...     return x * x
    >>> square.defvjp(lambda x: (x * x, x), lambda x, y_bar: (x * y_bar,))
    >>> report = bp.verify.function(square, 3.0)
    >>> report.passed
    False
    >>> report.rows[-1].path, report.hints
    ('x', ('x: every element is the right one divided by 2',))
    """
    for oracle in oracles:
        if oracle not in FUNCTION_ORACLES:
            raise ValueError(f"oracle {oracle!r} is not one of {', '.join(FUNCTION_ORACLES)}")
    if order not in (1, 2):
        raise ValueError(f"order {order} is not 1 or 2")
    with jax.enable_x64(True):
        problem = Problem(f, args)
        apply, other = problem.apply, problem.bind(reference) if reference else None
        if other is None and has_custom_rule(apply, problem.point):
            other = without_custom_rules(apply)
        sizes = [leaf.size for leaf in problem.point]
        directions = choose_directions(sizes, missed, every_coordinate_up_to)
        check = _Check(apply, other, problem, oracles, directions, seed)
        rows, notes = check.rows()
        if order == 2 and all(row.passed is not False for row in rows):
            more, _ = check.of_its_gradient().rows()
            rows += [replace(row, path=f"{row.path} (second)") for row in more]
    hints = [f"{row.path}: {row.hint}" for row in rows if row.hint]
    return Report(tuple(rows), (), tuple(notes), tuple(dict.fromkeys(hints)))


class _Check:
    """One function of a list of arrays, its independent twin where there is one, and the oracles asked.

    `values` is the function for the oracles that look at values.
    """

    def __init__(
        self, apply: Any, other: Any, problem: Problem, oracles: Any, directions: Directions, seed: int,
        values: Any = None,
    ):  # fmt: skip
        self.apply, self.other, self.problem = apply, other, problem
        self.values = values or apply
        self.oracles, self.directions, self.seed = oracles, directions, seed
        self.point, self.names, self.eps = problem.point, problem.names, problem.eps
        outputs = jax.eval_shape(apply, self.point)
        self.y_bars = [random_like(outputs, key) for key in jax.random.split(jax.random.key(seed))]
        self.excused: dict[int, str] = {}  # leaves that may differ from autodiff, and why

    def of_its_gradient(self) -> "_Check":
        """The same for the backward pass, as a function of the point, at a fixed cotangent.

        Its values are taken from the twin: `stop_gradient` in `apply` is part of the function, in a backward
        pass made by hand it is a mistake, and no excuse for one.
        """

        def gradient_of(apply):
            return lambda point: jax.vjp(apply, point)[1](self.y_bars[0])[0]

        other = gradient_of(self.other) if self.other else None
        return _Check(
            gradient_of(self.apply), other, self.problem, self.oracles, self.directions, self.seed + 1, other
        )

    def rows(self) -> tuple[list[Row], list[str]]:
        """Every row, and a note for each oracle that could not be asked."""
        rows = (
            contract_rows(self.apply, self.point, self.y_bars, self.eps) if "contract" in self.oracles else []
        )
        if rows and not rows[0].passed:
            return rows, ["The backward pass gives no gradient at all, so its values were not checked."]
        gradients = compiled(lambda point: [jax.vjp(self.apply, point)[1](u)[0] for u in self.y_bars])
        self.found = jax.device_get(gradients(self.point))
        self.value = float(compiled(self.scalar(self.apply))(self.point))
        point = jax.device_get(self.point)
        self.scales = leaf_scales(point, self.found[0], self.value, self.directions)
        notes = []
        for oracle, ask in (
            ("autodiff", self._autodiff),
            ("forward mode", self._forward_mode),
            ("adjoint", self._adjoint),
            ("complex step", self._complex_step),
            ("finite differences", self._finite_differences),
        ):
            also_taylor = oracle == "finite differences" and "taylor" in self.oracles
            if oracle in self.oracles or also_taylor:
                try:
                    rows += ask()
                except NotAskedError as error:
                    notes.append(f"Not asked: {oracle} ({error}).")
        return rows, notes

    def scalar(self, apply: Any) -> Any:
        """<y_bar, apply(point)>, whose gradient is what the backward pass answers to y_bar."""

        def scalar(point):
            pairs = zip(self.y_bars[0], apply(point), strict=True)
            return sum(jnp.sum(y_bar * output) for y_bar, output in pairs)

        return scalar

    def _twin(self) -> Any:
        if self.other is None:
            raise NotAskedError("no custom rule inside, so autodiff is what is being checked")
        return self.other

    def _ask(self, program: Any, *args: Any) -> Any:
        """Runs an oracle; where JAX cannot transform the function as it wants, it is not asked."""
        try:
            ready = compiled(program).lower(*args).compile()
        except Exception as error:
            raise NotAskedError(first_line(error)) from error
        return jax.device_get(ready(*args))

    def _autodiff(self) -> list[Row]:
        other = self._twin()

        def expected(point):
            return [jax.vjp(other, point)[1](u)[0] for u in self.y_bars]

        stacked = jittered(self.point, (self.eps,) * 2)
        lanes = self._ask(lambda stacked: jax.lax.map(expected, stacked), stacked)
        tolerance, rows = tolerance_in(self.eps), []
        largest = max((np.max(np.abs(lane[0]), initial=0.0) for lane in lanes[0]), default=0.0)
        for leaf, name in enumerate(self.names):
            results = []
            for found, lane in zip(self.found, lanes, strict=True):
                right = np.asarray(lane[leaf][0])
                noise = float(np.max(np.abs(lane[leaf][1:] - right), initial=0.0))
                results.append(compare(found[leaf], right, noise, float(largest), tolerance))
            worst = max(results, key=lambda result: result.error)
            passed: bool | None = worst.error <= tolerance
            detail, said = "", ""
            if not passed:
                right = np.asarray(lanes[0][leaf][0])
                said = hint(self.found[0][leaf], right, _batch(self.point))
                if reason := self._excuse(leaf, right, tolerance):
                    passed, said, detail = None, "", reason
            shape = self.point[leaf].shape
            rows.append(
                Row(name, shape, "autodiff", worst.error, tolerance, passed, detail, worst.worst, said)
            )
        return rows

    def _excuse(self, leaf: int, right: np.ndarray, tolerance: float) -> str:
        """Why a leaf may differ from autodiff."""
        scalar = self.scalar(self.values)

        def of_leaf(changed):
            return scalar([*self.point[:leaf], changed[0], *self.point[leaf + 1 :]])

        found, point = [self.found[0][leaf]], [self.point[leaf]]
        reason = excuse(of_leaf, point, found, [right], tolerance)
        if not reason:
            return ""
        if reason == BETWEEN:
            self.excused[leaf] = "at a kink"
            return "other than autodiff at a kink only, and between both sides"
        self.excused[leaf] = "autodiff is wrong here"
        return "autodiff is wrong at some elements: finite differences side with this derivative"

    def _directional(self, oracle: str, answer: dict[str, np.ndarray]) -> list[Row]:
        """Rows from an oracle that is exact to rounding, or says that it is of no use."""
        rows = []
        for leaf, (name, scale) in enumerate(zip(self.names, self.scales, strict=True)):
            mine = self.directions.of(leaf)
            apart = np.abs(answer["estimate"][mine] - answer["predicted"][mine])
            error = float(np.max(np.nan_to_num(apart, nan=np.inf), initial=0.0)) / scale
            uncertainty = float(np.max(answer["uncertainty"][mine], initial=0.0)) / scale
            tolerance = tolerance_in(self.eps) + 10 * uncertainty
            passed: bool | None = bool(error <= tolerance)
            detail = self.directions.describe(leaf)
            if np.isinf(uncertainty):
                passed, detail = None, "not analytic here"
            elif leaf in self.excused and not passed:
                passed, detail = None, self.excused[leaf]
            rows.append(Row(name, self.point[leaf].shape, oracle, error, tolerance, passed, detail))
        return rows

    def _forward_mode(self) -> list[Row]:
        scalar = self.scalar(self._twin())

        def ask(point, found):
            return forward_mode(scalar, point, found, self.directions, self.seed)

        return self._directional("forward mode", self._ask(ask, self.point, self.found[0]))

    def _adjoint(self) -> list[Row]:
        twin = self._twin()

        def backward(point, y_bar):
            return jax.vjp(self.apply, point)[1](y_bar)[0]

        def ask(point):
            return adjoint_identity(twin, backward, point, self.directions, self.seed)

        return self._directional("adjoint", self._ask(ask, self.point))

    def _complex_step(self) -> list[Row]:
        if not self.problem.analytic_arguments or self.eps > np.finfo(np.float64).eps:
            raise NotAskedError("it takes real arguments in float64")
        scalar = self.scalar(without_custom_rules(self.values))

        def ask(point, found):
            return complex_step(scalar, point, found, self.directions, self.seed)

        rows = self._directional("complex step", self._ask(ask, self.point, self.found[0]))
        if all(row.passed is None for row in rows):
            raise NotAskedError("the function is not analytic")
        return rows

    def _finite_differences(self) -> list[Row]:
        sizes = [leaf.size for leaf in self.point]
        scalar = self.scalar(self.values)
        try:
            answer = measure(scalar, self.point, self.found[0], self.directions, self.seed, together=False)
        except HeldInLoopError as error:
            raise NotAskedError(str(error)) from error
        norms = [float(np.linalg.norm(g)) for g in self.found[0]]
        verdicts = judge(sizes, norms, self.directions, answer, self.value, eps=self.eps)
        rows = []
        if "finite differences" in self.oracles:
            for name, leaf, v in zip(self.names, self.point, verdicts, strict=True):
                rows.append(
                    Row(name, leaf.shape, "finite differences", v.error, v.tolerance, v.passed, v.detail)
                )
        if "taylor" in self.oracles and self.eps <= np.finfo(np.float64).eps:  # too coarse in others
            rows += self._taylor(answer, verdicts)
        return rows

    def _taylor(self, answer: dict[str, np.ndarray], verdicts: list[Verdict]) -> list[Row]:
        rows = []
        for leaf, (name, verdict) in enumerate(zip(self.names, verdicts, strict=True)):
            orders = []
            for k in np.flatnonzero(self.directions.of(leaf)):
                steps = answer["scale"][k] * np.asarray(STEPS)
                seen = (answer["above"][k], answer["here"][k], steps, answer["predicted"][k])
                orders.append(observed_order(*seen, self.scales[leaf], self.eps))
            decided = [(o, p) for o, p in orders if p is not None]
            if not decided or "kink" in verdict.detail:
                detail, error, passed = "no order can be seen", float("nan"), None
            else:
                lowest, passed = min(decided, key=lambda pair: pair[0])
                error, detail = max(0.0, 2 - lowest), f"order {lowest:.2f}"
            shape = self.point[leaf].shape
            rows.append(Row(name, shape, "taylor", error, 2 - ENOUGH, passed, detail))
        return rows


def _batch(point: list[Any]) -> int | None:
    """The length that the first axes of the arguments have in common, if any: perhaps a batch."""
    lengths = {leaf.shape[0] for leaf in point if leaf.ndim > 1}
    return lengths.pop() if len(lengths) == 1 else None
