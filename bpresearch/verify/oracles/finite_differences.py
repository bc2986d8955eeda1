"""Finite differences: a derivative from values of the function alone, on the host side.

What is measured in which way, and the estimates made of it. The numerics are in `bpresearch.verify.ladder`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

from bpresearch.verify.directions import Directions
from bpresearch.verify.ladder import coordinate_derivatives, directional_derivatives, richardson
from bpresearch.verify.plain import NotOfValuesError, holding_constants
from bpresearch.verify.precision import compiled
from bpresearch.verify.question import Derivative, NotAskedError, Question, first_line
from bpresearch.verify.spread import Spreads
from bpresearch.verify.verdict import COARSEST, Estimates

name = "finite differences"

SAFETY = 10.0
"""A difference from the estimate is an error when it is this many times the estimate's uncertainty."""

SHARPEST = 1e-7
"""The smallest relative error that this oracle is asked to see, in float64."""

BLUNTEST = 1e-4
"""The largest relative uncertainty with which it still gives an answer, in float64."""

INFLUENCE = 1e-6
"""Errors are relative at least to what changes the function so many times less than the leaf that matters
most: of leaves that matter less, differences see only rounding."""

LONG = 64
"""With more elements than this in a leaf that is taken in every coordinate, the short way comes first."""

SHARED = 2048
"""Leaves of at most so many elements share a loop there: small ones take longer to compile than to run."""

SURROGATE = (
    "the function itself does not change here: if another derivative is meant, as of a straight-through "
    "estimator, declare it with surrogate="
)

Measured = dict[str, np.ndarray]
"""What was measured in each direction: see `ladder.directional_derivatives` and `ladder.richardson`."""


def resolution(eps: float) -> tuple[float, float]:
    """The smallest error asked for and the largest uncertainty borne, in a precision, as eps^(2/3)."""
    coarser = (eps / np.finfo(np.float64).eps) ** (2 / 3)
    return min(SHARPEST * coarser, 1e-2), min(BLUNTEST * coarser, 3e-2)


def measure(question: Question, together: bool = False, spread: bool = False) -> Measured:
    """Derivatives of the scalar in every direction of the question.

    Args:
        question: about a derivative whose answer is known.
        together: whether the steps of the ladder are evaluated side by side, for functions that `jax.vmap`
            takes, and long leaves go the short way.
        spread: whether all devices take part in that.

    Raises:
        NotAskedError: values are held constant inside a loop, or the function cannot be evaluated so.
    """
    others = question.others, question.y_bars[0]
    arguments = question.derivative, question.point, question.found, question.directions, question.seed
    try:
        return _measure(*arguments, together, others, spread)
    except NotOfValuesError as error:
        raise NotAskedError(str(error)) from error
    except (NotImplementedError, TypeError, ValueError) as error:
        raise NotAskedError(first_line(error)) from error


