"""The programs that verify a model, and what is made of their answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from bpresearch.chainrule import Equation, Rule
from bpresearch.chainrule.engine import several
from bpresearch.chainrule.notes import collecting
from bpresearch.chainrule.primitives import LAYER
from bpresearch.functional import Loss, TrainingLoss, as_inputs, merge, split
from bpresearch.verify.behaviour import behaviour_program, behaviour_rows, finite_row
from bpresearch.verify.blame import (
    AUTODIFF_IS_WRONG,
    NOT_DIFFERENTIABLE,
    Blame,
    first_not_finite,
    judge_rules,
    suspicious,
)
from bpresearch.verify.comparison import MATHEMATICS, SAFETY, compare, magnitude
from bpresearch.verify.differences import Verdict, judge, measure
from bpresearch.verify.directions import MISSED, choose_directions
from bpresearch.verify.engines import by_autodiff, by_rules, leaf_names, mean_loss
from bpresearch.verify.equations import Label, Plant, with_backward
from bpresearch.verify.plain import HeldInLoopError, loses_precision
from bpresearch.verify.precision import cast, cast_model, compiled, is_floating, jittered
from bpresearch.verify.report import Report, Row
from bpresearch.verify.rounding import LARGEST_RATIO, rounding_ratio

ROUNDS = "the model itself rounds to less than float64, and differences see its steps"
SMALLEST_FAULT = 1e-6
"""What the rules are claimed to be checked to; a smaller difference of a rule alone is undecided."""

ORACLES = ("autodiff", "finite differences", "rounding", "rule", "behaviour")


def one_of(plants: Sequence[Plant], fault: jax.Array) -> Plant:
    """The plant with number `fault`, as a value of the program; a number below zero plants nothing."""

    def plant(e: Equation, rule: Any) -> Any:
        planted = {number: plant(e, rule) for number, plant in enumerate(plants)}
        planted = {number: wrong for number, wrong in planted.items() if wrong is not rule}
        if not planted:
            return rule
        rules = [rule, *planted.values()]

        def index() -> jax.Array:
            """Which of the few that touch this equation: 0 is its own rule."""
            return jnp.sum(jnp.stack([jnp.where(fault == n, i, 0) for i, n in enumerate(planted, 1)]))

        is_layer = e.primitive.name == LAYER
        backward = (_switched_layer if is_layer else _switched)(rules, index)
        return with_backward(rule, backward, _switched_forward(rules, index) if is_layer else None)

    return plant


def _switched(rules: list[Any], index: Callable[[], jax.Array]) -> Callable[..., Any]:
    def backward(e, *bars):
        def answer(rule):
            found = several(rule.backward(e, *bars))
            return [
                jnp.zeros_like(x) if bar is None else bar.astype(x.dtype)
                for x, bar, wanted in zip(e.ins, found, e.wanted, strict=True)
                if wanted
            ]

        def planted(rule):
            with collecting():  # what is noted of equations inside of this one is noted outside of the switch
                return answer(rule)

        right = answer(rules[0])
        wrong = [lambda rule=rule: planted(rule) for rule in rules[1:]]
        found = iter(lax.switch(index(), [lambda: right, *wrong]))
        return tuple(next(found) if wanted else None for wanted in e.wanted)

    return backward


def _switched_layer(rules: list[Rule], index: Callable[[], jax.Array]) -> Callable[..., Any]:
    def backward(layer, residuals, y_bar, **options):
        right = jax.eval_shape(lambda: rules[0].backward(layer, residuals, y_bar, **options))

        def answer(rule):
            found = rule.backward(layer, residuals, y_bar, **options)
            return jax.tree.map(
                lambda shape, leaf: jnp.broadcast_to(leaf, shape.shape).astype(shape.dtype), right, found
            )

        return lax.switch(index(), [lambda rule=rule: answer(rule) for rule in rules])

    return backward


def _switched_forward(rules: list[Rule], index: Callable[[], jax.Array]) -> Callable[..., Any]:
    """Most faults leave `forward` alone; then there is nothing to switch."""
    different = {rule.forward: None for rule in rules}
    if len(different) == 1:
        return rules[0].forward
    which = jnp.asarray([list(different).index(rule.forward) for rule in rules])

    def forward(layer, *inputs, **options):
        # All are computed, in front of the switch, for a layer may change its state as it computes.
        answers = [f(layer, *inputs, **options) for f in different]
        return lax.switch(which[index()], [lambda answer=answer: answer for answer in answers])

    return forward


class Verification:
    """Everything that `verify.model` asks, as compiled programs of parameters, data and the fault planted.

    Made by `bpresearch.verify.prepare`. Called with a model, inputs and targets, it gives the report.
    """

    def __init__(
        self,
        loss_fn: Loss | TrainingLoss,
        low: nnx.GraphDef,
        high: nnx.GraphDef,
        dtype: str,
        oracles: tuple[str, ...],
        plants: tuple[Plant, ...],
    ):
        self.loss_fn, self.low, self.high = loss_fn, low, high
        self.dtype, self.oracles, self.plants = dtype, oracles, plants
        self._blames: dict[frozenset[Label], tuple[Any, Blame]] = {}

    def _plant(self, fault: jax.Array) -> Plant:
        if len(self.plants) == 1:
            return self.plants[0]
        return one_of(self.plants, fault) if self.plants else lambda e, rule: rule

    @cached_property
    def gradients(self) -> Any:
        """`(fault, params, state, x, y) -> found, expected, noise, noise_norms, loss, largest`.

        The first four are lists of leaves, the second to fourth of them empty where no oracle asks for them;
        `largest` is the largest magnitude of the model's outputs.
        """
        eps64, eps = float(np.finfo("float64").eps), float(jnp.finfo(self.dtype).eps) / 2

        def program(fault, params, state, x, y):
            found, value = by_rules(self.high, self.loss_fn, self._plant(fault))(params, state, x, y)
            largest = self._largest_output(params, state, x, value)
            if not {"autodiff", "rounding", "behaviour"} & set(self.oracles):
                return found, [], [], [], value, largest
            stacked = jittered((params, x), (eps64, eps64, eps, eps))
            gradient = by_autodiff(self.high, self.loss_fn)
            lanes = jax.vmap(lambda params, x: gradient(params, state, x, y)[0])(*stacked)
            change = [jnp.abs(lane[1:] - lane[:1]) for lane in lanes]
            noise = [jnp.max(c[:2], initial=0.0) for c in change]
            noise_norms = [jnp.max(jnp.sqrt(jnp.sum(c[2:] ** 2, range(1, c.ndim)))) for c in change]
            return found, [lane[0] for lane in lanes], noise, noise_norms, value, largest

        return compiled(program)

    def _largest_output(self, params: Any, state: Any, x: Any, value: jax.Array) -> jax.Array:
        """The largest magnitude of the model's outputs; of the loss, if this is a function of the model."""
        if isinstance(self.loss_fn, TrainingLoss):
            return jnp.abs(value)
        outputs = jax.tree.leaves(merge(self.high, params, state)(*as_inputs(x)))
        sizes = [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in outputs if is_floating(leaf)]
        return jnp.stack([jnp.abs(value), *sizes]).max()

    @cached_property
    def _in_working_precision(self) -> Any:
        def program(fault, params, state, x, y):
            found, _ = by_rules(self.low, self.loss_fn, self._plant(fault))(params, state, x, y)
            gradient = by_autodiff(self.low, self.loss_fn)
            stacked = jittered((params, x), (float(jnp.finfo(self.dtype).eps),) * 2)
            return found, jax.vmap(lambda params, x: gradient(params, state, x, y)[0])(*stacked)

        return jax.jit(program)

    def _blame(self, careful: frozenset[Label] = frozenset()) -> tuple[Any, Blame]:
        if careful not in self._blames:
            blame = Blame(self.high, self.loss_fn, self._plant, careful)
            self._blames[careful] = compiled(blame), blame
        return self._blames[careful]

    @cached_property
    def _behaviour(self) -> Any:
        return compiled(behaviour_program(self.high, self.loss_fn, self._plant))

    @cached_property
    def _loss(self) -> Callable[..., jax.Array]:
        """The loss as a function of the floating leaves; stays the same, so that programs of it do.

        Traced once for all of them.
        """

        @jax.jit
        def loss(point, rest, state, y):
            remaining = iter(point)
            leaves = [next(remaining) if leaf is None else leaf for leaf in rest]
            params, x = self._structure.unflatten(leaves)
            return mean_loss(self.high, self.loss_fn, params, state, x, y)

        return loss

    def __call__(
        self,
        model: nnx.Module,
        x: Any,
        y: Any,
        *,
        fault: int = -1,
        every_coordinate_up_to: int = 64,
        missed: float = MISSED,
        seed: int = 0,
    ) -> Report:
        """The report on a model of the structure that this was prepared for, with one of several plants.

        Args:
            model: of the same structure, as `x` and `y` are.
            fault: number of the plant; below zero none is planted, unless there is but one.
            every_coordinate_up_to, missed, seed: as `bpresearch.verify.model` takes them.
        """
        # What is not finite is looked at where it is judged.
        with jax.enable_x64(True), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            # Rounded first, so that both questions are about the same numbers.
            low_model, low_data = cast_model(model, self.dtype), cast((x, y), self.dtype)
            high_model, data = cast_model(low_model, "float64"), cast(low_data, "float64")
            low = (*split(low_model)[1:], *low_data)
            high = (*split(high_model)[1:], *data)
            number = jnp.int32(fault)
            answer = jax.device_get(self.gradients(number, *high))
            names = leaf_names((high[0], high[2]))
            rows = _against_autodiff(names, *answer[:3]) if "autodiff" in self.oracles else []
            if "finite differences" in self.oracles:
                rows += self._differences(names, high, answer, every_coordinate_up_to, missed, seed)
            if "rounding" in self.oracles and self.dtype != "float64":
                rows += self._rounding(names, number, low, answer)
            local: list[Row] = []
            trap, largest = "", 0.0
            if "rule" in self.oracles:
                local, trap, largest = self._rules(number, high)
                local = _undecided_where_no_gradient_differs(rows, local)
            notes: list[str] = []
            if "behaviour" in self.oracles:
                more, notes = behaviour_rows(self._behaviour, number, *high, answer[:3])
                rows += [*more, finite_row(float(answer[4]), answer[0], trap)]
        culprits = dict.fromkeys(row.path for row in local if row.passed is False)
        hints = dict.fromkeys(f"{row.path}: {row.hint}" for row in local if row.hint)
        return Report(
            tuple(_forgiving(rows, local, largest) + local), tuple(culprits), tuple(notes), tuple(hints)
        )

    def _differences(
        self, names: list[str], high: Any, answer: Any, every: int, missed: float, seed: int
    ) -> list[Row]:
        params, state, x, y = high
        leaves, self._structure = jax.tree.flatten((params, x))
        point = [leaf for leaf in leaves if is_floating(leaf)]
        rest = [None if is_floating(leaf) else leaf for leaf in leaves]
        sizes = [leaf.size for leaf in point]
        directions = choose_directions(sizes, missed, every)
        try:
            others = (rest, state, y)
            measured = measure(self._loss, point, answer[0], directions, seed, others=others, spread=True)
        except HeldInLoopError as error:
            return [
                Row(name, leaf.shape, "finite differences", math.nan, math.nan, None, str(error))
                for name, leaf in zip(names, point, strict=True)
            ]
        norms = [float(np.linalg.norm(leaf)) for leaf in answer[0]]
        loss, largest = map(float, answer[4:])
        verdicts = judge(sizes, norms, directions, measured, loss, largest)
        if any(not v.passed for v in verdicts) and loses_precision(self._loss, point, rest, state, y):
            eps = float(np.finfo("float32").eps)
            coarse = judge(sizes, norms, directions, measured, loss, largest, eps)
            verdicts = [
                v if v.passed else replace(c, passed=_clearly(c), detail=f"{c.detail} ({ROUNDS})")
                for v, c in zip(verdicts, coarse, strict=True)
            ]
        return [
            Row(name, leaf.shape, "finite differences", v.error, v.tolerance, v.passed, v.detail)
            for name, leaf, v in zip(names, point, verdicts, strict=True)
        ]

    def _rounding(self, names: list[str], number: jax.Array, low: Any, answer: Any) -> list[Row]:
        with jax.enable_x64(False):  # as users run it: a stray 64-bit constant would raise the precision
            try:
                found, own = jax.device_get(self._in_working_precision(number, *low))
            except TypeError:
                if not (reason := self._autodiff_fails(low)):
                    raise
                return [
                    Row(name, leaf.shape, "rounding", np.nan, LARGEST_RATIO, None, reason)
                    for name, leaf in zip(names, answer[1], strict=True)
                ]
        rows = []
        for name, f, a, exact, noise in zip(names, found, own, answer[1], answer[3], strict=True):
            ratio, passed = rounding_ratio(f, a, exact, float(noise), self.dtype)
            detail = f"times autodiff's own error in {self.dtype}"
            rows.append(Row(name, f.shape, "rounding", ratio, LARGEST_RATIO, passed, detail))
        return rows

    def _autodiff_fails(self, low: Any) -> str:
        """Why there is no gradient by autodiff in the working precision: not all of Optax has one there."""
        try:
            jax.eval_shape(by_autodiff(self.low, self.loss_fn), *low)
        except TypeError as error:
            return f"autodiff fails in {self.dtype}: {str(error).splitlines()[0]}"
        return ""

    def _rules(self, number: jax.Array, high: Any) -> tuple[list[Row], str, float]:
        """Rows for the equations' rules, the equation, if any, in which the gradient first is not finite, and
        the magnitude of the largest cotangent of a result."""
        blame, answers = self._ask_rules(number, high, frozenset())
        if doubtful := suspicious(blame.seen, answers):
            blame, answers = self._ask_rules(number, high, doubtful)
        cotangents = [bar for _, answer in answers.values() for bar in answer.bars]
        largest = max(map(magnitude, cotangents), default=0.0)
        return judge_rules(blame.seen, answers), first_not_finite(answers), largest

    def _ask_rules(
        self, number: jax.Array, high: Any, careful: frozenset[Label]
    ) -> tuple[Blame, dict[Label, Any]]:
        """What was asked and answered, in the order of the forward pass."""
        program, blame = self._blame(careful)
        answers = jax.device_get(program(number, *high))
        return blame, {about: answers[about] for about in blame.order}


