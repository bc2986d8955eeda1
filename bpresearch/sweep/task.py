"""What a user brings: data, model and loss, and metrics and diagnostics of their own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from bpresearch import losses
from bpresearch.data import Dataset
from bpresearch.functional import Loss, TrainingLoss, takes_the_model
from bpresearch.sweep.options import arguments
from bpresearch.train import Diagnostic

PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Task:
    """Data, model and loss.

    >>> def data():
    ...     x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    ...     return {"train": (x, x**2), "test": (x, x**2)}
    >>> def model(*, rngs, width=8):
    ...     return nnx.Sequential(nnx.Linear(1, width, rngs=rngs), nnx.tanh, nnx.Linear(width, 1, rngs=rngs))
    >>> def loss(model, batch):
    ...     x, y = batch
    ...     return jnp.mean((model(x) - y) ** 2, axis=-1)
    >>> axes = bp.sweep.grid(optimizer=bp.optim.sgd, schedule=bp.optim.schedules.constant, lr=[0.1, 0.01],
    ...                      batch_size=10, seed=0, steps=20, width=[4, 8])
    >>> results = bp.sweep.run(Task(data, model, loss), axes, quiet=True)
    >>> dict(results.test_loss.sizes)
    {'run': 4, 'eval_step': 2}

    Attributes:
        data: a `Dataset`; or a dict of its parts, `train`, `test` and, unless some of `train` is to be held
            out, `valid`: trees of arrays, examples first; or a function that returns either.
        model: `(*, rngs, **options) -> nnx.Module`, a function or a class. If it takes `input_shape` or
            `outputs`, it is given the shape of an example and the number of outputs, as the functions of
            `bpresearch.models` are; its other parameters are its options.
        loss: `(model, batch) -> values`, a scalar or one value for each example, or a pair of that and a
            dict of metrics, each of these forms. If it takes `rngs` too, it is given an `nnx.Rngs` that
            moves on with every step. A function whose parameters are not called `model` or `batch`, as
            Optax's are not, is taken as `(outputs, targets) -> values` of batches `(x, y)`, with the
            accuracy as a metric if y are classes. The mean of the values is minimized.
        model_options: options of the model, for all runs.
        targets: turns the targets of pairs (x, y) into what the loss takes; default: as they are.
        metrics: what else evaluations measure, by name: functions as the loss.
        diagnostics: functions evaluated inside the program at each evaluation, whose results become
            variables of the results, with the dimensions that they name.
        name: in the results; default: that of the data.
        source: a digest of the text of the file that the task is from, if it is from one.

    Raises:
        ValueError: the parts are not as above, or a label is negative where a loss of Optax's takes classes.
    """

    data: Any
    model: Callable[..., nnx.Module]
    loss: Callable[..., PyTree]
    model_options: dict[str, Any] = field(default_factory=dict)
    targets: Callable[[np.ndarray], np.ndarray] = np.asarray
    metrics: Mapping[str, Callable[..., PyTree]] = field(default_factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()
    name: str = ""
    source: str = ""

    def __post_init__(self):
        name = self.name or getattr(self.data, "__name__", "")
        if callable(self.data):
            object.__setattr__(self, "data", self.data())
        if not isinstance(self.data, Dataset):
            object.__setattr__(self, "data", checked(self.data))
        object.__setattr__(self, "name", name or getattr(self.data, "name", "data"))
        if self.loss in losses.BY_NAME.values() and self.loss.__name__ in losses.OF_CLASSES:
            for part in self._names:
                losses.targets(self.loss, self.classes, self._pair(part)[1])  # refuses negative labels

    @property
    def parts(self) -> dict[str, PyTree]:
        """The parts of the data as trees of arrays; of a `Dataset`, pairs (x, y)."""
        if self._pair("train")[1] is None:
            return self.data
        return {name: (x, self.targets(y)) for name in self._names for x, y in [self._pair(name)]}

    @property
    def _names(self) -> list[str]:
        return ["train", "test"] if isinstance(self.data, Dataset) else list(self.data)

    @property
    def count(self) -> int:
        """Number of examples in the training part."""
        whole = self.data.x if isinstance(self.data, Dataset) else self.data["train"]
        return len(jax.tree.leaves(whole)[0])

    @property
    def has_valid(self) -> bool:
        """Whether the data have a part to choose settings on."""
        return not isinstance(self.data, Dataset) and "valid" in self.data

    @cached_property
    def objective(self) -> Loss | TrainingLoss:
        """The loss as training takes it."""
        return TrainingLoss(self.loss) if takes_the_model(self.loss) else self.loss

    @cached_property
    def classes(self) -> int | None:
        """Number of classes, if the targets are labels."""
        if isinstance(self.data, Dataset):
            return self.data.classes
        _, y = self._pair("train")
        if y is None or not np.issubdtype(y.dtype, np.integer):
            return None
        return 1 + max(int(self._pair(part)[1].max()) for part in self.data)

    @property
    def all_metrics(self) -> dict[str, Callable[..., PyTree]]:
        """What evaluations measure beside the loss, but for what the loss gives itself."""
        measures = dict(self.metrics)
        if self.classes is not None and not isinstance(self.objective, TrainingLoss):
            measures.setdefault("accuracy", losses.accuracy)
        return measures

    def build(self, model: Callable[..., nnx.Module], options: dict[str, Any], rngs: nnx.Rngs) -> nnx.Module:
        """A model from its function, its options, and what the data say of its inputs and outputs."""
        taken = arguments(model)
        given: dict[str, Any] = {"rngs": rngs}
        if "input_shape" in taken or "outputs" in taken:
            given |= {"input_shape": self.input_shape, "outputs": self.outputs}
        return model(**{name: value for name, value in given.items() if name in taken}, **options)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        x, _ = self._pair("train")
        if x is None:
            raise ValueError(
                f"{self.name}: the model takes input_shape, and the examples are no pairs (x, y)"
            )
        return x.shape[1:]

    @property
    def outputs(self) -> int:
        """Number of outputs of a model: the classes, or the targets of an example."""
        _, y = self._pair("train")
        if self.classes is not None:
            return self.classes
        if y is None:
            raise ValueError(f"{self.name}: the model takes outputs, and the examples are no pairs (x, y)")
        return y.shape[1] if y.ndim > 1 else 1

    def _pair(self, part: str) -> tuple[PyTree, PyTree]:
        """Inputs and targets if the examples are such pairs of arrays, else twice None."""
        data = self.data
        if isinstance(data, Dataset):
            return (data.x, data.y) if part == "train" else (data.x_test, data.y_test)
        pair = isinstance(data[part], tuple) and [isinstance(a, np.ndarray) for a in data[part]]
        return data[part] if pair == [True, True] else (None, None)


def checked(data: object) -> dict[str, PyTree]:
    """The parts of the data as numpy arrays.

    Raises:
        ValueError: they are not a dict with `train` and `test`, hold no examples, or do not fit together.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"data: takes a dict of parts, {', '.join(PARTS)}, not {type(data).__name__}")
    if unknown := set(data) - set(PARTS):
        raise ValueError(f"data: {min(unknown)!r} is not a part; parts are {', '.join(PARTS)}")
    if missing := [name for name in ("train", "test") if name not in data]:
        raise ValueError(f"data: lacks the part {missing[0]!r}; it has {', '.join(map(repr, data))}")
    parts = {name: jax.tree.map(np.asarray, data[name]) for name in PARTS if name in data}
    shapes = {}
    for name, part in parts.items():
        leaves = jax.tree.leaves(part)
        if any(leaf.dtype.kind not in "fiub" and leaf.dtype.name != "bfloat16" for leaf in leaves):
            kinds = ", ".join(str(leaf.dtype) for leaf in leaves)
            raise ValueError(f"data: part {name!r} holds {kinds}: takes numbers and truth values")
        counts = sorted({len(leaf) if leaf.ndim else 0 for leaf in leaves})
        if len(counts) != 1 or not counts[0]:
            number = " and ".join(map(str, counts)) or "no"
            raise ValueError(
                f"data: part {name!r} holds arrays of {number} examples: must be equal, and at least one"
            )
        shapes[name] = jax.tree.map(lambda leaf: leaf.shape[1:], part)
    for name, shape in shapes.items():
        if shape != shapes["train"]:
            raise ValueError(
                f"data: an example of {name!r} has shapes {shape}, one of 'train' {shapes['train']}: "
                "must be equal"
            )
    return parts