def _measure(
    derivative: Derivative,
    point: list[Array],
    gradient: Sequence[np.ndarray],
    directions: Directions,
    seed: int,
    together: bool,
    others: tuple[PyTree, ...],
    spread: bool,
) -> Measured:
    measured: Measured = {}
    on_the_ladder = np.ones(len(directions.leaf), bool)
    short = [i for i, leaf in enumerate(point) if leaf.size and directions.in_every_coordinate(i)]
    takes_it = together and max((point[leaf].size for leaf in short), default=0) > LONG
    if takes_it:
        alone = [(leaf,) for leaf in short if point[leaf].size > SHARED]
        shared = tuple(leaf for leaf in short if point[leaf].size <= SHARED)
        groups = (*alone, *filter(None, [shared]))
        bound = any(getattr(leaf, "committed", False) for leaf in jax.tree.leaves((point, others)))
        is_spread = spread and len(jax.local_devices()) > 1 and not bound
        program = derivative.programs.get(way := ("short way", groups, is_spread))
        if program is None:
            program = derivative.programs[way] = _short_way(derivative.scalar, groups, is_spread)
        centre, answers = jax.device_get(program(point, others))
        for group, differences in zip(groups, answers, strict=True):
            mine = np.isin(directions.leaf, group)
            predicted = np.concatenate([np.ravel(gradient[leaf]) for leaf in group])
            sides = {"right": differences["estimate"], "left": differences["estimate"]}
            sides |= {"side_uncertainty": differences["uncertainty"], "predicted": predicted}
            _enter(measured, mine, differences | sides | {"here": np.full(predicted.shape, centre)})
        on_the_ladder = ~np.isin(directions.leaf, short) | _doubtful(measured, directions, point[0].dtype)
    climbed = np.flatnonzero(on_the_ladder)
    if climbed.size or not measured:  # without any element, for the names of what is measured
        # Rounded up to a power of two, so that few programs serve all numbers of doubts.
        count = 2 ** math.ceil(math.log2(climbed.size)) if takes_it else climbed.size
        padded = np.resize(climbed, count)
        chosen = Directions(directions.leaf[padded], directions.coordinate[padded])
        ladder = derivative.program(("ladder", together), lambda: _ladder(derivative.scalar, together))
        on_device = [jnp.asarray(g) for g in gradient]
        differences = jax.device_get(ladder(point, on_device, chosen, np.uint32(seed % 2**32), others))
        eps = float(jnp.finfo(differences["here"].dtype).eps)
        above, below, centre, scale = (differences[name] for name in ("above", "below", "here", "scale"))
        differences |= richardson(above, below, centre, scale, eps)
        _enter(
            measured, on_the_ladder, {name: values[: climbed.size] for name, values in differences.items()}
        )
    return measured


def _ladder(function: Callable[..., Array], together: bool) -> Callable[..., PyTree]:
    """`directional_derivatives` of `function(point, *others)`."""

    def program(point, gradient, directions, seed, others):
        return directional_derivatives(
            lambda point: function(point, *others), point, gradient, directions, seed, together
        )

    return program