def _undecided_where_no_gradient_differs(rows: list[Row], local: list[Row]) -> list[Row]:
    """A rule that differs by less than the smallest fault claimed, where every gradient is autodiff's.

    Saturated functions inside of a layer lose digits in ways that moving its arguments does not show.
    """
    gradients = [row for row in rows if row.oracle == "autodiff"]
    if not gradients or not all(row.passed for row in gradients):
        return local
    why = "its rule differs from autodiff's derivative by rounding or a small mistake; no gradient does"
    return [
        replace(row, passed=None, detail=why) if row.passed is False and row.error <= SMALLEST_FAULT else row
        for row in local
    ]


def _clearly(verdict: Verdict) -> bool | None:
    """The verdict of differences that see steps, which they cannot measure: wrong is what is far off."""
    return None if verdict.error <= SAFETY * verdict.tolerance and not verdict.passed else verdict.passed


def _against_autodiff(names: list[str], found: Any, expected: Any, noise: Any) -> list[Row]:
    largest = max((np.max(np.abs(leaf), initial=0.0) for leaf in expected), default=0.0)
    rows = []
    for name, f, e, n in zip(names, found, expected, noise, strict=True):
        result = compare(f, e, float(n), float(largest))
        passed = result.error <= MATHEMATICS
        rows.append(Row(name, f.shape, "autodiff", result.error, MATHEMATICS, passed, "", result.worst))
    return rows


