"""A small model around each rule: where to plant faults in it, and what to check it on.

Every rule that is registered has a case, or stands in `WITHOUT_CASE` with the reason why not. A function
needs no entry here if it acts on each element (an activation) or is a loss of outputs and targets of the
same shape; anything else takes one line of `LAYERS`, `SEVERAL_INPUTS` or `TARGETS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import PyTree

from bpresearch import chainrule, models
from bpresearch.functional import Loss, as_inputs, merge, split
from bpresearch.models.attention import CausalAttention, MaskedAttention, dot_product_attention
from bpresearch.models.combinators import LayerStack, LearnedPositions, Masked, Parallel, Unembed
from bpresearch.verify.detection.faults import FAULTS, planted
from bpresearch.verify.detection.operations import change_operation, count_operations
from bpresearch.verify.engines import by_rules
from bpresearch.verify.equations import Label, Plant, equations_of, with_backward
from bpresearch.verify.precision import is_floating

EXAMPLES = 3

Make = Callable[[tuple[int, ...], nnx.Rngs], Callable[..., PyTree]]


def window(pool: Callable[..., PyTree]) -> Make:
    """A pooling of three at a time, or of all there are."""
    return lambda shape, rngs: partial(pool, window_shape=(min(3, shape[-2]),), strides=(2,))


def convolution(**options: Any) -> Make:
    """A one-dimensional convolution."""
    return lambda shape, rngs: nnx.Conv(shape[-1], 2, (3,), rngs=rngs, **options)


def recurrent(cell: Callable[..., nnx.Module]) -> Make:
    """A cell run along a sequence."""
    return lambda shape, rngs: nnx.RNN(cell(shape[-1], 3, rngs=rngs))


def attention(shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Module:
    """Self-attention, with two heads where the features can be shared out."""
    return nnx.MultiHeadAttention(1 + (shape[-1] % 2 == 0), shape[-1], decode=False, rngs=rngs)


LAYERS: dict[str, tuple[tuple[int, ...], Make]] = {
    "Linear": ((4,), lambda s, rngs: nnx.Linear(s[-1], 4, rngs=rngs)),
    "LinearGeneral": ((2, 3), lambda s, rngs: nnx.LinearGeneral(s[-2:], (3, 2), axis=(-2, -1), rngs=rngs)),
    "Einsum": ((4,), lambda s, rngs: nnx.Einsum("ab,bc->ac", (s[-1], 4), (4,), rngs=rngs)),
    "Conv": ((5, 2), convolution()),
    "ConvTranspose": ((3, 2), lambda s, rngs: nnx.ConvTranspose(s[-1], 2, (3,), strides=(2,), rngs=rngs)),
    "conv_general_dilated": ((5, 2), convolution(strides=2)),
    "patch_convolution": ((5, 2), convolution(conv_general_dilated=models.patch_convolution)),
    "avg_pool": ((6, 2), window(nnx.avg_pool)),
    "max_pool": ((6, 2), window(nnx.max_pool)),
    "min_pool": ((6, 2), window(nnx.min_pool)),
    "Residual": ((4,), lambda s, rngs: models.Residual(nnx.Linear(s[-1], s[-1], rngs=rngs))),
    "Sequential": ((4,), lambda s, rngs: nnx.Sequential(nnx.Linear(s[-1], 4, rngs=rngs), nnx.tanh)),
    "flatten": ((2, 3), lambda s, rngs: models.flatten),
    "add_channel": ((4,), lambda s, rngs: models.add_channel),
    "PReLU": ((4,), lambda s, rngs: nnx.PReLU()),
    "LayerNorm": ((4,), lambda s, rngs: nnx.LayerNorm(s[-1], epsilon=1e-3, rngs=rngs)),
    "RMSNorm": ((4,), lambda s, rngs: nnx.RMSNorm(s[-1], epsilon=1e-3, rngs=rngs)),
    "InstanceNorm": ((5, 2), lambda s, rngs: nnx.InstanceNorm(s[-1], epsilon=1e-3, rngs=rngs)),
    "GroupNorm": ((3, 4), lambda s, rngs: nnx.GroupNorm(s[-1], num_groups=2, epsilon=1e-3, rngs=rngs)),
    "BatchNorm": ((4,), lambda s, rngs: nnx.BatchNorm(s[-1], epsilon=1e-3, rngs=rngs)),
    "WeightNorm": ((4,), lambda s, rngs: nnx.WeightNorm(nnx.Linear(s[-1], 4, rngs=rngs), rngs=rngs)),
    "SpectralNorm": ((4,), lambda s, rngs: nnx.SpectralNorm(nnx.Linear(s[-1], 4, rngs=rngs), rngs=rngs)),
    "LoRA": ((4,), lambda s, rngs: nnx.LoRA(s[-1], 2, 4, rngs=rngs)),
    "LoRALinear": ((4,), lambda s, rngs: nnx.LoRALinear(s[-1], 4, lora_rank=2, rngs=rngs)),
    "Dropout": ((4,), lambda s, rngs: nnx.Dropout(0.4, rngs=rngs)),
    "MultiHeadAttention": ((3, 4), attention),
    "attend": ((3, 4), attention),
    "CausalAttention": (
        (3, 4),
        lambda s, rngs: CausalAttention(2, s[-1], decode=False, rngs=rngs),
    ),
    "RoPE": ((3, 4), lambda s, rngs: vars(nnx)["RoPE"]()),  # which Flax has from 0.12.12 on
    "Unembed": ((4,), lambda s, rngs: Unembed(nnx.Embed(5, s[-1], rngs=rngs))),
    "LearnedPositions": (
        (3, 4),
        lambda s, rngs: LearnedPositions(s[-2], s[-1], rngs=rngs),
    ),
    "LayerStack": (
        (4,),
        lambda s, rngs: LayerStack(lambda rngs: nnx.Linear(s[-1], s[-1], rngs=rngs), 2, rngs=rngs),
    ),
    "Parallel": (
        (4,),
        lambda s, rngs: Parallel(nnx.Linear(s[-1], 2, rngs=rngs), nnx.tanh),
    ),
    "logsumexp": ((4,), lambda s, rngs: partial(nnx.logsumexp, axis=-1, keepdims=True)),
    "smooth_labels": ((4,), lambda s, rngs: partial(optax.losses.smooth_labels, alpha=0.1)),
    "RNN": ((3, 4), recurrent(nnx.SimpleCell)),
    "_concatenate": (
        (3, 4),
        lambda s, rngs: nnx.Bidirectional(*(nnx.RNN(nnx.SimpleCell(s[-1], 2, rngs=rngs)) for _ in range(2))),
    ),
    "SimpleCell": ((3, 4), recurrent(nnx.SimpleCell)),
    "GRUCell": ((3, 4), recurrent(nnx.GRUCell)),
    "LSTMCell": ((3, 4), recurrent(nnx.LSTMCell)),
    "OptimizedLSTMCell": ((3, 4), recurrent(nnx.OptimizedLSTMCell)),
    "Bidirectional": (
        (3, 4),
        lambda s, rngs: nnx.Bidirectional(*(nnx.RNN(nnx.SimpleCell(s[-1], 2, rngs=rngs)) for _ in range(2))),
    ),
}
"""Shape of an input without the batch, and the layer for such a shape, by the name of what has a rule."""

INTEGER_INPUTS: dict[str, tuple[int, Callable[[nnx.Rngs], nnx.Module]]] = {
    "Embed": (5, lambda rngs: nnx.Embed(5, 4, rngs=rngs)),
}
"""Number of values, and the layer that takes them."""


def queries_keys_values(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Three positions, two heads and two features of each."""
    return tuple(rng.normal(size=(EXAMPLES, 3, 2, 2)) for _ in range(3))


