"""A small network as a textbook writes it: every number given, every unit and weight with a name.

A file holds one JSON object (`experiments/textbook.json` is one):

    sizes          units of each layer, the inputs first: [2, 2, 2]
    activations    of each layer after the inputs: ["sigmoid", "sigmoid"]
    weights        of each layer a row for each of its units: weights[l][j][i] leads from unit i to unit j
    biases         of each layer one for each of its units
    inputs         one example
    targets        one for each output
    loss           half_squared_error, squared_error, binary_cross_entropy or softmax_cross_entropy
    reduction      over the outputs: sum or mean
    learning_rate  of one step of gradient descent
    units, weight_names, bias_names, title    names, shaped as what they name; may be left out

Weights of the same name are one weight: its gradient is the sum over the places where it is used. Numbers are
used as they are given, in float64.
"""

import difflib
import itertools
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": nnx.identity,
    "sigmoid": nnx.sigmoid,
    "tanh": nnx.tanh,
    "relu": nnx.relu,
    "leaky_relu": nnx.leaky_relu,
    "softplus": nnx.softplus,
}


def binary_cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """-t log o - (1 - t) log(1 - o) of outputs that are probabilities."""
    return -targets * jnp.log(outputs) - (1 - targets) * jnp.log1p(-outputs)


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "half_squared_error": optax.losses.l2_loss,
    "squared_error": optax.losses.squared_error,
    "binary_cross_entropy": binary_cross_entropy,
    "softmax_cross_entropy": optax.losses.softmax_cross_entropy,
}
REDUCTIONS = {"sum": jnp.sum, "mean": jnp.mean}

REQUIRED = (
    "sizes", "activations", "weights", "biases", "inputs", "targets", "loss", "reduction", "learning_rate",
)  # fmt: skip
NAMES = ("units", "weight_names", "bias_names", "title")
MOST_WEIGHTS = 10_000


class Place(NamedTuple):
    """Where a weight is used: in which layer, into which unit, and from which (None for a bias)."""

    layer: int
    unit: int
    source: int | None


