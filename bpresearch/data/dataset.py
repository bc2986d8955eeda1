"""What a data set is."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32, Int32, Shaped


@dataclass(frozen=True)
class Dataset:
    """Training and test examples as numpy arrays.

    Attributes:
        name: the name that `load` takes.
        x: (examples, length, channels) signals, (examples, height, width, channels) images,
            (examples, features) feature vectors, or (examples, length) tokens, integers from 0.
        y: (examples,) class labels from 0, (examples, targets) numbers, or for tokens (examples, length)
            labels, one for each.
        x_test, y_test: the same for the test part.
        classes: number of classes; None for regression.
        description: a sentence with the source, the split, and how the values are standardised.
        target_scale: what a unit of `y` is in the units of the source (1 for classes).

    Raises:
        ValueError: the parts do not fit together, are empty, or hold NaN or infinite values.

    >>> x, y = np.zeros((4, 2), "float32"), np.array([0, 1, 1, 0], "int32")
    >>> data = bp.data.Dataset("xor", x, y, x, y, classes=2, description="exclusive or")
    >>> data.input_shape, data.outputs
    ((2,), 2)
    """

    name: str
    x: Float32[np.ndarray, "train *features"] | Int32[np.ndarray, "train length"]
    y: Int32[np.ndarray, "train *length"] | Float32[np.ndarray, "train targets"]
    x_test: Float32[np.ndarray, "test *features"] | Int32[np.ndarray, "test length"]
    y_test: Int32[np.ndarray, "test *length"] | Float32[np.ndarray, "test targets"]
    classes: int | None
    description: str
    target_scale: float = 1.0

    def __post_init__(self):
        for part, x, y in (("training", self.x, self.y), ("test", self.x_test, self.y_test)):
            if len(x) != len(y):
                raise ValueError(f"{self.name}: {len(x)} {part} examples and {len(y)} targets: must be equal")
            if len(x) == 0:
                raise ValueError(f"{self.name}: there are no {part} examples")
            if not (np.isfinite(x).all() and np.isfinite(y).all()):
                raise ValueError(f"{self.name}: the {part} examples hold NaN or infinite values")
            if self.classes is not None and not (y.min() >= 0 and y.max() < self.classes):
                wrong = y[(y < 0) | (y >= self.classes)][0]
                raise ValueError(f"{self.name}: label {wrong} is not one of 0 to {self.classes - 1}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.x.shape[1:]

    @property
    def tokens(self) -> bool:
        """Whether the examples are sequences of tokens; their vocabulary is that of the labels."""
        return np.issubdtype(self.x.dtype, np.integer)

    @cached_property
    def outputs(self) -> int:
        """Number of outputs of a model: the classes, or the targets of an example."""
        return self.classes if self.classes is not None else self.y.shape[1]


STANDARDIZATIONS = ("features", "none")
"""What `dataset` and the functions that load take as `standardize`."""


def standardized(
    x: Shaped[np.ndarray, "train *features"], x_test: Shaped[np.ndarray, "test *features"]
) -> tuple[Float[np.ndarray, "train *features"], Float[np.ndarray, "test *features"]]:
    """Both parts with the mean and standard deviation of the training part taken out.

    Feature vectors have them taken out feature by feature; signals and images, whose positions measure
    the same thing, all together. Where the standard deviation is zero, only the mean is.
    """
    axis = 0 if x.ndim == 2 else None
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found and named afterwards
        mean = np.mean(x, axis=axis, dtype=np.float64)
        deviation = np.std(x, axis=axis, dtype=np.float64)
        scale = np.where(deviation > 0, deviation, 1.0)
        scale = np.where(np.isfinite(scale), scale, np.nan)
        train, test = (((part - mean) / scale).astype(np.float32) for part in (x, x_test))
    return train, test


def dataset(
    name: str,
    x: Shaped[np.ndarray, "train *features"],
    y: Shaped[np.ndarray, "train *targets"],
    x_test: Shaped[np.ndarray, "test *features"],
    y_test: Shaped[np.ndarray, "test *targets"],
    description: str,
    classes: int | None = None,
    standardize: str = "features",
) -> Dataset:
    """A data set from the arrays of its source, in the formats of `Dataset`.

    Without `classes`, `y` holds numbers. With `standardize="features"` the mean of the training part is
    taken out of inputs and numbers to predict, and they are divided by its standard deviation (see
    `standardized`), which is then `target_scale`; "none" leaves them as they are. The description says which.

    Raises:
        ValueError: there is no such standardisation, or a column is too large for float32.

    >>> x, y = np.array([[0.0], [2.0]]), np.array([0, 1])
    >>> bp.data.dataset("two points", x, y, x, y, "two points", classes=2).x.tolist()
    [[-1.0], [1.0]]
    """
    if standardize not in STANDARDIZATIONS:
        raise ValueError(f"standardize={standardize} is not one of {', '.join(STANDARDIZATIONS)}")
    raw, scale = x, 1.0
    if standardize == "features":
        x, x_test = standardized(x, x_test)
        what = "each feature" if x.ndim == 2 else "all values together"
        description += f"; standardised: {what}{'' if classes is not None else ', and the targets'}"
    else:
        with np.errstate(over="ignore"):
            x, x_test = (part.astype(np.float32) for part in (x, x_test))
        description += "; not standardised"
    _check_columns(name, raw, x)
    if classes is not None:
        labels = y.astype(np.int32), y_test.astype(np.int32)
        return Dataset(name, x, labels[0], x_test, labels[1], classes, description)
    y, y_test = (part.reshape(len(part), -1).astype(np.float64) for part in (y, y_test))
    mean = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        if standardize == "features":
            mean, scale = float(np.mean(y)), float(np.std(y)) or 1.0
            scale = scale if np.isfinite(scale) else np.nan
        targets = [((part - mean) / scale).astype(np.float32) for part in (y, y_test)]
    _check_columns(name, y, targets[0], "target")
    return Dataset(name, x, targets[0], x_test, targets[1], None, description, scale)


def _check_columns(name: str, raw: np.ndarray, scaled: np.ndarray, what: str = "feature") -> None:
    """Refuses values that were finite and are not as float32."""
    if np.isfinite(raw).all() and not np.isfinite(scaled).all():
        largest = np.max(np.abs(raw.reshape(len(raw), -1)), axis=0)
        column = int(np.argmax(largest))
        raise ValueError(
            f"{name}: {what} {column} reaches {largest[column]:.3g}, which overflows: scale it down"
        )


def reconstruction(source: Dataset) -> Dataset:
    """The same examples with themselves, flattened, as targets: what an autoencoder learns.

    Raises:
        ValueError: the examples are tokens, not numbers.

    >>> codes = bp.data.reconstruction(bp.data.digits())
    >>> codes.y.shape, codes.classes
    ((1437, 64), None)
    """
    if source.tokens:
        raise ValueError(f"{source.name}: tokens cannot be reconstructed as numbers")
    y, y_test = (x.reshape(len(x), -1) for x in (source.x, source.x_test))
    text = f"{source.description}; the targets are the examples themselves"
    return Dataset(source.name, source.x, y, source.x_test, y_test, None, text)
