"""Verification of a whole model: is its chain-rule gradient right, and if not, which rule is wrong?"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bpresearch.functional import Loss, TrainingLoss, split
from bpresearch.verify.directions import MISSED
from bpresearch.verify.equations import Plant, equations_of
from bpresearch.verify.faults import plant_fault
from bpresearch.verify.precision import cast, cast_model, parameter_dtype
from bpresearch.verify.report import Report
from bpresearch.verify.second_order import second_order_rows
from bpresearch.verify.verification import ORACLES, Verification

DTYPES = ("float64", "float32", "bfloat16")


def model(
    model: nnx.Module,
    loss_fn: Loss | TrainingLoss,
    x: Any,
    y: Any,
    *,
    dtype: Any = None,
    order: int = 1,
    oracles: Sequence[str] = ORACLES,
    every_coordinate_up_to: int = 64,
    missed: float = MISSED,
    seed: int = 0,
    plant: str | Plant | None = None,
) -> Report:
    """Verifies the chain-rule gradient of a model, for every parameter and its input, and every layer's rule.

    Two questions are answered apart. *Is the mathematics right?* Everything is computed in float64; the
    hand-written gradient is compared with autodiff's (relative error of each leaf at most 1e-10) and with
    finite differences, which know nothing of either; then the rule of each equation (a layer, a primitive) by
    itself is compared with the derivative of that equation (see `bpresearch.verify.blame`). *Is the
    arithmetic sound* in `dtype`, where that is not float64? See `bpresearch.verify.rounding`.

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
            itself, which names the culprits) and "behaviour" (see `bpresearch.verify.behaviour`) to ask.
        every_coordinate_up_to: leaves of at most so many elements get finite differences in each of them.
        missed: the probability, for each larger leaf, that a wrong element is missed by finite differences,
            which decides in how many random directions they are taken (see `bpresearch.verify.directions`).
        seed: of the random directions.
        plant: a fault to plant, to see what is reported: a name from `bpresearch.verify.faults`, with
            `@layers.2` after it for a certain layer, `@tanh` for a primitive or `@file.py:12` for a line, or
            a function `(equation, rule) -> rule` (see `chainrule.replacing`).

    Raises:
        ValueError: unknown `dtype`, order, oracle or fault, or a fault that fits no equation of the model.
        NoPrimitiveRuleError: an operation in the model or the loss has no rule.
    """
    if order not in (1, 2):
        raise ValueError(f"order {order} is not 1 or 2")
    prepared = prepare(model, loss_fn, x, y, dtype, oracles, () if plant is None else (plant,))
    report = prepared(model, x, y, every_coordinate_up_to=every_coordinate_up_to, missed=missed, seed=seed)
    if order == 1:
        return report
    with jax.enable_x64(True):
        high = cast_model(cast_model(model, prepared.dtype), "float64")
        high_x, high_y = cast(cast((x, y), prepared.dtype), "float64")
        rows = second_order_rows(high, loss_fn, high_x, high_y, seed)
    reasons = dict.fromkeys(f"second order: {row.detail}" for row in rows if row.passed is None)
    return replace(report, rows=(*report.rows, *rows), notes=(*report.notes, *reasons))


verify_model = model  # a name that no argument takes


def loss(loss: Callable[..., Any], model: nnx.Module, batch: Any, **options: Any) -> Report:
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
    x: Any,
    y: Any,
    dtype: Any = None,
    oracles: Sequence[str] = ORACLES,
    plants: Sequence[str | Plant] = (),
) -> Verification:
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
        if oracle not in ORACLES:
            raise ValueError(f"oracle {oracle!r} is not one of {', '.join(ORACLES)}")
    with jax.enable_x64(True):
        high = cast_model(cast_model(model, dtype), "float64")
        named = [plant for plant in plants if isinstance(plant, str)]
        equations = equations_of(high, loss_fn, cast(x, "float64"), cast(y, "float64")) if named else {}
        return Verification(
            loss_fn,
            split(cast_model(model, dtype))[0],
            split(high)[0],
            dtype,
            tuple(oracles),
            tuple(plant_fault(plant, equations) if isinstance(plant, str) else plant for plant in plants),
        )