def with_mask(
    shape: tuple[int, ...], mask: tuple[int, ...]
) -> Callable[[np.random.Generator], tuple[np.ndarray, ...]]:
    """An input, and a mask that keeps about two thirds and the first along the last axis."""

    def draw(rng):
        visible = rng.random((EXAMPLES, *mask)) < 2 / 3
        visible[..., 0] = True
        return rng.normal(size=(EXAMPLES, *shape)), visible

    return draw


SEVERAL_INPUTS: dict[str, tuple[Callable[[np.random.Generator], tuple[np.ndarray, ...]], Any]] = {
    "dot_product_attention": (queries_keys_values, None),  # two functions of this name: itself
    "dot_product_attention_with_rope": (
        queries_keys_values,
        lambda rngs: partial(vars(nnx)["dot_product_attention_with_rope"], rope=vars(nnx)["RoPE"]()),
    ),
    "MaskedAttention": (
        with_mask((3, 4), (1, 3, 3)),
        lambda rngs: MaskedAttention(2, 4, decode=False, attention_fn=dot_product_attention, rngs=rngs),
    ),
    "Masked": (with_mask((4,), (4,)), lambda rngs: Masked(nnx.LayerNorm(4, epsilon=1e-3, rngs=rngs))),
}
"""The inputs, and the layer that takes them."""

