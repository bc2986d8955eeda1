"""Notes that a watch takes on the way back, out of loops and branches as well.

A note is the worst that was seen of something: an error, a number, and what goes with it, a tree of arrays.
The body of a loop is traced once and run many times, so notes travel as values: of all steps the worst is
kept.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bpresearch.chainrule.primitives import zeros

Notes: TypeAlias = dict[Hashable, tuple[Any, Any]]
"""Error and what goes with it, by what they are about."""

_notes: ContextVar[Notes | None] = ContextVar("notes", default=None)


@contextmanager
def collecting() -> Iterator[Notes]:
    """Context whose notes are in the dict that it gives."""
    notes: Notes = {}
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def note(about: Hashable, error: jax.Array, what: PyTree) -> None:
    """Notes an error, a number of at least zero, and what goes with it; nothing where nobody collects."""
    notes = _notes.get()
    if notes is not None:
        mine = (jnp.where(jnp.isnan(error), jnp.inf, error), what)
        notes[about] = worse(notes[about], mine) if about in notes else mine


def note_all(notes: Notes) -> None:
    """Notes what was collected elsewhere."""
    for about, (error, what) in notes.items():
        note(about, error, what)


def worse(one: tuple[jax.Array, PyTree], other: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
    """The note with the larger error."""
    return jax.tree.map(lambda a, b: jnp.where(one[0] >= other[0], a, b), one, other)


def none_yet(shapes: Notes) -> Notes:
    """Notes that any other is worse than."""

    return {about: (zeros(error) - 1, jax.tree.map(zeros, what)) for about, (error, what) in shapes.items()}
