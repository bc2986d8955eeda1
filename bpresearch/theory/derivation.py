"""The gradient of one weight of a small network, as one derives it on paper: words, formulas, numbers."""

import itertools
import textwrap
from dataclasses import dataclass

import jax

from bpresearch.functional import TrainingLoss
from bpresearch.theory.anatomy import Path, gradient_by_jax, leaf_at
from bpresearch.theory.explain import WIDTH, Explanation, element_name, explain, in_words
from bpresearch.theory.network import Network, Place

SLOPES = {
    "identity": "1",
    "sigmoid": "{a} (1 - {a})",
    "tanh": "1 - {a}^2",
    "relu": "1 if {a} > 0, else 0",
    "leaky_relu": "1 if {a} >= 0, else 0.01",
    "softplus": "1 - exp(-{a})",
}
"""Derivatives of the activations, by the unit's value after it."""

LOSS_SLOPES = {
    "half_squared_error": "{a} - t",
    "squared_error": "2 ({a} - t)",
    "binary_cross_entropy": "({a} - t) / ({a} (1 - {a}))",
    "softmax_cross_entropy": "softmax({a}) - t",
}

LOSS_WORDS = {
    "half_squared_error": "half the squared error",
    "squared_error": "squared error",
    "binary_cross_entropy": "binary cross-entropy",
    "softmax_cross_entropy": "softmax and cross-entropy",
}

KIND_WORDS = {
    "input": "what {w} is multiplied with",
    "one": "a bias is multiplied with 1",
    "weight": "weight on the way",
    "activation": "derivative of the activation at {unit}",
    "loss": "derivative of the loss by {unit}",
}


@dataclass(frozen=True)
class Factor:
    """One factor of a path: its kind, formula, number, and the unit that it belongs to."""

    kind: str
    formula: str
    value: float
    unit: str


@dataclass(frozen=True)
class Derivation:
    """A gradient, its paths and one step with it; `str` is a page of text.

    Attributes:
        network: the network.
        name: of the weight.
        explanations: one for each place where the weight is used.
        cost: the loss E.
    """

    network: Network
    name: str
    explanations: tuple[Explanation, ...]
    cost: float

    @property
    def gradient(self) -> float:
        """dE/dw: the sum over all paths."""
        return sum(explanation.total for explanation in self.explanations)

    @property
    def autodiff(self) -> float:
        """What `jax.grad` says."""
        return sum(explanation.gradient for explanation in self.explanations)

    @property
    def after_step(self) -> float:
        """The weight after one step of gradient descent: w - lr dE/dw."""
        return self.network.value(self.name) - self.network.learning_rate * self.gradient

    @property
    def number(self) -> int:
        """Of paths."""
        return sum(explanation.number for explanation in self.explanations)

    @property
    def agrees(self) -> bool:
        """Whether the sum over the paths and `jax.grad` are equal but for rounding."""
        return all(explanation.agrees for explanation in self.explanations)

    @property
    def paths(self) -> list[tuple[float, list[Factor]]]:
        """The largest paths, each with its product and its factors from the weight to the loss."""
        places = self.network.places[self.name]
        listed = [
            (path.product, self._factors(path, place))
            for place, explanation in zip(places, self.explanations, strict=True)
            for path in explanation.paths
        ]
        return sorted(listed, key=lambda path: -abs(path[0]))

    def _factors(self, path: Path, place: Place) -> list[Factor]:
        """A path's factors by the network's own names."""
        net, named_factors = self.network, []
        layer, unit, source = place
        for link, value, number in zip(path.links, path.factors, path.units, strict=True):
            match link.kind:
                case "input":
                    formula = net.units[layer][source or 0]
                case "one":
                    formula = "1"
                case "weight":
                    layer, source, unit = layer + 1, unit, number
                    formula = net.weight_names[layer][unit][source]
                case "activation":
                    unit = number
                    formula = SLOPES[net.activations[layer]].format(a=net.units[layer + 1][unit])
                case _:
                    formula = self._loss_formula(unit)
            named_factors.append(Factor(link.kind, formula, value, net.units[layer + 1][unit]))
        return named_factors

    def _loss_formula(self, unit: int) -> str:
        name, net = self.network.units[-1][unit], self.network
        slope = LOSS_SLOPES[net.loss].format(a=name)
        return f"({slope}) / {net.sizes[-1]}" if net.reduction == "mean" else slope

    def __str__(self) -> str:
        net, w = self.network, self.name
        of = "sum over the outputs" if net.reduction == "sum" else "mean over the outputs"
        lines = [net.title, ""]
        for sentence in self.sentences():
            lines += [*textwrap.wrap(sentence, WIDTH), ""]
        lines += [f"E = {self.cost:.9g}  ({LOSS_WORDS[net.loss]}, {of})", ""]
        for number, (product, factors) in enumerate(self.paths, start=1):
            lines.append(f"Path {number} of {self.number}: {' -> '.join(self._stops(factors))}")
            lines += [self._line(factor) for factor in factors]
            lines += [f"  {'product':<26} {product:>14.9g}", ""]
        rest = self.gradient - sum(product for product, _ in self.paths)
        if len(self.paths) < self.number:
            lines.append(f"sum of the other {self.number - len(self.paths):,} paths   {rest:.9g}")
        lines += [
            f"dE/d{w} = {self.gradient:.15g}  (sum of all paths)",
            f"jax.grad {self.autodiff:.15g}: they {'agree' if self.agrees else 'DIFFER'}",
            "",
            f"One step with learning rate {net.learning_rate:g}:",
            f"  {w} = {net.value(w):.9g} - {net.learning_rate:g} * ({self.gradient:.9g}) = "
            f"{self.after_step:.9g}",
        ]
        return "\n".join(lines)

    def _stops(self, factors: list[Factor]) -> list[str]:
        return [self.name, *dict.fromkeys(factor.unit for factor in factors), "E"]

    def _line(self, factor: Factor) -> str:
        words = KIND_WORDS.get(factor.kind, factor.kind).format(w=self.name, unit=factor.unit)
        return f"  {factor.formula:<26} {factor.value:>14.9g}   {words}"

    def sentences(self) -> list[str]:
        """The answer for this weight: is the derivative that of the activation or that of the loss?"""
        kinds = frozenset().union(*(explanation.anatomy.kinds for explanation in self.explanations))
        return in_words(self.name, kinds, self.number)


