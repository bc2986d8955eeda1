"""muP: learning rates and initial weights by which a model's best settings do not depend on its width.

The maximal update parametrization (Yang, Hu et al. 2022, "Tensor Programs V", table 3), with a model of a
base width as the unit: at that width nothing changes. Of a weight, fan_in and fan_out count the inputs and
the outputs of its layer, and r_in and r_out are their multiples of the base model's.

    a weight between              initial deviation   SGD's rate   Adam's rate
    input and width, any bias     as it is            r_out        1
    width and width               as it is            r_out / r_in 1 / r_in
    width and output              / sqrt(r_in)        1 / r_in     1 / r_in

"As it is" is a deviation of 1 / sqrt(fan_in), as LeCun's and He's initializations have it. The
paper's scale 1 / d instead of 1 / sqrt(d) of attention is the model's own matter.
"""

from collections.abc import Callable
from enum import Enum
from math import sqrt
from typing import Any

import jax
import optax
from flax import nnx
from jaxtyping import ArrayLike, PyTree

from bpresearch.functional import Params
from bpresearch.optim.groups import partitioned, path_of
from bpresearch.optim.optimizers import Optimizer, hyperparameters, taking

SGD_LIKE = {"momentum", "nesterov", "sgd"}
"""Optimizers whose step is as long as the gradient."""

ADAM_LIKE = {
    "adabelief", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan", "adopt", "amsgrad", "lion", "nadam",
    "nadamw", "radam", "rmsprop", "rmsprop_momentum", "sign_sgd", "signum", "yogi",
}  # fmt: skip
"""Optimizers that divide each weight's gradient by its size (Yang, Hu et al. 2022, appendix B)."""

VECTORS = ("bias", "scale")
"""Names of parameters that are vectors over a layer's outputs, whatever their shape."""


class Role(Enum):
    """What a weight lies between, as far as it grows with the width."""

    FIXED = "neither end"
    INPUT = "input and width"
    HIDDEN = "width and width"
    OUTPUT = "width and output"


