"""Random models of all layers that have rules, to see that right gradients are not rejected."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from bpresearch import chainrule
from bpresearch.functional import Loss, TrainingLoss, as_inputs
from bpresearch.verify.detection.cases import (
    INTEGER_INPUTS,
    LAYERS,
    TARGETS,
    perturb,
    probabilities,
    shapes_of,
)
from bpresearch.verify.detection.traced_models import is_finite, random_traced_model
from bpresearch.verify.objectives import DTYPES, Prepared, prepare
from bpresearch.verify.precision import is_floating
from bpresearch.verify.report import VALUES, Report

LARGEST = 48
"""No layer's output has more numbers for one example."""


@dataclass(frozen=True)
class Architecture:
    """A model without its numbers: `draw` gives it some."""

    layers: tuple[str, ...]
    model: nnx.Module
    loss_fn: Loss
    shape: tuple[int, ...]
    outputs: tuple[int, ...]
    integers: int

    def draw(self, rng: np.random.Generator) -> tuple[nnx.Module, PyTree, PyTree]:
        """The model with random parameters, inputs and targets, of scales between 1e-3 and 1e3."""
        model = nnx.clone(self.model)
        perturb(model, rng, 10 ** rng.uniform(-3, 0))
        if self.integers:
            x: np.ndarray = rng.integers(0, self.integers, self.shape)
        else:
            x = (10 ** rng.uniform(-3, 3) * rng.normal(size=self.shape)).astype(np.float32)
        y = TARGETS.get(self.loss_fn.__name__, probabilities)(rng, self.outputs)
        return model, x, jax.tree.map(lambda leaf: leaf.astype(np.float32) if is_floating(leaf) else leaf, y)


def random_architecture(rng: np.random.Generator) -> Architecture:
    """One to five layers and a loss, of any that have rules; every dimension is 1 to 5, the batch 1 to 4."""
    while True:
        registered = {getattr(target, "__name__", ""): target for target in chainrule.registered()}
        optax = [n for n, t in registered.items() if getattr(t, "__module__", "").startswith("optax")]
        losses = [registered[name] for name in optax if name not in LAYERS]
        functions = [n for n, t in registered.items() if not isinstance(t, type) and t not in losses]
        names = sorted({*LAYERS, *functions})
        rngs = nnx.Rngs(int(rng.integers(2**31)))
        batch = int(rng.integers(1, 5))
        shape: tuple[int, ...] = tuple(int(n) for n in rng.integers(1, 6, rng.integers(1, 4)))
        layers: list[Any] = []
        chosen: list[str] = []
        integers = 0
        embeddings = list(INTEGER_INPUTS)
        if embeddings and rng.random() < 0.1:
            chosen.append(str(rng.choice(embeddings)))
            integers, make = INTEGER_INPUTS[chosen[0]]
            layers.append(make(rngs))
            x = jax.ShapeDtypeStruct((batch, *shape[:2]), np.int32)
        else:
            x = jax.ShapeDtypeStruct((batch, *shape), np.float32)
        inputs, outputs = x, shapes_of(layers[0], x) if layers else x
        for _ in range(rng.integers(1, 6)):
            name = str(rng.choice(names))
            layer, after = _fitting(name, registered.get(name), outputs, rngs)
            if layer is not None:
                layers, chosen, outputs = [*layers, layer], [*chosen, name], after
        loss_fn = losses[rng.integers(len(losses))]
        if layers and outputs.ndim > 1 and _takes(loss_fn, outputs.shape, rng):
            names_of_all = (*chosen, loss_fn.__name__)
            model = nnx.Sequential(*layers)
            return Architecture(names_of_all, model, loss_fn, inputs.shape, outputs.shape, integers)


def _fitting(name: str, target: Any, x: jax.ShapeDtypeStruct, rngs: nnx.Rngs) -> tuple[Any, Any]:
    """A layer for inputs like `x` and what it makes of them; None where it does not take them."""
    dimensions, make = LAYERS.get(name, ((), lambda shape, rngs: target))
    if len(dimensions) > 1 and x.ndim != len(dimensions) + 1:
        return None, None
    try:
        layer = make(x.shape[1:], rngs)
        after = shapes_of(layer, x)
    except Exception:  # any reason why a layer does not take such a shape
        return None, None
    fits = hasattr(after, "shape") and after.shape[:1] == x.shape[:1]
    small = fits and after.dtype == np.float32 and 0 < int(np.prod(after.shape[1:])) <= LARGEST
    return (layer, after) if small else (None, None)