WITHOUT_CASE = {
    "ctc_loss_with_forward_probs": "returns three arrays, so that it is neither a loss nor a layer of a "
    "model; its backward pass is that of ctc_loss",
    "conv_general_dilated": "the map inside of nnx.Conv and nnx.ConvTranspose, whose rules ask it",
    "patch_convolution": "the map inside of nnx.Conv, whose rule asks it",
}
"""Rules that no model of a layer and a loss can use, and why."""


def labels(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A class for each example."""
    return rng.integers(0, shape[-1], shape[:-1])


def pairs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A class for each example, a vector, every two of the same."""
    if len(shape) != 2:
        raise ValueError(f"embeddings are vectors, not of shape {shape[1:]}")
    return rng.permutation(np.arange(shape[0]) // 2)


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """1 or -1 for each element."""
    return rng.choice([-1.0, 1.0], shape)


def zeros_and_ones(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """0 or 1 for each element."""
    return rng.choice([0.0, 1.0], shape)


def probabilities(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A distribution for each example."""
    return rng.dirichlet(np.ones(shape[-1]), shape[:-1])


def positives_and_negatives(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Two points for each example, one that should be near it and one that should not."""
    return rng.normal(size=shape), rng.normal(size=shape)


def words(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """One label for each example, with the paddings of its frames and labels: the last frame is padding."""
    paddings = np.zeros(shape[:2], int)
    paddings[:, -1] = 1
    return paddings, rng.integers(1, shape[-1], (shape[0], 1)), np.zeros((shape[0], 1), int)


TARGETS: dict[str, Callable[..., PyTree]] = {
    "ctc_loss": words,
    "softmax_cross_entropy_with_integer_labels": labels,
    "poly_loss_cross_entropy": probabilities,
    "hinge_loss": signs,
    "perceptron_loss": signs,
    "sparsemax_loss": zeros_and_ones,
    "multiclass_hinge_loss": labels,
    "multiclass_perceptron_loss": labels,
    "multiclass_sparsemax_loss": labels,
    "ntxent": pairs,
    "triplet_margin_loss": positives_and_negatives,
    "binary_dice_loss": zeros_and_ones,
    "sigmoid_binary_cross_entropy": zeros_and_ones,
    "sigmoid_focal_loss": zeros_and_ones,
}
"""Targets of a loss, given the shape of the outputs; distributions if there is no entry."""


@dataclass(frozen=True)
class Case:
    """A model, its data, and where in it the rule is that the case is about.

    Attributes:
        name: of the module type or function that has the rule.
        place: the layer's equation in the model.
    """

    name: str
    model: nnx.Module
    loss_fn: Loss
    x: PyTree
    y: PyTree
    place: Label

    @property
    def where(self) -> str:
        """The layer as reports name it."""
        return self.place.where


class NoCaseError(LookupError):
    """There is a rule for which no model is known."""


def case_of(target: Any, seed: int = 0) -> Case:
    """The case of a module type or function that has a rule.

    Raises:
        NoCaseError: with the name of what needs an entry.
    """
    name = getattr(target, "__name__", str(target))
    rng, rngs = np.random.default_rng(seed), nnx.Rngs(seed)
    x: Any
    loss_fn: Any = optax.losses.squared_error
    try:
        if name not in LAYERS and getattr(target, "__module__", "").startswith("optax"):
            shape = (EXAMPLES, 4, 4) if target is optax.losses.ctc_loss else (EXAMPLES, 4)
            model, x, loss_fn = nnx.Linear(4, 4, rngs=rngs), rng.normal(size=shape), target
        elif name in SEVERAL_INPUTS:
            draw, make_layer = SEVERAL_INPUTS[name]
            layer = make_layer(rngs) if make_layer else target
            model, x = nnx.Sequential(layer, nnx.tanh), draw(rng)
        elif name in INTEGER_INPUTS:
            count, embed = INTEGER_INPUTS[name]
            model, x = nnx.Sequential(embed(rngs), nnx.tanh), rng.integers(0, count, (EXAMPLES, 2))
        else:
            shape, make = LAYERS.get(name, ((4,), lambda s, rngs: target))
            before = nnx.Linear(shape[-1], shape[-1], rngs=rngs)
            model = nnx.Sequential(before, make(shape, rngs), nnx.tanh)
            x = rng.normal(size=(EXAMPLES, *shape))
        shape = shapes_of(model, *as_inputs(x)).shape
        y = TARGETS.get(getattr(loss_fn, "__name__", ""), probabilities)(rng, shape)
        perturb(model, rng)
        equations = equations_of(model, loss_fn, x, y)
    except Exception as error:  # any reason why a guess at how it is used does not fit
        raise NoCaseError(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    rule = chainrule.registered()[target]
    places = [at for at, e in equations.items() if at.is_layer and e.params["call"].rule is rule]
    if not places:
        raise NoCaseError(f"{name}: its case does not use it")
    return Case(name, model, loss_fn, x, y, places[-1])


def shapes_of(layer: Callable[..., PyTree], *inputs: PyTree) -> PyTree:
    """Shapes and dtypes of what a layer makes of inputs, without computing it."""
    if not isinstance(layer, nnx.Module):
        return jax.eval_shape(layer, *inputs)
    graphdef, params, state = split(layer)
    return jax.eval_shape(lambda p, s, *inputs: merge(graphdef, p, s)(*inputs), params, state, *inputs)


def perturb(model: nnx.Module, rng: np.random.Generator, scale: float = 0.3) -> None:
    """Moves every parameter a little, so that none is at a special value such as zero or one."""
    for _, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Param) and is_floating(variable[...]):
            value = np.asarray(variable[...])
            variable[...] = (value + scale * rng.normal(size=value.shape)).astype(value.dtype)


def cases(seed: int = 0) -> tuple[list[Case], list[str]]:
    """The case of every rule but those in WITHOUT_CASE, and what is said of others that have none.

    The seed draws weights and data.
    """
    covered, missing = [], []
    seen: set[tuple[int, str]] = set()
    for target, rule in chainrule.registered().items():
        name = getattr(target, "__name__", str(target))
        if (id(rule), name) in seen or name in WITHOUT_CASE:
            continue
        seen.add((id(rule), name))
        try:
            covered.append(case_of(target, seed))
        except NoCaseError as error:
            missing.append(str(error))
    return covered, missing


def faults_of(case: Case, each: int = 3) -> dict[str, Plant]:
    """Every fault that can be planted in the case's rule, by name: of the whole rule and of its operations.

    Args:
        case: where.
        each: in how many operations, at most, a kind of mistake is made.
    """
    layer = equations_of(case.model, case.loss_fn, case.x, case.y)[case.place]
    faults = {
        n: planted(case.place, fault.plant) for n, fault in FAULTS.items() if fault.fits_equation(layer)
    }
    for name, count in operations_of(case).items():
        for number in sorted({round(i) for i in np.linspace(0, count - 1, min(each, count))}):

            def change(e, rule, name=name, number=number):
                return change_operation(rule, name, number)

            faults[f"{name} {number + 1}"] = planted(case.place, change)
    return faults


def operations_of(case: Case) -> dict[str, int]:
    """In how many operations of the rule's backward pass each mistake of `operations.CHANGES` can be made."""
    counts: dict[str, int] = {}

    def count(e, rule):
        def backward(layer, residuals, y_bar, **options):
            counts.update(count_operations(rule, layer, residuals, y_bar, options))
            return rule.backward(layer, residuals, y_bar, **options)

        return with_backward(rule, backward)

    graphdef, params, state = split(case.model)
    gradient = by_rules(graphdef, case.loss_fn, planted(case.place, count))
    jax.eval_shape(gradient, params, state, case.x, case.y)
    return {name: number for name, number in counts.items() if number}
