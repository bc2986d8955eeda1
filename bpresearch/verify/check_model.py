"""Verification of a whole model: is its chain-rule gradient right, and if not, which rule is wrong?"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bpresearch.functional import split
from bpresearch.verify.calls import Plant, list_calls
from bpresearch.verify.directions import MISSED
from bpresearch.verify.faults import plant_fault
from bpresearch.verify.precision import cast, cast_model, parameter_dtype
from bpresearch.verify.report import Report
from bpresearch.verify.verification import ORACLES, Verification

DTYPES = ("float64", "float32", "bfloat16")


def model(
    model: nnx.Module,
    loss_fn: Callable[..., jax.Array],
    x: Any,
    y: Any,
    *,
    dtype: Any = None,
    oracles: Sequence[str] = ORACLES,
    every_coordinate_up_to: int = 64,
    missed: float = MISSED,
    seed: int = 0,
    plant: str | Plant | None = None,
) -> Report:
    """Verifies the chain-rule gradient of a model, for every parameter and its input, and every layer's rule.

    Two questions are answered apart. *Is the mathematics right?* Everything is computed in float64; the
    hand-written gradient is compared with autodiff's (relative error of each leaf at most 1e-10) and with
    finite differences, which know nothing of either; then each layer's rule by itself is compared with the
    derivative of that layer (see `bpresearch.verify.blame`). *Is the arithmetic sound* in `dtype`, where
    that is not float64? See `bpresearch.verify.rounding`.

    Neither the model nor JAX's configuration is changed.

    Args:
        model: any NNX model whose layers have rules.
        loss_fn: `(outputs, targets) -> values`, a function with a rule.
        x: the model's input with the batch first, or a tuple of several inputs.
        y: the targets, as `loss_fn` takes them.
        dtype: working precision of the second question: "float32" or "bfloat16"; with "float64" only the
            first is asked. Default: the dtype of the model's parameters.
        oracles: which of "autodiff", "finite differences", "rounding", "rule" (each layer's rule by itself,
            which names the culprits) and "behaviour" (see `bpresearch.verify.behaviour`) to ask.
        every_coordinate_up_to: leaves of at most so many elements get finite differences in each of them.
        missed: the probability, for each larger leaf, that a wrong element is missed by finite differences,
            which decides in how many random directions they are taken (see `bpresearch.verify.directions`).
        seed: of the random directions.
        plant: a fault to plant, to see what is reported: a name from `bpresearch.verify.faults`, with
            `@layers.2` after it for a certain layer, or a function `(path, layer, rule) -> rule`.

    Raises:
        ValueError: unknown `dtype`, oracle or fault, or a fault that fits no layer of the model.
        NoRuleError: a layer of the model, or the loss, has no rule.
    """
    prepared = prepare(model, loss_fn, x, y, dtype, oracles, () if plant is None else (plant,))
    return prepared(model, x, y, every_coordinate_up_to=every_coordinate_up_to, missed=missed, seed=seed)


def prepare(
    model: nnx.Module,
    loss_fn: Callable[..., jax.Array],
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
<<<<<<< HEAD
        high = cast_model(cast_model(model, dtype), "float64")
        calls = list_calls(high, loss_fn, cast(x, "float64"), cast(y, "float64"))
        return Verification(
            loss_fn,
            split(cast_model(model, dtype))[0],
            split(high)[0],
            dtype,
            tuple(oracles),
            tuple(plant_fault(plant, calls) if isinstance(plant, str) else plant for plant in plants),
        )
=======
        # Rounded first, so that both questions are about the same numbers.
        low = cast_model(model, dtype), loss_fn, cast(x, dtype), cast(y, dtype)
        high = cast_model(low[0], "float64"), loss_fn, cast(low[2], "float64"), cast(low[3], "float64")
        planted = _planting(plant, high)
        case = _Case(high, planted, dtype, seed)
        rows = _against_autodiff(case) if "autodiff" in oracles else []
        if "finite differences" in oracles:
            rows += _against_finite_differences(case)
        if "rounding" in oracles and dtype != "float64":
            rows += _rounding(case, low)
        local, trap = _blame(case) if "rule" in oracles else ([], "")
        if "behaviour" in oracles:
            found, expected = by_rules(case.graphdef, loss_fn, planted), by_autodiff(case.graphdef, loss_fn)
            rows += behaviour_rows(found, expected, case.params, case.state, case.x, case.y)
            rows.append(finite_row(float(case.value), case.found, trap))
    culprits = dict.fromkeys(row.path for row in local if row.passed is False)
    hints = dict.fromkeys(f"{row.path}: {row.hint}" for row in local if row.hint)
    return Report(tuple(_forgiving(rows, local) + local), tuple(culprits), (), tuple(hints))


def _forgiving(rows: list[Row], local: list[Row]) -> list[Row]:
    """Where all rules are right, and some chose another derivative at a kink, autodiff decides nothing."""
    at_kink = any(row.detail.startswith(NOT_DIFFERENTIABLE) for row in local)
    if not at_kink or any(row.passed is False for row in local):
        return rows
    detail = "a rule takes another derivative at a kink than autodiff"
    return [replace(row, passed=None, detail=detail) if row.passed is False else row for row in rows]


def _planting(plant: str | Plant | None, case: tuple[Any, ...]) -> Plant:
    """The planted fault as a function of a call; without one, the function that changes nothing."""
    if plant is None:
        return lambda path, layer, rule: rule
    return plant_fault(plant, list_calls(*case)) if isinstance(plant, str) else plant


class _Case:
    """What is verified, in float64, and its gradients: `found` by the rules, `expected` by autodiff.

    Gradients are lists with one array for each floating-point leaf of the parameters and the input.
    """

    def __init__(self, case: tuple[Any, ...], plant: Plant, dtype: str, seed: int):
        self.model, self.loss_fn, self.x, self.y = case
        self.plant, self.dtype, self.key = plant, dtype, jax.random.key(seed)
        self.graphdef, self.params, self.state = split(self.model)
        self.names = leaf_names((self.params, self.x))
        eps64, eps = float(np.finfo("float64").eps), float(jnp.finfo(dtype).eps) / 2

        def both(params, state, x, y):
            found, value = by_rules(self.graphdef, self.loss_fn, plant)(params, state, x, y)
            stacked = jittered((params, x), (eps64, eps64, eps, eps))
            gradient = by_autodiff(self.graphdef, self.loss_fn)
            lanes = jax.vmap(lambda params, x: gradient(params, state, x, y)[0])(*stacked)
            change = [jnp.abs(lane[1:] - lane[:1]) for lane in lanes]
            noise = [jnp.max(c[:2], initial=0.0) for c in change]
            noise_norms = [jnp.max(jnp.sqrt(jnp.sum(c[2:] ** 2, range(1, c.ndim)))) for c in change]
            return found, [lane[0] for lane in lanes], noise, noise_norms, value

        answer = compiled(both)(self.params, self.state, self.x, self.y)
        self.found, self.expected, self.noise, self.noise_norms, self.value = jax.device_get(answer)


def leaf_names(tree: tuple[Any, Any]) -> list[str]:
    """Paths of the floating leaves of `(params, x)`: `layers.1.kernel` and so on, then `input`."""
    names = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        head, *rest = (getattr(key, "idx", getattr(key, "key", key)) for key in path)
        if is_floating(leaf):
            names.append(format_path(tuple(rest) if head == 0 else ("input", *rest)))
    return names


def floating_leaves(tree: Any, gradients: Any) -> list[jax.Array]:
    """The leaves of `gradients` at the floating leaves of `tree`; zeros where a rule gave None."""
    leaves, structure = jax.tree.flatten(tree)
    pairs = zip(leaves, structure.flatten_up_to(gradients), strict=True)
    return [jnp.zeros_like(leaf) if bar is None else bar for leaf, bar in pairs if is_floating(leaf)]


def by_rules(graphdef: nnx.GraphDef, loss_fn: Any, plant: Plant) -> Callable[..., Any]:
    """The gradient in question: `(params, state, x, y) -> gradient leaves, loss`."""
    value_and_grad = chainrule.gradient(graphdef, loss_fn, inputs=True)

    def gradient(params, state, x, y):
        with chainrule.replacing(plant):
            (loss, _), gradients = value_and_grad(params, state, (x, y))
        return floating_leaves((params, x), gradients), loss

    return gradient


def by_autodiff(graphdef: nnx.GraphDef, loss_fn: Any) -> Callable[..., Any]:
    """The same by `jax.vjp` of the model, which sees no rule."""

    def gradient(params, state, x, y):
        def loss(params, x):
            return mean_loss(graphdef, loss_fn, params, state, x, y)

        value, gradients = pullback(loss, (params, x))
        return floating_leaves((params, x), gradients), value

    return gradient


def mean_loss(graphdef: nnx.GraphDef, loss_fn: Any, params: Any, state: Any, x: Any, y: Any) -> jax.Array:
    """The scalar that is differentiated."""
    outputs = merge(graphdef, params, state)(*as_inputs(x))
    return jnp.mean(loss_fn(*as_inputs(outputs), *as_inputs(y)))


def _against_autodiff(case: _Case) -> list[Row]:
    largest = max((np.max(np.abs(leaf), initial=0.0) for leaf in case.expected), default=0.0)
    rows = []
    for name, found, expected, noise in zip(case.names, case.found, case.expected, case.noise, strict=True):
        result = compare(found, expected, float(noise), float(largest))
        passed = result.error <= MATHEMATICS
        rows.append(Row(name, found.shape, "autodiff", result.error, MATHEMATICS, passed, "", result.worst))
    return rows


def _against_finite_differences(case: _Case) -> list[Row]:
    leaves, structure = jax.tree.flatten((case.params, case.x))
    point = [leaf for leaf in leaves if is_floating(leaf)]
    directions = finite_differences.choose_directions([leaf.size for leaf in point])

    def differences(point, found, state, y):
        def loss(point):
            remaining = iter(point)
            filled = [next(remaining) if is_floating(leaf) else leaf for leaf in leaves]
            params, x = structure.unflatten(filled)
            return mean_loss(case.graphdef, case.loss_fn, params, state, x, y)

        return finite_differences.directional_derivatives(loss, point, directions, found, case.key)

    answer = jax.device_get(compiled(differences)(point, case.found, case.state, case.y))
    sizes = [leaf.size for leaf in point]
    norms = [float(np.linalg.norm(leaf)) for leaf in case.found]
    verdicts = finite_differences.judge(sizes, norms, directions, answer, float(case.value))
    return [
        Row(name, leaf.shape, "finite differences", v.error, v.tolerance, v.passed, v.detail)
        for name, leaf, v in zip(case.names, point, verdicts, strict=True)
    ]


def _rounding(case: _Case, low: tuple[Any, ...]) -> list[Row]:
    model, loss_fn, x, y = low
    graphdef, params, state = split(model)

    def both(params, state, x, y):
        found, _ = by_rules(graphdef, loss_fn, case.plant)(params, state, x, y)
        return found, by_autodiff(graphdef, loss_fn)(params, state, x, y)[0]

    with jax.enable_x64(False):  # as users run it: a stray 64-bit constant would raise the precision
        found, own = jax.device_get(jax.jit(both)(params, state, x, y))
    rows = []
    for name, f, a, exact, noise in zip(case.names, found, own, case.expected, case.noise_norms, strict=True):
        ratio, passed = rounding_ratio(f, a, exact, float(noise), case.dtype)
        detail = f"times autodiff's own error in {case.dtype}"
        rows.append(Row(name, f.shape, "rounding", ratio, LARGEST_RATIO, passed, detail))
    return rows


def _blame(case: _Case) -> tuple[list[Row], str]:
    """A row for each layer's rule, and the layer, if any, in which the gradient first is not finite."""
    program, calls = blame_program(case.graphdef, case.loss_fn, case.plant)
    answers = jax.device_get(compiled(program)(case.params, case.state, case.x, case.y, case.key))
    return judge(case.model, calls, answers), first_not_finite(case.model, calls, answers)
>>>>>>> losses
