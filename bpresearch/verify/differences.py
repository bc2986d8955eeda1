"""A gradient against finite differences: what is measured in which way, and a verdict on each leaf."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from bpresearch.verify.comparison import SAFETY, resolution
from bpresearch.verify.directions import Directions
from bpresearch.verify.finite_differences import coordinate_derivatives, directional_derivatives, step_scale
from bpresearch.verify.kinks import at_kinks
from bpresearch.verify.precision import compiled

TYPICAL_STEP = 1e-3
"""Of the steps that differences are taken over, relative to the root mean square of the leaf."""

LONG = 64
"""Leaves of more elements than this that are taken in every coordinate go the short way first."""


@lru_cache(maxsize=16)
def _ladder(function: Callable[..., Array], together: bool) -> Any:
    """`directional_derivatives` of `function(point, *others)`, compiled once for so many directions."""

    def program(point, gradient, directions, seed, others):
        return directional_derivatives(
            lambda point: function(point, *others), point, gradient, directions, seed, together
        )

    return compiled(program)


@lru_cache(maxsize=64)
def _short_way(function: Callable[..., Array], leaf: int, spread: bool) -> Any:
    """`coordinate_derivatives` in every coordinate of a leaf, on one device or spread over all of them."""

    def program(point, others):
        def some(coordinates, point, others):
            return coordinate_derivatives(lambda p: function(p, *others), point, leaf, coordinates)

        size, devices = point[leaf].size, 1
        if spread:
            devices, spec, everywhere = len(jax.local_devices()), PartitionSpec("devices"), PartitionSpec()
            mesh = Mesh(np.array(jax.local_devices()), ("devices",))
            arguments = spec, everywhere, everywhere
            some = jax.shard_map(some, mesh=mesh, in_specs=arguments, out_specs=spec, check_vma=False)
        coordinates = jnp.minimum(jnp.arange(-(-size // devices) * devices), size - 1)
        answer = some(coordinates, point, others)
        return function(point, *others), {name: values[:size] for name, values in answer.items()}

    return jax.jit(program)  # runs long: worth an optimised program


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

    Long leaves that are taken in every coordinate go the short way first (not `above`, then, and both sides
    are the same); only where it leaves a doubt is the whole ladder climbed. With `spread`, all devices of
    this process take part in that, unless some array is bound to one.
    """
    sizes = [leaf.size for leaf in point]
    bound = any(getattr(leaf, "committed", False) for leaf in jax.tree.leaves((point, others)))
    spread = spread and len(jax.local_devices()) > 1 and not bound
    long = [
        leaf
        for leaf, size in enumerate(sizes)
        if together and size > LONG and directions.in_every_coordinate(leaf)
    ]
    on_the_ladder = ~np.isin(directions.leaf, long)
    found: dict[str, np.ndarray] = {}
    eps = float(jnp.finfo(point[0].dtype).eps)
    # All are begun before the first is waited for: the longest runs while the others are compiled.
    begun = {
        leaf: _short_way(function, leaf, spread)(point, others)
        for leaf in sorted(long, key=lambda i: -sizes[i])
    }
    for leaf in long:
        mine = directions.of(leaf)
        here, answer = jax.device_get(begun[leaf])
        predicted = np.asarray(gradient[leaf]).ravel()
        scale = np.full(predicted.shape, step_scale(np.asarray(point[leaf])))
        sides = {"right": answer["estimate"], "left": answer["estimate"]}
        sides |= {"side_uncertainty": answer["uncertainty"], "predicted": predicted, "scale": scale}
        _enter(found, mine, answer | sides | {"here": np.full(predicted.shape, here)})
        sharpest, bluntest = (
            r * np.linalg.norm(predicted) / math.sqrt(predicted.size) for r in resolution(eps)
        )
        right = np.abs(answer["estimate"] - predicted) <= np.maximum(sharpest, SAFETY * answer["uncertainty"])
        on_the_ladder[np.flatnonzero(mine)[~(right & (answer["uncertainty"] <= bluntest / SAFETY))]] = True
    climbed = np.flatnonzero(on_the_ladder)
    if climbed.size:
        # Rounded up to a power of two, so that few programs serve all numbers of doubts.
        count = climbed.size if not long else 2 ** math.ceil(math.log2(climbed.size))
        padded = np.resize(climbed, count)
        chosen = Directions(directions.leaf[padded], directions.coordinate[padded])
        ladder = _ladder(function, together)
        on_device = [jnp.asarray(g) for g in gradient]
        answer = jax.device_get(ladder(point, on_device, chosen, jnp.uint32(seed % 2**32), others))
        _enter(found, on_the_ladder, {name: values[: climbed.size] for name, values in answer.items()})
    return found


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
