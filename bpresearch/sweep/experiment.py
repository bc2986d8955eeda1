"""What the runs of a sweep have in common."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import PyTree

from bpresearch.autodiff import gradient as autodiff_gradient
from bpresearch.functional import split
from bpresearch.optim import hyperparameters, mup
from bpresearch.platform import DTYPES
from bpresearch.sweep.options import Settings, chosen, parameters, structural
from bpresearch.sweep.task import Task
from bpresearch.train import Training

STEPS_IN_A_CHUNK = 500
"""Steps of each run, at most, after which a program returns to the host."""


@dataclass(frozen=True)
class Experiment(Task):
    """A task and how long to train on it; the axes of a sweep hold the rest.

    Attributes:
        gradient: `autodiff.gradient` or `chainrule.gradient`.
        steps: number of updates of a run, of the longest if `steps` is an axis.
        eval_every: steps between two evaluations; the first comes before the first step, one at each end.
        validation: fraction of the training examples held out to choose hyper-parameters by, if the data have
            no part for that; the examples are drawn with a fixed seed. 0 holds none out.
        dtype: format of parameters, data and arithmetic.
        choose: the metric that settings are chosen by: `loss`, lower is better; any other, higher is better;
            `-name`, lower is better. Default: the accuracy where there is one, else the loss.
        ends: steps after which some run ends, if `steps` is an axis.
        mup: options that make the model of base width, such as `{"width": 64}`: learning rates and initial
            weights are scaled by how much wider a model is (`optim.mup`). None: they are not.
    """

    gradient: Callable[..., PyTree] = autodiff_gradient
    steps: int = 1000
    eval_every: int = 50
    validation: float = 0.1
    dtype: DTypeLike = jnp.float32
    choose: str | None = None
    ends: tuple[int, ...] = ()
    mup: Settings | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: a run takes at least 1 step")
        if self.eval_every < 1:
            raise ValueError(f"eval_every={self.eval_every}: takes at least 1 step")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation={self.validation}: takes a fraction of at least 0 and below 1")
        if self.training_examples < 1:
            raise ValueError(f"validation={self.validation} leaves no example to train on")
        if self.loss is optax.losses.cosine_similarity:
            raise ValueError(
                "loss=cosine_similarity: is largest where outputs are right, and training makes it small: "
                "take cosine_distance"
            )

    @property
    def training_examples(self) -> int:
        """Number of examples that are trained on."""
        return self.count if self.has_valid else self.count - round(self.validation * self.count)

    @property
    def choosing_part(self) -> str:
        """The part that settings are chosen on: the examples held out, or without any the test part."""
        return "valid" if self.has_valid or self.training_examples < self.count else "test"

    @cached_property
    def eval_steps(self) -> np.ndarray:
        """Steps before each evaluation."""
        ends = {end for end in self.ends if end < self.steps}
        return np.array(sorted({*range(0, self.steps, self.eval_every), *ends, self.steps}))

    @property
    def steps_in_a_segment(self) -> int:
        """Steps that a program takes between two looks at whether to evaluate."""
        return -(-self.eval_every // -(-self.eval_every // STEPS_IN_A_CHUNK))

    @property
    def segments_in_a_chunk(self) -> int:
        """Segments that a program can do before it returns to the host."""
        return min(STEPS_IN_A_CHUNK // self.steps_in_a_segment, len(self.eval_steps) - 1) or 1

    def of(self, settings: Settings) -> "Experiment":
        """The experiment of the runs with these settings, where how they are trained is an axis."""
        changes: dict[str, Any] = {}
        if "steps" in settings:
            changes["steps"] = settings["steps"]
            changes["eval_every"] = min(self.eval_every, settings["steps"])
        if "precision" in settings:
            changes["dtype"] = DTYPES[settings["precision"]]
        if "gradient" in settings:
            changes["gradient"] = settings["gradient"]
        return dataclasses.replace(self, **changes) if changes else self

    def in_format(self) -> AbstractContextManager[object]:
        """Where its programs are compiled and called: double precision is on for float64 alone."""
        return jax.enable_x64(np.dtype(self.dtype) == np.float64)

    def training(self, settings: Settings) -> Training:
        """What a program trains: runs with these settings, but for what is an input of the program."""
        model = settings.get("model", self.model)
        options = {n: v for n, v in self.model_options.items() if n in parameters("model", model)}
        options |= chosen("model", settings, model)
        fixed = structural(settings)
        if "steps" in hyperparameters(settings["optimizer"]):
            fixed = {"steps": self.steps} | fixed
        optimizer: Any = settings["optimizer"]

        build: Callable[[nnx.Rngs], nnx.Module] = partial(self.build, model, options)
        if self.mup is not None:
            narrow = options | self.mup
            base = split(nnx.eval_shape(lambda: self.build(model, narrow, nnx.Rngs(0))))[1]
            build, optimizer = mup.widened(build, base), mup.scaled(optimizer, base)
        optimizer = partial(optimizer, **fixed) if fixed else optimizer
        return Training(build, self.objective, self.gradient, optimizer, self.dtype, self.all_metrics)

    def examples(self) -> dict[str, PyTree]:
        """The parts of the data: `train`, `valid` unless none is held out, and `test`."""
        parts = dict(self.parts)
        if "valid" not in parts:
            order = np.random.default_rng(0).permutation(self.count)
            indices = [np.sort(part) for part in np.split(order, [self.training_examples])]
            train, valid = (jax.tree.map(lambda a, i=index: a[i], parts["train"]) for index in indices)
            held_out = {"valid": valid} if len(indices[1]) else {}
            parts = {"train": train, **held_out, "test": parts["test"]}
        return jax.tree.map(self._cast, parts)

    def _cast(self, array: np.ndarray) -> np.ndarray:
        if np.issubdtype(array.dtype, np.floating):
            return array.astype(self.dtype)
        short = {np.dtype(np.int64): np.int32, np.dtype(np.uint64): np.uint32}
        return array.astype(short.get(array.dtype, array.dtype))


def as_experiment(task: Task) -> Experiment:
    """A task as an experiment with the defaults of `Experiment`; what is one already, as it is."""
    if isinstance(task, Experiment):
        return task
    return Experiment(**{field.name: getattr(task, field.name) for field in dataclasses.fields(Task)})
