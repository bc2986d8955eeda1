"""A gradient against finite differences: what is measured in which way, and a verdict on each leaf."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from bpresearch.verify.comparison import SAFETY, resolution
from bpresearch.verify.directions import Directions
from bpresearch.verify.finite_differences import coordinate_derivatives, directional_derivatives
from bpresearch.verify.kinks import at_kinks
from bpresearch.verify.plain import holding_constants
from bpresearch.verify.precision import compiled

TYPICAL_STEP = 1e-3
"""Of the steps that differences are taken over, relative to the root mean square of the leaf."""

LONG = 64
"""With more elements than this in a leaf that is taken in every coordinate, the short way comes first."""

SHARED = 2048
"""Leaves of at most so many elements share a loop there: small ones take longer to compile than to run."""


@lru_cache(maxsize=16)
def _ladder(function: Callable[..., Array], together: bool) -> Any:
    """`directional_derivatives` of `function(point, *others)`, compiled once for so many directions."""

    def program(point, gradient, directions, seed, others):
        return directional_derivatives(
            lambda point: function(point, *others), point, gradient, directions, seed, together
        )

    return compiled(program)


@lru_cache(maxsize=16)
def _short_way(function: Callable[..., Array], groups: tuple[tuple[int, ...], ...], spread: bool) -> Any:
    """`coordinate_derivatives` in every coordinate of groups of leaves, on one device or spread over all."""

    def program(point, others):
        devices = len(jax.local_devices()) if spread else 1

        def derivatives(coordinates, point, others):
            # Compiled by itself, so that it is traced once for all groups.
            held = jax.jit(holding_constants(lambda point: function(point, *others), point))
            found = map(partial(coordinate_derivatives, held, point), groups, coordinates)
            return held(point), list(found)

        if spread:
            mesh = Mesh(np.array(jax.local_devices()), ("devices",))
            shared, everywhere = PartitionSpec("devices"), PartitionSpec()
            arguments, results = (shared, everywhere, everywhere), (everywhere, shared)
            derivatives = jax.shard_map(
                derivatives, mesh=mesh, in_specs=arguments, out_specs=results, check_vma=False
            )
        sizes = [sum(point[leaf].size for leaf in group) for group in groups]
        coordinates = [jnp.minimum(jnp.arange(-(-size // devices) * devices), size - 1) for size in sizes]
        here, found = derivatives(coordinates, point, others)
        return here, [jax.tree.map(lambda a, n=n: a[:n], f) for f, n in zip(found, sizes, strict=True)]

    return compiled(program, optimization=1)


def measure(
    function: Callable[..., Array],
    point: list[Array],
    gradient: Sequence[np.ndarray],
    directions: Directions,
    seed: int = 0,
    together: bool = True,
    others: tuple[Any, ...] = (),
    spread: bool = False,
) -> dict[str, np.ndarray]:
    """What `directional_derivatives` of `function(point, *others)` returns, on the host.

    Where some leaf that is taken in every coordinate is long, all that are go the short way first (not
    `above`, then, and both sides are the same); only where it leaves a doubt is the whole ladder climbed.
    With `spread`, all devices of this process take part in that, unless some array is bound to one.
    """
    found: dict[str, np.ndarray] = {}
    on_the_ladder = np.ones(len(directions.leaf), bool)
    short = [i for i, leaf in enumerate(point) if leaf.size and directions.in_every_coordinate(i)]
    takes_it = together and max((point[leaf].size for leaf in short), default=0) > LONG
    if takes_it:
        alone = [(leaf,) for leaf in short if point[leaf].size > SHARED]
        shared = tuple(leaf for leaf in short if point[leaf].size <= SHARED)
        groups = (*alone, *filter(None, [shared]))
        bound = any(getattr(leaf, "committed", False) for leaf in jax.tree.leaves((point, others)))
        program = _short_way(function, groups, spread and len(jax.local_devices()) > 1 and not bound)
        here, answers = jax.device_get(program(point, others))
        for group, answer in zip(groups, answers, strict=True):
            mine = np.isin(directions.leaf, group)
            predicted = np.concatenate([np.ravel(gradient[leaf]) for leaf in group])
            sides = {"right": answer["estimate"], "left": answer["estimate"]}
            sides |= {"side_uncertainty": answer["uncertainty"], "predicted": predicted}
            _enter(found, mine, answer | sides | {"here": np.full(predicted.shape, here)})
        on_the_ladder = ~np.isin(directions.leaf, short) | _doubtful(found, directions, point[0].dtype)
    climbed = np.flatnonzero(on_the_ladder)
    if climbed.size or not found:  # without any element, for the names of what is found
        # Rounded up to a power of two, so that few programs serve all numbers of doubts.
        count = 2 ** math.ceil(math.log2(climbed.size)) if takes_it else climbed.size
        padded = np.resize(climbed, count)
        chosen = Directions(directions.leaf[padded], directions.coordinate[padded])
        ladder = _ladder(function, together)
        on_device = [jnp.asarray(g) for g in gradient]
        answer = jax.device_get(ladder(point, on_device, chosen, np.uint32(seed % 2**32), others))
        _enter(found, on_the_ladder, {name: values[: climbed.size] for name, values in answer.items()})
    return found


def _doubtful(found: dict[str, np.ndarray], directions: Directions, dtype: Any) -> np.ndarray:
    """Which derivatives the short way does not confirm, or not as sharply as ten times what is asked for."""
    count = np.bincount(directions.leaf)
    squares = np.bincount(directions.leaf, found["predicted"] ** 2)
    typical = np.sqrt(squares / np.maximum(count, 1))[directions.leaf]
    sharpest, bluntest = (relative * typical for relative in resolution(float(jnp.finfo(dtype).eps)))
    error, uncertainty = np.abs(found["estimate"] - found["predicted"]), SAFETY * found["uncertainty"]
    confirmed = error <= np.maximum(sharpest, uncertainty)
    return ~(confirmed & (uncertainty <= np.minimum(10 * sharpest, bluntest)))


def _enter(found: dict[str, np.ndarray], where: np.ndarray, answer: dict[str, np.ndarray]) -> None:
    for name, values in answer.items():
        values = np.asarray(values)
        whole = found.setdefault(name, np.zeros((where.size, *values.shape[1:])))
        whole[where] = values


@dataclass(frozen=True)
class Verdict:
    """Error and tolerance of a gradient leaf against finite differences; None is undecided."""

    error: float
    tolerance: float
    passed: bool | None
    detail: str


def judge(
    sizes: Sequence[int],
    norms: Sequence[float],
    directions: Directions,
    found: dict[str, np.ndarray],
    loss: float,
    largest: float = 0.0,
    eps: float = float(np.finfo(np.float64).eps),
) -> list[Verdict]:
    """One verdict for each leaf from the differences in all of its directions.

    Errors are relative to the leaf's gradient: its norm for random directions, its root mean square for
    coordinates; at least to what changes the loss a million times less than the most influential leaf. With
    `largest`, the largest of the numbers that the loss is made of, its rounding counts as one of theirs.
    """
    error = np.abs(found["estimate"] - found["predicted"])
    sharpest, bluntest = resolution(eps)
    norms = [float(np.nan_to_num(norm, posinf=0.0)) for norm in norms]
    step = np.asarray([found["scale"][directions.of(leaf)].max(initial=0.0) for leaf in range(len(sizes))])
    moved = np.max(np.abs(found["estimate"] * found["scale"]), initial=0.0)
    influence = max([abs(loss), moved, *(norm * s for norm, s in zip(norms, step, strict=True))])
    verdicts = []
    for leaf, (size, norm) in enumerate(zip(sizes, norms, strict=True)):
        mine = directions.of(leaf)
        if not mine.any():
            verdicts.append(Verdict(0.0, sharpest, True, "no elements"))
            continue
        every = directions.in_every_coordinate(leaf)
        typical = norm / math.sqrt(size) if every else norm
        scale = max(typical, 1e-6 * influence / step[leaf]) or 1.0
        rounding = eps * largest / (TYPICAL_STEP * found["scale"][mine])
        relative, uncertainty = error[mine] / scale, (found["uncertainty"][mine] + rounding) / scale
        kink, outside = at_kinks({name: values[mine] for name, values in found.items()}, scale, eps)
        predicted = found["predicted"][mine]
        relative = np.where(kink, outside, relative)
        relative = np.where(np.isfinite(predicted), relative, np.inf)
        uncertainty = np.where(kink, found["side_uncertainty"][mine] / scale, uncertainty)
        tolerance = np.maximum(sharpest, SAFETY * uncertainty)
        # Several kinks in one direction can make up for each other: then its two sides bound nothing.
        resolved = (uncertainty <= bluntest) & (every | ~kink | (relative <= tolerance))
        looked = directions.describe(leaf)
        if kink.any():
            looked += f", {int(kink.sum())} at a kink: not differentiable there"
        if not resolved.all():
            looked += f", {int((~resolved).sum())} unresolved"
        if 2 * resolved.sum() < resolved.size:
            least = np.min(relative, initial=np.inf, where=~np.isnan(relative))
            verdicts.append(Verdict(float(least), bluntest, None, looked))
            continue
        worst = np.argmax(np.where(resolved, relative / tolerance, -1.0))
        passed = bool(relative[worst] <= tolerance[worst])
        verdicts.append(Verdict(float(relative[worst]), float(tolerance[worst]), passed, looked))
    return verdicts
