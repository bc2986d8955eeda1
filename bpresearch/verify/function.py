"""Verification of any JAX function whose derivative was written by hand."""

import contextlib
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpresearch.verify import plain, special_points
from bpresearch.verify.answers import EXACT, answers
from bpresearch.verify.directions import MISSED, choose_directions
from bpresearch.verify.oracles import contract, rounding
from bpresearch.verify.point import Arguments
from bpresearch.verify.precision import random_like
from bpresearch.verify.question import Derivative, NotAskedError, Question, first_line
from bpresearch.verify.report import Report, Row

FUNCTION_ORACLES = ("contract", *EXACT, "finite differences", "taylor", "rounding")


def function(
    f: Callable[..., PyTree],
    *args: PyTree,
    reference: Callable[..., PyTree] | None = None,
    surrogate: Callable[..., PyTree] | None = None,
    argnums: int | Sequence[int] | None = None,
    kwargs: dict[str, Any] | None = None,
    tolerance: float | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    points: str | None = None,
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
    `bpresearch.verify.directions`); the rows say which. Where they disagree, how far rounding moves both is
    measured (`bpresearch.verify.spread`), and at points without a derivative what lies between its sides
    (`bpresearch.verify.oracles.kinks`); then `bpresearch.verify.verdict` decides. An oracle that cannot be
    asked is named in a note.

    Before that, and apart from values, the `contract` of a backward pass is checked: see
    `bpresearch.verify.oracles.contract`. Everything is computed in float64 if `f` and its backward pass take
    it, otherwise in the precision of `args`, with correspondingly less resolution. Last, `rounding` compares
    the error in the precision of `args` with that of autodiff.

    Args:
        f: any function of pytrees. Floating-point and complex arrays and Python floats are differentiated;
            integers, booleans, None, strings and functions among `args` are passed on as they are.
        args: where to check it.
        reference: a plain function that computes the same as `f`. It is the authority: its values are
            compared, its derivative decides, and what other oracles say against it is a fact about it.
        surrogate: a function whose derivative `f` is meant to have, though its own is another
            (straight-through estimators, clipped gradients). Values and differences are not asked about.
        argnums: which positional arguments to differentiate, as in `jax.grad`; by default all.
        kwargs: keyword arguments of `f`, held fast.
        tolerance: a relative error that is right whatever its cause, for solvers: "right to 1e-4".
        dtype: the precision in which to check, if not the best that `f` takes.
        points: "adversarial" also checks at zeros, ties, whole numbers, saturated and masked values, and with
            shapes that blocks do not divide; and the same values without `jit` (see "eager").
        order: 2 verifies the derivative of the backward pass as well.
        oracles: which of the above to ask. Only ("contract",) makes a verdict about the contract alone; the
            clause "without jit" is checked if "eager" is among them.
        every_coordinate_up_to: leaves of at most so many elements are looked at in each of them.
        missed: the probability of missing a wrong element of a larger leaf that is borne.
        seed: of cotangents and directions.

    Returns:
        A report whose `passed` is True, False, or None: undecided, as for some leaf no oracle could tell.

    Raises:
        ValueError: unknown oracle, or nothing in `args` or among the outputs can be differentiated; both
            `reference` and `surrogate`; a reference with other outputs.

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
        if oracle not in (*FUNCTION_ORACLES, "eager"):
            raise ValueError(f"oracle {oracle!r} is not one of {', '.join(FUNCTION_ORACLES)}")
    if order not in (1, 2):
        raise ValueError(f"order {order} is not 1 or 2")
    if reference is not None and surrogate is not None:
        raise ValueError("a reference has the same derivative and a surrogate another one: give one of them")
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(f"tolerance {tolerance} is not between 0 and 1")
    if points is not None:  # looks at more, and takes longer
        oracles = [*oracles, "eager"]
    if tolerance is not None:  # these see errors that are borne
        oracles = [oracle for oracle in oracles if oracle not in ("taylor", "rounding")]
    options = _Options(
        reference, surrogate, dtype, order, tuple(oracles), every_coordinate_up_to, missed, seed,
        tolerance or 0.0, _in_double(),
    )  # fmt: skip
    report = _at(f, Arguments(f, args, kwargs, argnums), options)
    if points is None:
        return report
    for where, special in special_points.of(points, args):
        report = special_points.joined(report, where, _special(f, special, kwargs, argnums, options))
    return report


