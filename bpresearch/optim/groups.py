"""Parts of a model that are trained apart: with other learning rates, without weight decay, not at all.

A pattern names parameters by their paths, such as `layers.1.kernel`: it is one part of the path or several
with dots between (`kernel`, `layers.1`, `encoder.*.bias`), `*` stands for any text and `?` for any character.
Several patterns have commas between; `!` in front of one takes its parameters out again.
"""

import fnmatch
import functools
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import jax
import optax
from jaxtyping import ArrayLike, PyTree

from bpresearch.optim.optimizers import Optimizer, hyperparameters, taking

WHOLE = {
    "dadapt_adamw", "dog", "dowg", "momo", "momo_adam", "noisy_sgd", "polyak_sgd", "prodigy",
    "quotient_global",
}  # fmt: skip
"""Optimizers whose step follows from all weights together: groups of weights would change what they are.

`noisy_sgd` draws the noise of all weights with one key, so that groups would get the same noise."""

ALONG_A_LINE = {"backtracking", "lbfgs"}
"""Optimizers that evaluate the loss along a line through all weights."""


def path_of(key_path: jax.tree_util.KeyPath) -> str:
    """The path of a leaf of a tree as text: `layers.1.kernel`."""
    return jax.tree_util.keystr(key_path, simple=True, separator=".")


def selected(patterns: str, paths: Iterable[str], option: str = "patterns") -> set[str]:
    """The paths that patterns select.

    >>> selected("kernel,!layers.0", ["layers.0.kernel", "layers.1.kernel", "layers.1.bias"])
    {'layers.1.kernel'}

    Args:
        patterns: with commas between; all of them with `!` select everything else.
        paths: of all parameters.
        option: what the patterns are given as, for the message.

    Raises:
        ValueError: a pattern matches no path.
    """
    paths = list(paths)
    listed = [pattern.strip() for pattern in patterns.split(",")]
    chosen = set() if any(not pattern.startswith("!") for pattern in listed) else set(paths)
    for pattern in sorted(listed, key=lambda pattern: pattern.startswith("!")):
        matched = {path for path in paths if fnmatch.fnmatchcase(f".{path}.", f"*.{pattern.lstrip('!')}.*")}
        if not matched:
            some = ", ".join(paths[:4]) + (", ..." if len(paths) > 4 else "")
            raise ValueError(f"{option}={patterns}: {pattern!r} matches no parameter; there are {some}")
        chosen = chosen - matched if pattern.startswith("!") else chosen | matched
    return chosen


def multipliers(text: str, paths: Iterable[str]) -> dict[str, float]:
    """Each path's multiple of the learning rate, from text as `head:0.1,embed.*:2`; 1 where none is given.

    >>> multipliers("layers.1:0.1", ["layers.0.kernel", "layers.1.kernel"])
    {'layers.0.kernel': 1.0, 'layers.1.kernel': 0.1}

    Args:
        text: patterns, each with a colon and a number of at least 0; where several match, the first counts.
        paths: of all parameters.

    Raises:
        ValueError: the text is not of this form, or a pattern matches no path.
    """
    factors = dict.fromkeys(paths, 1.0)
    for item in reversed(text.split(",") if text else []):
        pattern, colon, number = item.partition(":")
        try:
            factor = float(number)
        except ValueError:
            factor = -1.0
        if not (colon and 0 <= factor < float("inf")):
            raise ValueError(
                f"lr_multipliers={text}: {item!r} is not a pattern with a number of at least 0, as head:0.1"
            )
        factors |= dict.fromkeys(selected(pattern, factors, "lr_multipliers"), factor)
    return factors