def shapes_of(params: Params) -> dict[str, tuple[int, ...]]:
    """Each parameter's shape by its path; arrays or `jax.ShapeDtypeStruct`s."""
    return {path_of(path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(params)}


def role(path: str, shape: tuple[int, ...], base: tuple[int, ...]) -> tuple[Role, float, float]:
    """A weight's role, r_in and r_out, from its shape and that in the base model.

    In Flax's kernels the inputs come first and the outputs last; what differs from the base is width.

    >>> role("layers.1.kernel", (256, 256), (64, 64))
    (<Role.HIDDEN: 'width and width'>, 4.0, 4.0)
    >>> role("layers.2.kernel", (256, 10), (64, 10))
    (<Role.OUTPUT: 'width and output'>, 4.0, 1.0)

    Raises:
        ValueError: the shapes have different numbers of axes.
    """
    if len(shape) != len(base):
        raise ValueError(f"{path} has shape {shape}, and {base} in the base model: they must differ in width")
    ratios = [n / b for n, b in zip(shape, base, strict=True)]
    wide = [axis for axis, ratio in enumerate(ratios) if ratio != 1]
    if not wide:
        return Role.FIXED, 1.0, 1.0
    if path.rsplit(".", 1)[-1] in VECTORS or (len(wide) == 1 and wide[0] == len(shape) - 1):
        return Role.INPUT, 1.0, ratios[wide[-1]]
    if len(wide) == 1:
        return Role.OUTPUT, ratios[wide[0]], 1.0
    return Role.HIDDEN, ratios[wide[0]], ratios[wide[-1]]


def rate(optimizer_name: str, role: Role, r_in: float, r_out: float) -> float:
    """The multiple of the learning rate that a weight's role calls for: the table above.

    Raises:
        ValueError: for this optimizer none is known.
    """
    if optimizer_name in ADAM_LIKE:
        return {Role.HIDDEN: 1 / r_in, Role.OUTPUT: 1 / r_in}.get(role, 1.0)
    if optimizer_name in SGD_LIKE:
        return {Role.INPUT: r_out, Role.HIDDEN: r_out / r_in, Role.OUTPUT: 1 / r_in}.get(role, 1.0)
    known = ", ".join(sorted(SGD_LIKE | ADAM_LIKE))
    raise ValueError(f"no scaling by width is known for {optimizer_name}, but for {known}")


def scaled(optimizer: Optimizer, base: Params) -> Optimizer:
    """The optimizer with the learning rate of each weight scaled by its width.

    Weight decay, which the learning rate scales in Optax, is divided by the same number; a decoupled one,
    which it does not scale, is left as it is.

    >>> params, base = ({"kernel": jnp.ones((n, n))} for n in (4, 2))
    >>> sgd, adam = (bp.optim.mup.scaled(o, base)(0.1) for o in (bp.optim.sgd, bp.optim.sign_sgd))
    >>> [round(float(o.update(params, o.init(params), params)[0]["kernel"][0, 0]), 6) for o in (sgd, adam)]
    [-0.1, -0.05]

    Args:
        optimizer: of `SGD_LIKE` or `ADAM_LIKE`, with any options around (`with_options`) but `clip_norm`,
            which goes around what is scaled: `clipped(scaled(optimizer, base))`.
        base: the parameters of the model of base width, or their shapes.

    Raises:
        ValueError: for this optimizer no scaling is known, the models differ in more than their width, or
            the optimizer clips: it would clip the weights of each rate by themselves.
    """
    if "clip_norm" in hyperparameters(optimizer):
        raise ValueError(
            "clip_norm inside of scaled would clip each rate's weights alone: take it around scaled"
        )
    narrow = shapes_of(base)

    def rates(weights: dict[str, PyTree]) -> dict[str, float]:
        return dict.fromkeys(weights, 1.0) | rates_of(optimizer.__name__, weights, narrow)

    def by_width(learning_rate: ArrayLike, **others: Any) -> optax.GradientTransformation:
        def of_rate(rate: float) -> optax.GradientTransformation:
            divided = "weight_decay" in others and not others.get("decoupled_decay")
            decay = {"weight_decay": others["weight_decay"] / rate} if divided else {}
            return optimizer(learning_rate * rate, **(others | decay))

        return partitioned(rates, of_rate)

    return taking({}, optimizer, by_width)


def rates_of(optimizer_name: str, params: Params, base: dict[str, tuple[int, ...]]) -> dict[str, float]:
    """Each path's multiple of the learning rate.

    Raises:
        ValueError: the base model lacks a parameter, or see `role` and `rate`.
    """
    shapes = shapes_of(params)
    if lacking := shapes.keys() - base.keys():
        raise ValueError(f"the model of base width lacks {min(lacking)}: it must differ in width alone")
    return {path: rate(optimizer_name, *role(path, shape, base[path])) for path, shape in shapes.items()}


def widened(build: Callable[[nnx.Rngs], nnx.Module], base: Params) -> Callable[[nnx.Rngs], nnx.Module]:
    """`build` with the initial weights between width and output divided by sqrt(r_in).

    Args:
        build: `rngs -> model`, with initial deviations in proportion to 1 / sqrt(fan_in).
        base: the parameters of the model of base width, or their shapes.
    """
    narrow = shapes_of(base)

    def build_scaled(rngs: nnx.Rngs) -> nnx.Module:
        model = build(rngs)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))

        def initial(path: jax.tree_util.KeyPath, weight: jax.Array) -> jax.Array:
            kind, r_in, _ = role(path_of(path), weight.shape, narrow[path_of(path)])
            return weight / sqrt(r_in) if kind is Role.OUTPUT else weight

        nnx.update(model, nnx.State(jax.tree.map_with_path(initial, params)))
        return model

    return build_scaled