def derive(network: Network, name: str | None = None, *, paths: int = 5) -> Derivation:
    """The gradient of one weight, path by path, beside what `jax.grad` says, in float64.

    Args:
        network: as `theory.network.read` gives it.
        name: of the weight or bias; by default the first layer's weight with the largest gradient.
        paths: how many of the largest paths to list, for each place where the weight is used.

    Raises:
        ValueError: the network has no such weight.

    >>> from bpresearch.theory import network
    >>> found = derive(network.read("experiments/textbook.json"), "w5")
    >>> print(round(found.gradient, 9), round(found.after_step, 8))
    0.082167041 0.35891648
    """
    with jax.enable_x64(True):
        model, batch = network.model(), network.batch
        cost = float(network.training_loss(model, batch))
        places = network.places
        if name is None:
            slopes = gradients(network)[1]
            name = max(itertools.chain(*network.weight_names[0]), key=lambda name: abs(slopes[name]))
        elif name not in places:
            raise ValueError(f"weight={name}: the network has {', '.join(places)}")
        explanations = tuple(
            explain(model, network.training_loss, batch, weight=element_name(*parameter(place)), paths=paths)
            for place in places[name]
        )
    return Derivation(network, name, explanations, cost)


def gradients(network: Network) -> tuple[float, dict[str, float]]:
    """The loss, and by `jax.grad` its derivative by every weight and bias, by name; in float64."""
    with jax.enable_x64(True):
        loss_fn = TrainingLoss(network.training_loss)
        cost, grads = gradient_by_jax(network.model(), loss_fn)((), network.batch)
    return float(cost), {
        name: sum(float(leaf_at(grads, path)[index]) for path, index in map(parameter, places))
        for name, places in network.places.items()
    }


def parameter(place: Place) -> tuple[tuple[str | int, ...], tuple[int, ...]]:
    """A place as the model's parameter and the element's index: kernels are (units before, units)."""
    leaf, index = ("bias", place[1:2]) if place.source is None else ("kernel", (place.source, place.unit))
    return ("layers", 2 * place.layer, leaf), index