@dataclass(frozen=True)
class Network:
    """A network of dense layers, one example, and a loss.

    Attributes:
        title: what it is.
        units: names of each layer's units, the inputs first.
        activations: names of each layer's activation.
        weights: of each layer, (units, units before); `weight_names` are shaped alike.
        biases: of each layer, (units,); `bias_names` are shaped alike.
        inputs, targets: of the example.
        loss, reduction: their names.
        learning_rate: of one step of gradient descent.
    """

    title: str
    units: tuple[tuple[str, ...], ...]
    activations: tuple[str, ...]
    weights: tuple[np.ndarray, ...]
    weight_names: tuple[tuple[tuple[str, ...], ...], ...]
    biases: tuple[np.ndarray, ...]
    bias_names: tuple[tuple[str, ...], ...]
    inputs: np.ndarray
    targets: np.ndarray
    loss: str
    reduction: str
    learning_rate: float

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of each layer."""
        return tuple(len(names) for names in self.units)

    @property
    def places(self) -> dict[str, list[Place]]:
        """Where each weight and bias is used, by name, in order of the layers."""
        uses: dict[str, list[Place]] = {}
        for layer, (rows, biases) in enumerate(zip(self.weight_names, self.bias_names, strict=True)):
            for unit, row in enumerate(rows):
                for source, name in enumerate(row):
                    uses.setdefault(name, []).append(Place(layer, unit, source))
            for unit, name in enumerate(biases):
                uses.setdefault(name, []).append(Place(layer, unit, None))
        return uses

    def value(self, name: str) -> float:
        """Of a weight or a bias."""
        place = self.places[name][0]
        layer = self.biases if place.source is None else self.weights
        return float(layer[place.layer][place[1:] if place.source is not None else place.unit])

    def model(self) -> nnx.Sequential:
        """Dense layers and activations in turn, in float64; call it within `jax.enable_x64(True)`."""
        layers: list[Any] = []
        for w, b, activation in zip(self.weights, self.biases, self.activations, strict=True):
            dense = nnx.Linear(*reversed(w.shape), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            dense.kernel[...], dense.bias[...] = jnp.asarray(w.T), jnp.asarray(b)
            layers += [dense, ACTIVATIONS[activation]]
        return nnx.Sequential(*layers)

    def training_loss(self, model: nnx.Module, batch: tuple[ArrayLike, ArrayLike]) -> jax.Array:
        """The loss of a batch `(inputs, targets)` of one example, summed or averaged over the outputs."""
        inputs, targets = map(jnp.asarray, batch)
        return REDUCTIONS[self.reduction](LOSSES[self.loss](model(inputs), targets))

    @property
    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """The example as a batch of one."""
        return self.inputs[None], self.targets[None]

    def to_dict(self) -> dict[str, object]:
        """The network as a file holds it, all names written out."""
        return {
            "title": self.title, "sizes": list(self.sizes), "activations": list(self.activations),
            "weights": [w.tolist() for w in self.weights], "biases": [b.tolist() for b in self.biases],
            "inputs": self.inputs.tolist(), "targets": self.targets.tolist(),
            "loss": self.loss, "reduction": self.reduction, "learning_rate": self.learning_rate,
            "units": [list(names) for names in self.units],
            "weight_names": [[list(row) for row in rows] for rows in self.weight_names],
            "bias_names": [list(names) for names in self.bias_names],
        }  # fmt: skip


def read(path: str | Path) -> Network:
    """The network in a JSON file.

    Raises:
        ValueError: there is no such file, it is not JSON, or an entry of it is wrong; the message names it.
    """
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not text in UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON: {error.msg} in line {error.lineno}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: holds lists in lists without end, and no network") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path}: holds {_described(given)}, not one object with {', '.join(REQUIRED)}")
    try:
        return from_dict(given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def from_dict(given: Mapping[str, object]) -> Network:
    """The network that a file's object describes (see this module's docstring).

    Raises:
        ValueError: an entry is missing, unknown, or not of the sizes; the message names it.

    >>> net = from_dict({"sizes": [1, 1], "activations": ["tanh"], "weights": [[[0.5]]], "biases": [[0.0]],
    ...     "inputs": [1.0], "targets": [0.0], "loss": "squared_error", "reduction": "sum",
    ...     "learning_rate": 0.1})
    >>> list(net.places)
    ['w1', 'b1']
    """
    for key in given:
        if key not in (*REQUIRED, *NAMES):
            raise ValueError(f"{key}: is no entry of a network{_near(key, (*REQUIRED, *NAMES))}")
    for key in REQUIRED:
        if key not in given:
            raise ValueError(f"{key}: is missing")
    sizes = _sizes(given["sizes"])
    pairs, after = [(n, m) for m, n in itertools.pairwise(sizes)], [(n,) for n in sizes[1:]]
    network = Network(
        title=_text(given.get("title", "A small network"), "title"),
        units=_tuples(_layers(given, "units", [(n,) for n in sizes], _text) or _unit_names(sizes)),
        activations=tuple(_layers(given, "activations", [()] * len(after), _activation)),
        weights=tuple(np.array(rows) for rows in _layers(given, "weights", pairs, _number)),
        weight_names=_tuples(_layers(given, "weight_names", pairs, _text) or _numbered("w", pairs)),
        biases=tuple(np.array(row) for row in _layers(given, "biases", after, _number)),
        bias_names=_tuples(_layers(given, "bias_names", after, _text) or _numbered("b", after)),
        inputs=np.array(_nested(given["inputs"], sizes[:1], "inputs", _number)),
        targets=np.array(_nested(given["targets"], sizes[-1:], "targets", _number)),
        loss=_choice(given["loss"], LOSSES, "loss"),
        reduction=_choice(given["reduction"], REDUCTIONS, "reduction"),
        learning_rate=_number(given["learning_rate"], "learning_rate"),
    )
    _check(network)
    return network


def _check(network: Network) -> None:
    """What each entry by itself cannot tell."""
    units = list(itertools.chain(*network.units))
    for name in units:
        if units.count(name) > 1:
            raise ValueError(f"units: two are called {name}")
    for name, places in network.places.items():
        values = {
            float(network.biases[p.layer][p.unit] if p.source is None else network.weights[p.layer][p[1:]])
            for p in places
        }
        if len(values) > 1:
            raise ValueError(f"{name}: names one weight, and is given the values {sorted(values)}")
    _check_loss(network.loss, network.reduction, network.activations[-1], network.targets.tolist())


def _check_loss(loss: str, reduction: str, last: str, targets: list[float]) -> None:
    if loss == "binary_cross_entropy" and last != "sigmoid":
        raise ValueError(f"loss: {loss} takes outputs of a sigmoid, and activations end in {last}")
    if loss.endswith("cross_entropy") and not all(0 <= target <= 1 for target in targets):
        raise ValueError(f"targets: {loss} takes probabilities, between 0 and 1, not {targets}")
    if loss == "softmax_cross_entropy" and abs(sum(targets) - 1) > 1e-9:
        raise ValueError(f"targets: {loss} takes probabilities whose sum is 1, not {targets}")
    if loss == "softmax_cross_entropy" and reduction == "mean":
        raise ValueError(f"reduction: {loss} is one number for all outputs: take sum")


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise ValueError(f"sizes: is {_described(value)}; it takes at least two layers, such as [2, 2, 2]")
    for layer, size in enumerate(value):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"sizes[{layer}]: is {_described(size)}; it takes a number of units, such as 2")
    count = sum(m * n for m, n in itertools.pairwise(value))
    if count > MOST_WEIGHTS:
        raise ValueError(f"sizes: {count:,} weights, and a network with names has at most {MOST_WEIGHTS:,}")
    return tuple(value)


def _unit_names(sizes: tuple[int, ...]) -> list[list[str]]:
    hidden = range(1, len(sizes) - 1)
    letters = ["x", *("h" if len(hidden) == 1 else f"h{layer}." for layer in hidden), "o"]
    return [[f"{letter}{i + 1}" for i in range(n)] for letter, n in zip(letters, sizes, strict=True)]


def _numbered(letter: str, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """w1, w2, ... through all layers, shaped as what they name."""
    count = itertools.count(1)

    def names(shape: tuple[int, ...]) -> Any:
        return [names(shape[1:]) for _ in range(shape[0])] if shape else f"{letter}{next(count)}"

    return [names(shape) for shape in shapes]


def _tuples(names: Any) -> Any:
    return tuple(map(_tuples, names)) if isinstance(names, list) else names


def _layers(
    given: Mapping[str, object],
    entry: str,
    shapes: Sequence[tuple[int, ...]],
    leaf: Callable[[object, str], object],
) -> list[Any]:
    """An entry that has something of its own shape for each layer; empty where it is left out."""
    if entry not in given:
        return []
    rows = _list(given[entry], len(shapes), entry)
    pairs = enumerate(zip(rows, shapes, strict=True))
    return [_nested(row, shape, f"{entry}[{layer}]", leaf) for layer, (row, shape) in pairs]


def _nested(value: object, shape: tuple[int, ...], entry: str, leaf: Callable[[object, str], object]) -> Any:
    """Lists in lists of this shape, each element as `leaf` takes it."""
    if not shape:
        return leaf(value, entry)
    rows = _list(value, shape[0], entry)
    return [_nested(row, shape[1:], f"{entry}[{i}]", leaf) for i, row in enumerate(rows)]


def _list(value: object, length: int, entry: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != length:
        raise ValueError(f"{entry}: is {_described(value)}; by the sizes it takes a list of {length}")
    return value


def _number(value: object, entry: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{entry}: is {_described(value)}; it takes a finite number")
    return float(value)


def _text(value: object, entry: str) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"{entry}: is {_described(value)}; it takes a name")
    return value.strip()


def _choice(value: object, choices: Mapping[str, object], entry: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{entry}: is {_described(value)}, not one of {', '.join(choices)}{_near(value, choices)}"
        )
    return value


def _activation(value: object, entry: str) -> str:
    return _choice(value, ACTIVATIONS, entry)


def _near(name: object, choices: Collection[str]) -> str:
    near = difflib.get_close_matches(str(name), list(choices), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _described(value: object) -> str:
    """A value of a file, in a few words."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return "an object"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
