"""What the runs of a sweep have in common."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bpresearch.autodiff import gradient as autodiff_gradient
from bpresearch.data import Dataset
from bpresearch.sweep.grid import Settings, model_options, structural
from bpresearch.train import Diagnostic, Examples, Training

STEPS_IN_A_CHUNK = 500
"""Steps of each run, at most, after which a program returns to the host."""


@dataclass(frozen=True)
class Experiment:
    """A task and how long to train on it; the axes of a sweep hold the rest.

    Attributes:
        dataset: the data, standardised.
        model: `(input_shape, outputs, *, rngs, **options) -> nnx.Module`, as in `bpresearch.models`.
        loss_fn: `(outputs, targets) -> values`; the loss is their mean.
        model_options: options of the model.
        targets: turns the data set's targets into what the loss takes; default: as they are.
        gradient: `autodiff.gradient` or `chainrule.gradient`.
        steps: number of updates of a run.
        eval_every: steps between two evaluations; the first comes before the first step.
        validation: fraction of the training examples held out to choose hyper-parameters by; the
            examples are drawn with a fixed seed. 0 holds none out.
        dtype: format of parameters, data and arithmetic.
        diagnostics: functions evaluated inside the program at each evaluation, whose results become
            variables of the results, with the dimensions that they name.
    """

    dataset: Dataset
    model: Callable[..., nnx.Module]
    loss_fn: Callable[..., jax.Array]
    model_options: dict[str, Any] = field(default_factory=dict)
    targets: Callable[[np.ndarray], np.ndarray] = np.asarray
    gradient: Callable[..., Any] = autodiff_gradient
    steps: int = 1000
    eval_every: int = 50
    validation: float = 0.1
    dtype: Any = jnp.float32
    diagnostics: tuple[Diagnostic, ...] = ()

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: a run takes at least 1 step")
        if self.eval_every < 1:
            raise ValueError(f"eval_every={self.eval_every}: takes at least 1 step")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation={self.validation}: takes a fraction of at least 0 and below 1")
        if self.training_examples < 1:
            raise ValueError(f"validation={self.validation} leaves no example to train on")

    @property
    def training_examples(self) -> int:
        """Number of examples that are trained on."""
        return len(self.dataset.x) - round(self.validation * len(self.dataset.x))

    @property
    def chosen_by(self) -> str:
        """The variable that settings are chosen by: of the examples held out, or without any of the test
        part; the accuracy where there are classes, else the loss."""
        part = "valid" if self.training_examples < len(self.dataset.x) else "test"
        return f"{part}_loss" if self.dataset.classes is None else f"{part}_accuracy"

    @property
    def evaluations(self) -> int:
        """Number of evaluations of a run after the one before its first step."""
        return -(-self.steps // self.eval_every)

    @property
    def steps_in_a_part(self) -> int:
        """Steps that a program takes between two looks at whether to evaluate."""
        return -(-self.eval_every // -(-self.eval_every // STEPS_IN_A_CHUNK))

    @property
    def parts_in_a_chunk(self) -> int:
        """Parts that a program can do before it returns to the host."""
        return min(STEPS_IN_A_CHUNK // self.steps_in_a_part, self.evaluations) or 1

    def training(self, settings: Settings) -> Training:
        """What a program trains: runs with these settings, but for what is an input of the program."""

        model = settings.get("model", self.model)
        taken = model_options(model)
        options = {**self.model_options, **settings}
        options = {name: options[name] for name in taken if name in options}
        fixed = structural(settings)
        optimizer = partial(settings["optimizer"], **fixed) if fixed else settings["optimizer"]

        def build(rngs: nnx.Rngs) -> nnx.Module:
            return model(self.dataset.input_shape, self.dataset.outputs, rngs=rngs, **options)

        labels = self.dataset.classes is not None
        return Training(build, self.loss_fn, self.gradient, optimizer, self.dtype, labels)

    def examples(self) -> dict[str, Examples]:
        """The parts of the data: `train`, `valid` unless none is held out, and `test`."""
        data = self.dataset
        order = np.random.default_rng(0).permutation(len(data.x))
        chosen, held_out = np.split(order, [self.training_examples])
        parts = {"train": (data.x[np.sort(chosen)], data.y[np.sort(chosen)])}
        if len(held_out):
            parts["valid"] = (data.x[np.sort(held_out)], data.y[np.sort(held_out)])
        parts["test"] = (data.x_test, data.y_test)
        return {name: Examples(self._cast(x), self._cast(self.targets(y))) for name, (x, y) in parts.items()}

    def _cast(self, array: np.ndarray) -> np.ndarray:
        return array.astype(self.dtype) if np.issubdtype(array.dtype, np.floating) else array