def _takes(loss_fn: Loss, shape: tuple[int, ...], rng: np.random.Generator) -> bool:
    try:
        y = TARGETS.get(loss_fn.__name__, probabilities)(rng, shape)
        jax.eval_shape(loss_fn, jax.ShapeDtypeStruct(shape, np.float32), *as_inputs(y))
    except Exception:  # any reason, such as labels where there is no class but the blank
        return False
    return True


@dataclass(frozen=True)
class TracedArchitecture:
    """A model with a `__call__` and a loss of its own, without its numbers: `draw` gives it some."""

    layers: tuple[str, ...]
    model: nnx.Module
    loss_fn: TrainingLoss
    batch: dict[str, np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the inputs."""
        return np.shape(self.batch["x"])

    def draw(self, rng: np.random.Generator) -> tuple[nnx.Module, PyTree, PyTree]:
        """The model with other parameters and data, of other scales; with its own where those overflow."""
        for _ in range(5):
            model = nnx.clone(self.model)
            perturb(model, rng, 10 ** rng.uniform(-3, 0))
            batch = {name: _redrawn(leaf, rng) for name, leaf in self.batch.items()}
            if is_finite(model, self.loss_fn.loss, batch):
                return model, (), batch
        return self.model, (), self.batch


def _redrawn(leaf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other numbers of a similar kind: whole numbers in another order, others near these at another scale."""
    if not is_floating(leaf):
        return rng.permutation(leaf)
    moved = leaf * (1 + 0.3 * rng.normal(size=np.shape(leaf))) * 10 ** rng.uniform(-1, 1)
    return np.asarray(moved, leaf.dtype)


def traced_architecture(rng: np.random.Generator) -> TracedArchitecture:
    """One as users write them: see `traced_models`."""
    model, loss, batch = random_traced_model(rng)
    return TracedArchitecture((model.name,), model, TrainingLoss(loss), batch)


@dataclass
class Verified:
    """What was said about models whose gradients are right: `undecided` counts leaves."""

    verified: int = 0
    architectures: int = 0
    rejected: int = 0
    leaves: int = 0
    undecided: int = 0
    undecided_models: int = 0
    complaints: list[str] = field(default_factory=list)


def verify_many(
    count: int,
    draws: int,
    seed: int = 0,
    track: Callable[[Iterable[int]], Iterable[int]] = lambda numbers: numbers,
) -> Verified:
    """Verifies `count` random models, so many `draws` of each architecture, with every oracle.

    Every other architecture is a chain of layers with rules, the others are as users write them. The working
    precision goes from float64 to float32 to bfloat16 with the architectures.
    """
    rng, result = np.random.default_rng(seed), Verified()
    check: Any = None
    for number in track(range(count)):
        if number % draws == 0:
            kind = random_architecture if result.architectures % 2 == 0 else traced_architecture
            dtype = DTYPES[result.architectures // 2 % len(DTYPES)]
            result.architectures += 1
            is_number = False
            while not is_number:  # of one example, say, some losses are never a number
                architecture = kind(rng)
                model, x, y = architecture.draw(rng)
                check = prepare(model, architecture.loss_fn, x, y, dtype)
                is_number, _ = _drawn(architecture, check, rng)
        _, (model, x, y) = _drawn(architecture, check, rng)
        report = check(model, x, y, seed=number)
        decided = verdicts(report)
        result.verified += 1
        result.leaves += len(decided)
        result.undecided += sum(verdict is None for verdict in decided.values())
        result.undecided_models += report.passed is None
        if report.passed is not True:
            said = "rejected" if report.passed is False else "undecided"
            result.rejected += report.passed is False
            what = f"{', '.join(architecture.layers)} at {architecture.shape} in {dtype}"
            result.complaints.append(f"{said}: model {number}, {what}: {report.summary()}")
    return result


def _drawn(
    architecture: Architecture | TracedArchitecture, check: Prepared, rng: np.random.Generator
) -> tuple[bool, tuple[nnx.Module, PyTree, PyTree]]:
    """Numbers with which the loss is one, if five draws give some: without, it has no gradient."""
    for _ in range(5):
        model, x, y = architecture.draw(rng)
        if np.isfinite(check.value(model, x, y)):
            return True, (model, x, y)
    return False, (model, x, y)


def verdicts(report: Report) -> dict[str, bool | None]:
    """The verdict on each leaf: wrong if any oracle says so, undecided if none can tell."""
    by_path: dict[str, bool | None] = {}
    for row in report.rows:
        if row.oracle in (*VALUES, "rounding"):
            before = by_path.get(row.path)
            by_path[row.path] = False if False in (before, row.passed) else before or row.passed
    return by_path
