"""Verification of a whole model: is its chain-rule gradient right, and if not, which rule is wrong?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from bpresearch.functional import Loss, TrainingLoss, split
from bpresearch.verify.answers import EXACT, answers
from bpresearch.verify.blame import Blame
from bpresearch.verify.casting import cast_model, parameter_dtype
from bpresearch.verify.detection.faults import plant_fault
from bpresearch.verify.detection.plants import one_of
from bpresearch.verify.directions import MISSED, choose_directions
from bpresearch.verify.engines import by_autodiff, by_rules, leaf_names, mean_loss
from bpresearch.verify.equations import Plant, equations_of
from bpresearch.verify.oracles import behaviour, rounding
from bpresearch.verify.oracles.contract import Clause
from bpresearch.verify.precision import cast, compiled, is_floating
from bpresearch.verify.question import Derivative, Question, first_line
from bpresearch.verify.report import Report, Row
from bpresearch.verify.second_order import second_order_rows
from bpresearch.verify.spread import Spreads

DTYPES = ("float64", "float32", "bfloat16")
ORACLES = ("autodiff", "finite differences", "rounding", "rule", "behaviour")
OF_FUNCTIONS = (*(name for name in EXACT if name not in ORACLES), "taylor")
"""Oracles that a model is asked by on request: they take long, and see what the others do."""

EPS = float(np.finfo("float64").eps)


def model(
    model: nnx.Module,
    loss_fn: Loss | TrainingLoss,
    x: PyTree,
    y: PyTree,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    order: int = 1,
    oracles: Sequence[str] = ORACLES,
    every_coordinate_up_to: int = 64,
    missed: float = MISSED,
    seed: int = 0,
    plant: str | Plant | None = None,
    tolerance: float | None = None,
) -> Report:
    """Verifies the chain-rule gradient of a model, for every parameter and its input, and every layer's rule.

    Two questions are answered apart. *Is the mathematics right?* Everything is computed in float64; the
    hand-written gradient is compared with autodiff's and with finite differences, which know nothing of
    either; then the rule of each equation (a layer, a primitive) by itself is compared with the derivative of
    that equation (see `bpresearch.verify.blame`). What decides is how far rounding moves both, measured: see
    `bpresearch.verify.verdict`. *Is the arithmetic sound* in `dtype`, where that is not float64? See
    `bpresearch.verify.oracles.rounding`.

    Neither the model nor JAX's configuration is changed.

    Args:
        model: any NNX model.
        loss_fn: `(outputs, targets) -> values`.
        x: the model's input with the batch first, or a tuple of several inputs.
        y: the targets, as `loss_fn` takes them.
        dtype: working precision of the second question: "float32" or "bfloat16"; with "float64" only the
            first is asked. Default: the dtype of the model's parameters.
        order: 2 verifies the hand-written product of the Hessian with a vector as well (`chainrule.hvp`,
            see `bpresearch.verify.second_order`).
        oracles: which of "autodiff", "finite differences", "rounding", "rule" (each equation's rule by
            itself, which names the culprits) and "behaviour" (see `bpresearch.verify.oracles.behaviour`) to
            ask; also those of `verify.function`: "forward mode", "adjoint", "complex step", "taylor".
        every_coordinate_up_to: leaves of at most so many elements get finite differences in each of them.
        missed: the probability, for each larger leaf, that a wrong element is missed by finite differences,
            which decides in how many random directions they are taken (see `bpresearch.verify.directions`).
        seed: of the random directions.
        plant: a fault to plant, to see what is reported: a name from `verify.FAULTS`, with
            `@layers.2` after it for a certain layer, `@tanh` for a primitive or `@file.py:12` for a line, or
            a function `(equation, rule) -> rule` (see `chainrule.replacing`).
        tolerance: a relative error that is right whatever its cause, where the model holds a solver: "right
            to 1e-4".

    Raises:
        ValueError: a tolerance not between 0 and 1; unknown `dtype`, order, oracle or fault, or a fault that
            fits no equation of the model.
        NoPrimitiveRuleError: an operation in the model or the loss has no rule.

    >>> model, loss = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), optax.losses.squared_error
    >>> bp.verify.model(model, loss, np.ones((4, 3)), np.zeros((4, 2))).passed
    True
    """
    if order not in (1, 2):
        raise ValueError(f"order {order} is not 1 or 2")
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(f"tolerance {tolerance} is not between 0 and 1")
    prepared = prepare(model, loss_fn, x, y, dtype, oracles, () if plant is None else (plant,))
    report = prepared(
        model, x, y, every_coordinate_up_to=every_coordinate_up_to, missed=missed, seed=seed,
        tolerance=tolerance or 0.0,
    )  # fmt: skip
    if order == 1:
        return report
    with jax.enable_x64(True):
        high = cast_model(cast_model(model, prepared.dtype), "float64")
        high_x, high_y = cast(cast((x, y), prepared.dtype), "float64")
        rows = second_order_rows(high, loss_fn, high_x, high_y, seed)
    reasons = dict.fromkeys(f"second order: {row.detail}" for row in rows if row.passed is None)
    return replace(report, rows=(*report.rows, *rows), notes=(*report.notes, *reasons))


verify_model = model  # a name that no argument takes


def loss(loss: Callable[..., PyTree], model: nnx.Module, batch: PyTree, **options: Any) -> Report:
    """Verifies the chain-rule gradient of a training loss with respect to the model's parameters.

    Args:
        loss: `(model, batch) -> value`, as `nnx.value_and_grad` takes it: a scalar or one value for each
            example, or a pair of that and metrics.
        model: any NNX model; it is not changed.
        batch: a tree of arrays; a model among them is held constant.
        options: those of `bpresearch.verify.model`.

    >>> def loss(model, batch):
    ...     return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)
    >>> batch = {"x": np.ones((3, 2), np.float32), "y": np.zeros((3, 1), np.float32)}
    >>> bp.verify.loss(loss, nnx.Linear(2, 1, rngs=nnx.Rngs(0)), batch).passed
    True
    """
    return verify_model(model, TrainingLoss(loss), (), batch, **options)


def prepare(
    model: nnx.Module,
    loss_fn: Loss | TrainingLoss,
    x: PyTree,
    y: PyTree,
    dtype: jax.typing.DTypeLike | None = None,
    oracles: Sequence[str] = ORACLES,
    plants: Sequence[str | Plant] = (),
) -> "Prepared":
    """The verification that `model` makes, to be asked more than once: compiled for the first time only.

    For other values of the parameters and data of the same structure and shapes, and for any of several
    faults, planted one at a time by number. (A single one is always planted.)

    >>> model, loss = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), optax.losses.squared_error
    >>> x, y = np.ones((4, 3)), np.zeros((4, 2))
    >>> faults = ["bias_forgotten", "scaled"]
    >>> check = bp.verify.prepare(model, loss, x, y, "float64", ["autodiff", "rule"], faults)
    >>> check(model, x, y).passed, check(model, x, y, fault=1).passed
    (True, False)
    """
    dtype = str(jnp.dtype(dtype or parameter_dtype(model)))
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype} is not one of {', '.join(DTYPES)}")
    for oracle in oracles:
        if oracle not in (*ORACLES, *OF_FUNCTIONS):
            raise ValueError(f"oracle {oracle!r} is not one of {', '.join((*ORACLES, *OF_FUNCTIONS))}")
    with jax.enable_x64(True):
        high = cast_model(cast_model(model, dtype), "float64")
        data = cast((x, y), "float64")
        named = [plant for plant in plants if isinstance(plant, str)]
        equations = equations_of(high, loss_fn, *data) if named else {}
        chosen = [plant_fault(plant, equations) if isinstance(plant, str) else plant for plant in plants]
        low = split(cast_model(model, dtype))[0]
        return Prepared(loss_fn, low, split(high)[0], dtype, tuple(oracles), tuple(chosen))


class Prepared:
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
        self._structure: Any = None

    def _plant(self, fault: jax.Array) -> Plant:
        if len(self.plants) == 1:
            return self.plants[0]
        return one_of(self.plants, fault) if self.plants else lambda e, rule: rule

    def _together(self, point: PyTree, rest: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters and inputs, from the floating leaves and the others."""
        remaining = iter(point)
        return self._structure.unflatten([next(remaining) if leaf is None else leaf for leaf in rest])

    @cached_property
    def derivative(self) -> Derivative:
        """Of the loss; `others` are the number of the fault, what is not floating, state and y."""

        def apply(point, others):
            _, rest, state, y = others
            params, x = self._together(point, rest)
            return [mean_loss(self.high, self.loss_fn, params, state, x, y)]

        def gradient(point, others, y_bar):
            fault, rest, state, y = others
            params, x = self._together(point, rest)
            gradients, _ = by_rules(self.high, self.loss_fn, self._plant(fault))(params, state, x, y)
            return [y_bar[0] * leaf for leaf in gradients]

        return Derivative(apply, gradient, apply, apply)

    @cached_property
    def blame(self) -> Blame:
        """What asks every rule by itself."""
        return Blame(self.high, self.loss_fn, self._plant)

    def _parts(
        self, point: PyTree, others: PyTree
    ) -> tuple[PyTree, PyTree, PyTree, PyTree, behaviour.Gradient, behaviour.Gradient]:
        fault, rest, state, y = others
        params, x = self._together(point, rest)
        of_rules = by_rules(self.high, self.loss_fn, self._plant(fault))
        of_autodiff = by_autodiff(self.high, self.loss_fn)
        return (
            params, state, x, y,
            lambda *arguments: of_rules(*arguments)[0],
            lambda *arguments: of_autodiff(*arguments)[0],
        )  # fmt: skip

    @cached_property
    def _clauses(self) -> tuple[Clause, ...]:
        return behaviour.clauses(self._parts)

    @cached_property
    def _in_working_precision(self) -> tuple[Callable[..., PyTree], Spreads]:
        def both(fault, params, state, x, y):
            gradients, _ = by_rules(self.low, self.loss_fn, self._plant(fault))(params, state, x, y)
            return gradients, by_autodiff(self.low, self.loss_fn)(params, state, x, y)[0]

        return jax.jit(both), Spreads(lambda *arguments: both(*arguments)[1])

    @cached_property
    def _gradients(self) -> Callable[..., PyTree]:
        def program(fault, params, state, x, y):
            return by_rules(self.high, self.loss_fn, self._plant(fault))(params, state, x, y)[0]

        return compiled(program)

    def gradient(self, model: nnx.Module, x: PyTree, y: PyTree, fault: int = -1) -> list[np.ndarray]:
        """The leaves of the gradient in question, in float64."""
        with jax.enable_x64(True):
            _, high = self._casts(model, x, y)
            return jax.device_get(self._gradients(jnp.int32(fault), *high))

    def value(self, model: nnx.Module, x: PyTree, y: PyTree) -> float:
        """The loss, in float64."""
        with jax.enable_x64(True):
            _, high = self._casts(model, x, y)
            question = self._question(jnp.int32(-1), high, 1, 0.5, 0)
            return self._value(question)

    def _value(self, question: Question) -> float:
        of_loss = self.derivative.program("value", lambda: self.derivative.apply)
        return float(of_loss(question.point, question.others)[0])

    def _casts(
        self, model: nnx.Module, x: PyTree, y: PyTree
    ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
        # Rounded first, so that both questions are about the same numbers.
        low_model, low_data = cast_model(model, self.dtype), cast((x, y), self.dtype)
        high_model, data = cast_model(low_model, "float64"), cast(low_data, "float64")
        return (*split(low_model)[1:], *low_data), (*split(high_model)[1:], *data)

    def __call__(
        self,
        model: nnx.Module,
        x: PyTree,
        y: PyTree,
        *,
        fault: int = -1,
        every_coordinate_up_to: int = 64,
        missed: float = MISSED,
        seed: int = 0,
        tolerance: float = 0.0,
    ) -> Report:
        """The report on a model of the structure that this was prepared for, with one of several plants.

        Args:
            model: of the same structure, as `x` and `y` are.
            fault: number of the plant; below zero none is planted, unless there is but one.
            every_coordinate_up_to, missed, seed, tolerance: as `bpresearch.verify.model` takes them.
        """
        # What is not finite is looked at where it is judged.
        with jax.enable_x64(True), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            low, high = self._casts(model, x, y)
            number = jnp.int32(fault)
            question = self._question(number, high, every_coordinate_up_to, missed, seed)
            question = replace(question, tolerance=tolerance)
            trap, local = "", list[Row]()
            if "rule" in self.oracles:  # first: where one is wrong, what follows from it needs no measuring
                blamed = self.blame(number, high, seed)
                local, trap = blamed.rows, blamed.trap
            culprits = dict.fromkeys(row.path for row in local if row.passed is False)
            clauses = self._clauses if "behaviour" in self.oracles else ()
            outcome = answers(question, self.oracles, clauses=clauses, together=True, measuring=not culprits)
            rows, said = behaviour.without_mixing(behaviour.undecided_at_kinks(outcome.rows))
            notes = [note for note in outcome.notes if "no examples to take apart" not in note] + said
            if "behaviour" in self.oracles:
                rows.append(behaviour.finite_row(outcome.value, outcome.found or [], trap))
            if "rounding" in self.oracles and self.dtype != "float64":
                rows += rounding.undecided_at_kinks(
                    self._rounding(question.names, number, low, high, outcome.expected), [*rows, *local]
                )
        hints = dict.fromkeys(f"{row.path}: {row.hint}" for row in local if row.hint)
        values = [row for row in rows if row.oracle != behaviour.BEHAVIOUR]
        others = [row for row in rows if row.oracle == behaviour.BEHAVIOUR]
        return Report((*values, *others, *local), tuple(culprits), tuple(notes), tuple(hints))

    def _question(
        self, number: jax.Array, high: tuple[PyTree, ...], every: int, missed: float, seed: int
    ) -> Question:
        params, state, x, y = high
        leaves, self._structure = jax.tree.flatten((params, x))
        point = [leaf for leaf in leaves if is_floating(leaf)]
        rest = [None if is_floating(leaf) else leaf for leaf in leaves]
        directions = choose_directions([leaf.size for leaf in point], missed, every)
        others = number, rest, state, y
        return Question(
            self.derivative, point, others, leaf_names((params, x)), [[jnp.ones(())]], directions, seed, EPS
        )

    def _autodiff_fails(self, low: tuple[PyTree, ...]) -> bool:
        try:
            jax.jit(by_autodiff(self.low, self.loss_fn)).lower(*low)
        except Exception:  # any reason of the model's own
            return True
        return False

    def _rounding(
        self,
        names: Sequence[str],
        number: jax.Array,
        low: tuple[PyTree, ...],
        high: tuple[PyTree, ...],
        exact: list[np.ndarray] | None,
    ) -> list[Row]:
        """The rows of the working precision; `exact` is autodiff's gradient in float64, if it is known."""
        if exact is None:
            in_float64 = self.derivative.program("autodiff", lambda: by_autodiff(self.high, self.loss_fn))
            exact = jax.device_get(in_float64(*high))[0]
        program, spreads = self._in_working_precision
        with jax.enable_x64(False):  # as users run it: a stray 64-bit constant would raise the precision
            try:
                gradients, own = jax.device_get(program(number, *low))
            except Exception as error:  # not all of JAX and Optax has a derivative in every precision
                if not self._autodiff_fails(low):
                    raise
                reason = f"autodiff fails in {self.dtype}: {first_line(error)}"
                return [
                    Row(name, leaf.shape, "rounding", math.nan, rounding.LARGEST_RATIO, None, reason)
                    for name, leaf in zip(names, exact, strict=True)
                ]

        def spread():
            with jax.enable_x64(False):
                return spreads((number, *low), 2).sizes

        dtypes = [self.dtype] * len(exact)
        return rounding.ratio_rows(names, gradients, own, exact, spread, dtypes)