def _forgiving(rows: list[Row], local: list[Row], largest: float) -> list[Row]:
    """What differs from autodiff's gradient where all rules are right, each by itself, decides nothing if

    * some rule takes another derivative than autodiff, and a right one, or
    * it is rounding, of a derivative in which large terms cancel: finite differences agree, or it is less
      than a hundred roundings of the largest cotangent.
    """
    if not local or any(row.passed is False for row in local):
        return rows
    reasons = {row.detail for row in local} & {NOT_DIFFERENTIABLE, AUTODIFF_IS_WRONG}
    other = "a rule takes another derivative than autodiff: " + "; ".join(sorted(reasons))
    hundred = 100 * float(np.finfo(np.float64).eps) * largest
    agreeing = {row.path for row in rows if row.oracle == "finite differences" and row.passed}

    def forgiven(row: Row) -> Row:
        if row.passed is not False:
            return row
        if reasons:
            return replace(row, passed=None, detail=other)
        rounding = row.path in agreeing or (row.worst and abs(row.worst[1] - row.worst[2]) <= hundred)
        if row.oracle == "autodiff" and rounding:
            return replace(row, passed=None, detail="by rounding, as all rules are right")
        return row

    rows = [forgiven(row) for row in rows]
    # Where the float64 gradient itself is all rounding there is nothing to compare a coarser one with.
    vague = {row.path for row in rows if row.oracle == "autodiff" and row.passed is None}
    return [
        replace(row, passed=None)
        if row.oracle == "rounding" and row.passed is False and row.path in vague
        else row
        for row in rows
    ]