@dataclass(frozen=True)
class _Options:
    """What `function` was told, besides the function and its arguments; `double` is whether x64 was on."""

    reference: Callable[..., PyTree] | None
    surrogate: Callable[..., PyTree] | None
    dtype: jax.typing.DTypeLike | None
    order: int
    oracles: tuple[str, ...]
    every_coordinate_up_to: int
    missed: float
    seed: int
    tolerance: float
    double: bool


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A function made ready to be asked about, in one precision; its programs are kept in its derivatives.

    Attributes:
        derivative: of the function.
        second: of its backward pass at one cotangent, which is the `others`.
        double: whether in float64.
        point: where.
        outputs: shapes of what it returns.
        names: of these.
        structure: what is wrong with the structure of the backward pass.
    """

    derivative: Derivative
    second: Derivative
    double: bool
    point: list[jax.Array]
    outputs: list[PyTree]
    names: list[str]
    structure: str


_programs: OrderedDict[Hashable, tuple[Derivative, Derivative]] = OrderedDict()
"""Of the functions asked about last; see `_kept`."""


def _prepare(f: Callable[..., PyTree], arguments: Arguments, options: _Options) -> _Prepared:
    apply = arguments.bind(f)
    other = options.reference or options.surrogate
    twin = arguments.bind(other) if other else None
    own = arguments.point()
    dtype = None if options.dtype is None else jnp.dtype(options.dtype)
    double = _takes_double(apply, arguments.point(np.float64), own) if dtype is None else dtype == np.float64
    point = arguments.point(np.float64 if double else dtype)

    def at_point(function):
        return lambda point: function(point, ())

    outputs = jax.eval_shape(at_point(apply), point)
    if not outputs:
        raise ValueError("nothing that the function returns is floating point, so there is no derivative")
    if twin is not None:
        _same_outputs("reference" if options.reference else "surrogate", at_point(twin), point, outputs)
    elif plain.has_custom_rule(at_point(apply), point):

        def twin(point, others):
            return plain.without_custom_rules(lambda point: apply(point, others))(point)

    def gradient(point, others, y_bar):
        return jax.vjp(lambda point: apply(point, others), point)[1](y_bar)[0]

    derivative = Derivative(apply, gradient, twin, apply)
    # With the types that an author's own run has: a default of float64 would look like a mistake of theirs.
    with jax.enable_x64(options.double or any(leaf.dtype == np.float64 for leaf in own)):
        structure = _broken_structure(at_point(apply), own)
    if not structure:
        derivative, second = _kept(derivative, point, outputs, options)
    else:
        second = derivative
    names = arguments.output_names(f)
    return _Prepared(derivative, second, double, point, outputs, names, structure)


def _kept(
    derivative: Derivative, point: list[jax.Array], outputs: list[jax.ShapeDtypeStruct], options: _Options
) -> tuple[Derivative, Derivative]:
    """The derivative, and that of its backward pass; from before, with their programs, if they are the same.

    They are the same if what JAX traces of them is, constants included. The function as an object tells
    nothing: what it calls may have been defined anew.
    """
    parts = [derivative.apply, *([derivative.twin] if derivative.twin else [])]
    traces = [jax.make_jaxpr(part)(point, ()) for part in parts]
    traces.append(jax.make_jaxpr(lambda point, y_bar: derivative.gradient(point, (), y_bar))(point, outputs))
    for clause in (contract.UNUSED, contract.VMAP):  # rules may depend on what is used, and on vmap
        with contextlib.suppress(Exception):
            pairs = partial(clause.pairs, derivative)
            traces.append(jax.make_jaxpr(lambda *given, pairs=pairs: pairs(*given))(point, (), [outputs] * 2))
    constants = tuple(_bytes(c) for trace in traces for c in trace.consts)
    texts = tuple(re.sub("0x[0-9a-f]+", "0x", str(trace)) for trace in traces)
    key = texts, constants, replace(options, seed=0, reference=None, surrogate=None)
    if key not in _programs:
        _programs[key] = derivative, second_derivative(derivative)
        while len(_programs) > 8:  # the processor's programs take mappings, of which a process has 65,530
            _programs.popitem(last=False)
    _programs.move_to_end(key)
    return _programs[key]


def _bytes(constant: PyTree) -> Hashable:
    return hash(np.asarray(constant).tobytes()) if hasattr(constant, "dtype") else constant


def second_derivative(derivative: Derivative) -> Derivative:
    """The derivative of the backward pass, as a function of the point, at a cotangent that is the `others`.

    Its values are taken from the twin: `stop_gradient` in `apply` is part of the function, in a backward pass
    made by hand it is a mistake, and no excuse for one.
    """

    def apply(point, y_bar):
        return derivative.gradient(point, (), y_bar)

    def twin(point, y_bar):
        return derivative.expected(point, (), y_bar)

    def gradient(point, y_bar, bars):
        return jax.vjp(lambda point: apply(point, y_bar), point)[1](bars)[0]

    has_twin = derivative.twin is not None
    return Derivative(apply, gradient, twin if has_twin else None, twin if has_twin else apply)


def _same_outputs(
    name: str, function: Callable[..., PyTree], point: list[jax.Array], outputs: list[jax.ShapeDtypeStruct]
) -> None:
    shapes = [y.shape for y in jax.eval_shape(function, point)]
    if shapes != [y.shape for y in outputs]:
        raise ValueError(f"the {name} returns shapes {shapes}, the function {[y.shape for y in outputs]}")


def _takes_double(apply: Callable[..., PyTree], point: list[jax.Array], own: list[jax.Array]) -> bool:
    """Whether the function and its backward pass take float64, and do not round to less on the way."""
    try:
        outputs = jax.eval_shape(lambda point: apply(point, ()), point)
    except Exception:  # any reason of the function's own
        return False
    if not all(o.dtype == np.float64 for o in outputs):
        return False
    if all(leaf.dtype == np.float64 for leaf in own):
        return True

    def gradient(point):
        values, vjp = jax.vjp(lambda point: apply(point, ()), point)
        return vjp(values)

    try:
        return not plain.loses_precision(gradient, point)
    except Exception:  # the contract will say what is wrong
        return False


def _broken_structure(apply: Callable[..., PyTree], own: list[jax.Array]) -> str:
    """What is wrong with the trees, shapes and dtypes of the cotangents, for the arguments as they came."""

    def gradient(point):
        outputs, vjp = jax.vjp(apply, point)
        return vjp(outputs)[0]

    try:
        bars = jax.eval_shape(gradient, own)
    except Exception as error:
        return first_line(error)
    for x, bar in zip(own, bars, strict=True):
        if bar.dtype != x.dtype:
            return f"a cotangent of type {bar.dtype} for an argument of type {x.dtype}"
    return ""


def _special(
    f: Callable[..., PyTree],
    args: tuple[PyTree, ...],
    kwargs: dict[str, Any] | None,
    argnums: int | Sequence[int] | None,
    options: _Options,
) -> Report | str:
    """The report at a special point, or why the function does not take it."""
    try:
        return _at(f, Arguments(f, args, kwargs, argnums), replace(options, order=1))
    except Exception as error:  # any reason of the function's own: other shapes, values that it refuses
        return first_line(error)


def _at(f: Callable[..., PyTree], arguments: Arguments, options: _Options) -> Report:
    """The report at one point."""
    with jax.enable_x64(True), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        prepared = _prepare(f, arguments, options)
        calls_back = plain.calls_back(lambda point: prepared.derivative.apply(point, ()), prepared.point)
        with _everywhere() if calls_back else contextlib.nullcontext():
            rows, notes = _rows(prepared, arguments, options)
    hints = [f"{row.path}: {row.hint}" for row in rows if row.hint]
    return Report(tuple(rows), (), tuple(notes), tuple(dict.fromkeys(hints)))


def _in_double() -> bool:
    """Whether double precision is on in this thread."""
    return jax.dtypes.canonicalize_dtype(float) == np.float64


@contextlib.contextmanager
def _everywhere() -> Iterator[None]:
    """Double precision on all threads: callbacks run on one of their own."""
    with ThreadPoolExecutor(1) as other:  # this thread may be in a context that hides the setting of all
        before = other.submit(_in_double).result()
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def _rows(prepared: _Prepared, arguments: Arguments, options: _Options) -> tuple[list[Row], list[str]]:
    asked = options.oracles
    rows: list[Row] = []
    if "contract" in asked:
        rows.append(contract.structure_row(prepared.structure))
    if prepared.structure:
        said = "The backward pass gives no gradient at all, so its values were not checked."
        return rows or [contract.structure_row(prepared.structure)], [said]
    eps = max(float(jnp.finfo(x.dtype).eps) for x in (*prepared.point, *prepared.outputs))
    directions = choose_directions(
        [leaf.size for leaf in prepared.point], options.missed, options.every_coordinate_up_to
    )
    y_bars = [random_like(prepared.outputs, 2 * options.seed + i) for i in range(2)]
    question = Question(
        prepared.derivative, prepared.point, (), arguments.names, y_bars, directions, options.seed, eps,
        tolerance=options.tolerance, complex=arguments.complex, outputs=prepared.names,
    )  # fmt: skip
    outcome = answers(question, asked, arguments.is_real, options.reference, options.surrogate)
    rows += outcome.rows
    notes = list(outcome.notes)
    if "rounding" in asked and prepared.double and not outcome.wrong_twin:
        try:
            rows += rounding.undecided_at_kinks(rounding.of_function(question, arguments.dtypes), rows)
        except NotAskedError as error:
            notes.append(f"Not asked: rounding ({error}).")
    if options.order == 2 and all(row.passed is not False for row in rows):
        second = prepared.second
        if outcome.wrong_twin:  # it is not trusted any further
            second = replace(second, twin=None, values=second.apply, programs={})
        drawn = [random_like(prepared.point, 2 * options.seed + i) for i in (2, 3)]
        again = replace(question, derivative=second, others=y_bars[0], y_bars=drawn, found=())
        of_second = answers(again, asked, arguments.is_real)
        rows += [replace(row, path=f"{row.path} (second)") for row in of_second.rows]
        notes += [f"To second order: {note}" for note in of_second.notes if note not in notes]
    return rows, notes
