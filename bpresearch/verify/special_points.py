"""Points at which derivatives go wrong: zeros, ties, whole numbers, saturated or masked ones, odd shapes."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpresearch.verify.report import Report

KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zeros": np.zeros_like,
    "ties": lambda x: np.sign(x) * np.where(np.abs(x) > np.median(np.abs(x)), 1, 0.5),
    "whole numbers": lambda x: np.round(3 * x / max(float(np.max(np.abs(x), initial=0)), 1e-30)),
    "saturated values": lambda x: 50 * np.sign(x) + x,
    "masked values": lambda x: np.where(np.arange(x.size).reshape(x.shape) % 3 == 0, -1e9, x),
}
"""How an argument is changed."""


def of(points: str, args: tuple[PyTree, ...]) -> Iterator[tuple[str, tuple[PyTree, ...]]]:
    """The arguments at each special point, with its name.

    Raises:
        ValueError: `points` is not "adversarial".
    """
    if points != "adversarial":
        raise ValueError(f"points {points!r} is not 'adversarial'")
    for kind, change in KINDS.items():
        yield kind, jax.tree.map(lambda leaf, change=change: _changed(leaf, change), args)
    lengths = {np.shape(leaf)[0] for leaf in jax.tree.leaves(args) if np.ndim(leaf) > 1}
    if len(lengths) == 1 and (length := lengths.pop()) > 2:
        cut = length - 1
        yield (
            f"{cut} rows",
            jax.tree.map(lambda leaf: leaf[:cut] if np.shape(leaf)[:1] == (length,) else leaf, args),
        )


def _changed(leaf: PyTree, change: Callable[[np.ndarray], np.ndarray]) -> PyTree:
    if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    wide = np.asarray(leaf, np.float64)
    return change(wide).astype(leaf.dtype) if wide.ndim else np.asarray(change(wide), leaf.dtype)


def joined(report: Report, where: str, special: Report | str) -> Report:
    """The report with what was found at a special point; what is undecided there is a note."""
    if isinstance(special, str):
        return replace(report, notes=(*report.notes, f"Not asked: {where} ({special})."))
    rows = tuple(
        replace(row, path=f"{row.path} at {where}") for row in special.rows if row.passed is not None
    )
    hints = tuple(f"at {where}, {hint}" for hint in special.hints)
    notes = report.notes
    if special.passed is None:
        notes = (*notes, f"Undecided at {where}: {special.summary()}")
    return replace(report, rows=(*report.rows, *rows), notes=notes, hints=(*report.hints, *hints))