@functools.cache
def grouped(optimizer: Optimizer) -> Optimizer:
    """The optimizer for each group of weights by itself, with learning rates and weight decay of their own.

    It takes two more hyper-parameters, both text. `lr_multipliers`, such as `head:0.1,embed.*:2`: patterns
    and multiples of the learning rate. `decay_mask`, such as `kernel` or `!bias`: what weight decay acts
    on, by default everything; the optimizer takes a `weight_decay` then (see `decayed`).

    >>> params = {"body": jnp.ones(2), "head": jnp.ones(2)}
    >>> sgd = bp.optim.grouped(bp.optim.sgd)(0.5, lr_multipliers="head:0.1")
    >>> updates, _ = sgd.update(params, sgd.init(params), params)
    >>> float(updates["body"][0]), round(float(updates["head"][0]), 6)
    (-0.5, -0.05)

    Raises:
        ValueError: a pattern matches nothing, there is no weight decay to mask, or the optimizer's step
            follows from all weights together (`WHOLE`, `ALONG_A_LINE`).
    """
    decays = "weight_decay" in hyperparameters(optimizer)

    def by_group(
        learning_rate: ArrayLike, *, lr_multipliers: str = "", decay_mask: str = "", **others: Any
    ) -> optax.GradientTransformation:
        if not (lr_multipliers or decay_mask):
            return optimizer(learning_rate, **others)
        option = f"lr_multipliers={lr_multipliers}" if lr_multipliers else f"decay_mask={decay_mask}"
        if optimizer.__name__ in WHOLE | ALONG_A_LINE:
            raise ValueError(
                f"{option}: {optimizer.__name__} takes its step from all weights together, not by groups"
            )
        if decay_mask and not decays:
            raise ValueError(f"{option}: {optimizer.__name__} has no weight decay; give a weight_decay too")

        def group_of(paths: Iterable[str]) -> dict[str, tuple[float, bool]]:
            factors = multipliers(lr_multipliers, paths)
            masked = selected(decay_mask, paths, "decay_mask") if decay_mask else set(paths)
            return {path: (factors[path], path in masked) for path in paths}

        def of_group(group: tuple[float, bool]) -> optax.GradientTransformation:
            factor, decayed = group
            free = {} if decayed else {"weight_decay": 0.0}
            return optimizer(learning_rate * factor, **(others | free))

        return partitioned(group_of, of_group)

    taken = {"lr_multipliers": "", "decay_mask": ""}
    return taking(taken, optimizer, by_group)


@functools.cache
def frozen(optimizer: Optimizer) -> Optimizer:
    """The optimizer of some of the weights; the others stay as they are.

    It takes one more hyper-parameter, `frozen`: patterns, such as `encoder.*`. What is frozen has no part in
    norms, such as that of `clip_norm`, and needs no memory.

    >>> params = {"encoder": jnp.ones(2), "head": jnp.ones(2)}
    >>> sgd = bp.optim.frozen(bp.optim.sgd)(0.5, frozen="encoder")
    >>> updates, _ = sgd.update(params, sgd.init(params), params)
    >>> float(updates["encoder"][0]), float(updates["head"][0])
    (0.0, -0.5)

    Raises:
        ValueError: a pattern matches nothing, all is frozen, or the optimizer searches along a line.
    """

    def of_the_others(learning_rate: ArrayLike, *, frozen: str = "", **others: Any):
        if not frozen:
            return optimizer(learning_rate, **others)
        if optimizer.__name__ in ALONG_A_LINE:
            raise ValueError(
                f"frozen={frozen}: {optimizer.__name__} searches along a line through all weights"
            )

        def is_frozen(paths: Iterable[str]) -> dict[str, bool]:
            still = selected(frozen, paths, "frozen")
            of_path = {path: path in still for path in paths}
            if all(of_path.values()):
                raise ValueError(f"frozen={frozen} leaves no parameter to train")
            return of_path

        return partitioned(
            is_frozen, lambda still: optax.set_to_zero() if still else optimizer(learning_rate, **others)
        )

    return taking({"frozen": ""}, optimizer, of_the_others)


def partitioned(
    groups_of: Callable[[dict[str, PyTree]], Mapping[str, Hashable]],
    of_group: Callable[[Any], optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
    """A transformation for each group of weights, by their paths.

    Args:
        groups_of: from all weights (or gradients) by their paths to the group of each path; what belongs
            to another partition around this one is an `optax.MaskedNode`.
        of_group: from a group to its transformation.
    """

    def partition(tree: PyTree) -> optax.GradientTransformationExtraArgs:
        # Of a tree that is itself a group, the others' places count too: patterns are of the whole model.
        everything = jax.tree.leaves_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode))
        of_path = groups_of({path_of(path): leaf for path, leaf in everything})
        labels = jax.tree.map_with_path(lambda path, _: repr(of_path[path_of(path)]), tree)
        transformations = {repr(group): of_group(group) for group in dict.fromkeys(of_path.values())}
        return optax.partition(transformations, labels)

    def init(params: PyTree) -> optax.OptState:
        return partition(params).init(params)

    def update(updates: PyTree, state: optax.OptState, params: PyTree = None, **extra: Any):
        return partition(updates).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)
