"""How layers are put together, for what Flax has no layer of its own."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped


class Residual(nnx.Module):
    """A residual branch: `y = x + branch(x)` (He et al. 2016).

    Args:
        branch: a layer whose output has the shape of its input.

    >>> print(bp.models.Residual(nnx.relu)(jnp.array([-1.0, 2.0])))
    [-1.  4.]
    """

    def __init__(self, branch: nnx.Module | Callable[..., Array]):
        self.branch = branch

    def __call__(self, x: Array) -> Array:
        return x + self.branch(x)


def concatenate(*parts: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """The parts side by side on the last axis.

    >>> print(bp.models.concatenate(jnp.zeros((1, 2)), jnp.ones((1, 1))))
    [[0. 0. 1.]]
    """
    return jnp.concatenate(parts, axis=-1)


def add(*parts: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The sum of the parts.

    >>> print(bp.models.add(jnp.array([1.0, 2.0]), jnp.array([10.0, 20.0])))
    [11. 22.]
    """
    return sum(parts[1:], start=parts[0])


class Parallel(nnx.Module):
    """Branches that all see the same input: `y = merge(branch_1(x), branch_2(x), ...)`.

    Args:
        branches: layers.
        merge: what is made of their outputs: `concatenate` (as in Inception, Szegedy et al. 2015), `add`,
            or another function of as many arrays that has a rule.

    >>> both = bp.models.Parallel(nnx.relu, jnp.negative, merge=bp.models.add)
    >>> print(both(jnp.array([-1.0, 2.0])))
    [1. 0.]
    """

    def __init__(
        self, *branches: nnx.Module | Callable[..., Array], merge: Callable[..., Array] = concatenate
    ):
        self.branches = nnx.List(branches)
        self.merge = merge

    def __call__(self, x: Array) -> Array:
        return self.merge(*(branch(x) for branch in self.branches))


class LayerStack(nnx.Module):
    """Layers of the same structure one after another, compiled once: `lax.scan` over their parameters.

    The variables of all layers are stacked along a new first axis, in `layer`. The compiled program has the
    size of one layer, whatever the depth; on the other hand XLA optimises nothing across layers.

    Args:
        build: `rngs -> layer`, whose output has the shape and type of its input.
        depth: number of layers, at least 1.
        rngs: source of the initial weights, different for each layer.

    >>> stack = bp.models.LayerStack(lambda rngs: nnx.Linear(3, 3, rngs=rngs), depth=4, rngs=nnx.Rngs(0))
    >>> stack(jnp.ones((2, 3))).shape
    (2, 3)
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module], depth: int, *, rngs: nnx.Rngs):
        if depth < 1:
            raise ValueError(f"LayerStack: depth {depth}: takes at least 1 layer")
        structures, states = zip(*(nnx.split(build(rngs)) for _ in range(depth)), strict=True)
        self.depth = depth
        self.layer = nnx.merge(structures[0], jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))

    def __call__(self, x: Array) -> Array:
        graphdef, params, state = nnx.split(self.layer, nnx.Param, ...)

        def apply(x, variables):
            layer = nnx.merge(graphdef, *variables)
            return layer(x), nnx.state(layer, nnx.Not(nnx.Param))

        y, state = jax.lax.scan(apply, x, (params, state))
        nnx.update(self.layer, state)
        return y


class LearnedPositions(nnx.Module):
    """`y = x + p`: a learned vector for each position of a sequence (Gehring et al. 2017).

    Args:
        length: number of positions; sequences may be shorter.
        features: number of features of each.
        rngs: source of the initial values, N(0, 0.02^2).

    >>> bp.models.LearnedPositions(5, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 3))).shape
    (2, 5, 3)
    """

    def __init__(self, length: int, features: int, *, rngs: nnx.Rngs):
        self.position = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (length, features)))

    def __call__(self, x: Float[Array, "batch length features"]) -> Float[Array, "batch length features"]:
        return x + self.position[...][None, : x.shape[1]]


class Unembed(nnx.Module):
    """Logits by comparing with each embedding: `y = embed.attend(x) = x E^T` (Press and Wolf 2017).

    The parameters are those of `embed`, which the model also uses at its input (tied weights).

    Args:
        embed: the embedding layer, `nnx.Embed`.

    >>> embed = nnx.Embed(10, 4, rngs=nnx.Rngs(0))
    >>> bp.models.Unembed(embed)(jnp.ones((2, 4))).shape
    (2, 10)
    """

    def __init__(self, embed: nnx.Embed):
        self.embed = embed

    def __call__(self, x: Array) -> Array:
        return self.embed.attend(x)


class Masked(nnx.Module):
    """A normalization with the mask as a second input: `y = norm(x, mask=mask)`.

    Args:
        norm: a layer that takes a `mask`, such as `nnx.BatchNorm` or `nnx.LayerNorm`. Mean and variance are
            those of the elements where the mask, which must broadcast to `x`, is True.

    >>> norm = bp.models.Masked(nnx.LayerNorm(3, rngs=nnx.Rngs(0)))
    >>> print(norm(jnp.array([[1.0, 3.0, 99.0]]), jnp.array([[True, True, False]]))[:, :2].round(2))
    [[-1.  1.]]
    """

    def __init__(self, norm: nnx.Module):
        self.norm = norm

    def __call__(self, x: Array, mask: Array) -> Array:
        return self.norm(x, mask=mask)