def _short_way(
    function: Callable[..., Array], groups: tuple[tuple[int, ...], ...], spread: bool
) -> Callable[..., PyTree]:
    """`coordinate_derivatives` in every coordinate of groups of leaves, on one device or spread over all."""

    def program(point, others):
        devices = len(jax.local_devices()) if spread else 1

        def derivatives(coordinates, point, others):
            # Compiled by itself, so that it is traced once for all groups.
            held = jax.jit(holding_constants(lambda point: function(point, *others), point))
            differences = map(partial(coordinate_derivatives, held, point), groups, coordinates)
            return held(point), list(differences)

        if spread:
            mesh = Mesh(np.array(jax.local_devices()), ("devices",))
            shared, everywhere = PartitionSpec("devices"), PartitionSpec()
            arguments, results = (shared, everywhere, everywhere), (everywhere, shared)
            derivatives = jax.shard_map(
                derivatives, mesh=mesh, in_specs=arguments, out_specs=results, check_vma=False
            )
        sizes = [sum(point[leaf].size for leaf in group) for group in groups]
        coordinates = [jnp.minimum(jnp.arange(-(-size // devices) * devices), size - 1) for size in sizes]
        centre, differences = derivatives(coordinates, point, others)
        return centre, [
            jax.tree.map(lambda a, n=n: a[:n], f) for f, n in zip(differences, sizes, strict=True)
        ]

    return compiled(program, optimization=1)


def _doubtful(measured: Measured, directions: Directions, dtype: np.dtype) -> np.ndarray:
    """Which derivatives the short way does not confirm, or not as sharply as ten times what is asked for."""
    count = np.bincount(directions.leaf)
    squares = np.bincount(directions.leaf, measured["predicted"] ** 2)
    typical = np.sqrt(squares / np.maximum(count, 1))[directions.leaf]
    sharpest, bluntest = (relative * typical for relative in resolution(float(jnp.finfo(dtype).eps)))
    error, uncertainty = (
        np.abs(measured["estimate"] - measured["predicted"]),
        SAFETY * measured["uncertainty"],
    )
    confirmed = error <= np.maximum(sharpest, uncertainty)
    return ~(confirmed & (uncertainty <= np.minimum(10 * sharpest, bluntest)))


def _enter(measured: Measured, where: np.ndarray, differences: Measured) -> None:
    for name, values in differences.items():
        values = np.asarray(values)
        whole = measured.setdefault(name, np.zeros((where.size, *values.shape[1:])))
        whole[where] = values


def noise(question: Question, rounds: int) -> tuple[float, int]:
    """The spread of the scalar itself, and the degrees of freedom it was measured with."""
    programs = question.derivative.programs
    spreads = programs.setdefault(("spread", "scalar"), Spreads(question.derivative.scalar))
    arguments = question.point, question.others, question.y_bars[0]
    spread = spreads(arguments, rounds, question.seed)
    return float(spread.sizes[0]), spread.freedom


def scales(question: Question, measured: Measured) -> list[float]:
    """What errors of each leaf along a direction are relative to.

    The norm of the leaf's derivative for random directions, its root mean square for coordinates; at least
    `INFLUENCE` of that of the leaf that matters most, when all move in proportion to their size.
    """
    directions = question.directions
    norms = [float(np.linalg.norm(np.nan_to_num(g, posinf=0.0, neginf=0.0))) for g in question.found]
    steps = [measured["scale"][directions.of(leaf)].max(initial=0.0) for leaf in range(len(norms))]
    moved = np.max(
        np.abs(measured["estimate"] * measured["scale"]), initial=0.0, where=np.isfinite(measured["estimate"])
    )
    influence = max([abs(question.value), moved, *(n * s for n, s in zip(norms, steps, strict=True))])
    yardsticks = []
    for leaf, (size, norm, step) in enumerate(zip(question.sizes, norms, steps, strict=True)):
        typical = norm / math.sqrt(max(size, 1)) if directions.in_every_coordinate(leaf) else norm
        yardsticks.append(max(typical, INFLUENCE * influence / step if step else 0.0) or 1.0)
    return yardsticks


def kinked(question: Question, measured: Measured) -> np.ndarray:
    """In which directions the derivatives to the right and to the left differ."""
    scale = np.asarray(scales(question, measured))[question.directions.leaf]
    sharpest, _ = resolution(question.eps)
    doubt = SAFETY * np.maximum(measured["side_uncertainty"], measured["uncertainty"])
    return np.abs(measured["right"] - measured["left"]) > np.maximum(sharpest * scale, doubt)


def estimates(question: Question, measured: Measured) -> Iterator[Estimates]:
    """One for each leaf; silent in directions in which there is a kink."""
    sharpest, bluntest = resolution(question.eps)
    kinks = kinked(question, measured)
    for leaf, (path, scale) in enumerate(zip(question.names, scales(question, measured), strict=True)):
        mine = question.directions.of(leaf)
        steps = measured["step"][mine] if "step" in measured else np.ones(mine.sum())

        def spread(rounds, steps=steps):
            size, freedom = noise(question, rounds)
            return math.sqrt(2) * size / steps, freedom

        detail = question.directions.describe(leaf)
        if kinks[mine].any():
            detail += f", {int(kinks[mine].sum())} at a kink: not differentiable there"
        yield Estimates(
            name, path, question.shape(leaf), measured["predicted"][mine], measured["estimate"][mine],
            scale=scale,
            uncertainty=np.where(
                kinks[mine] | _immovable(question, leaf), np.inf, SAFETY * measured["uncertainty"][mine]
            ),
            measure=spread,
            agreement=sharpest,
            coarsest=max(bluntest, COARSEST if question.eps > 1e-10 else 0.0),
            detail=detail,
            hint=partial(_surrogate, measured, mine),
        )  # fmt: skip


def _immovable(question: Question, leaf: int) -> np.ndarray:
    """In which directions the point is infinite, and a step leads nowhere."""
    finite = np.isfinite(np.asarray(question.point[leaf])).ravel()
    coordinates = question.directions.coordinate[question.directions.of(leaf)]
    return np.where(coordinates < 0, not finite.all(), ~finite[np.maximum(coordinates, 0)])


def _surrogate(measured: Measured, mine: np.ndarray) -> str:
    """What to do where the function does not change in these directions, though its derivative says so."""
    size = np.max(np.abs(measured["predicted"][mine]), initial=0.0)
    flat = np.max(np.abs(measured["estimate"][mine]), initial=0.0) <= 1e-9 * size
    return SURROGATE if flat else ""
