"""Oracles: independent sources of a derivative. Each file has one, and no opinion: `verdict.py` decides.

An oracle is a program that computes, at the point of a question, the derivative in question and its own, side
by side. That both are one program has a use: random rounding of it measures the spread of each.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from bpresearch.verify.question import NotAskedError, Question, first_line
from bpresearch.verify.spread import Spread, Spreads
from bpresearch.verify.verdict import Estimates, Measure

Answer = dict[str, Any]
"""What a program computes: `found` and `values`, lists of arrays that should be equal, and more."""


@runtime_checkable
class Oracle(Protocol):
    """A source of a derivative."""

    name: str

    def program(self, question: Question) -> Callable[..., Answer]:
        """`(point, others, y_bars, seed) -> answer`, to be compiled.

        Raises:
            NotAskedError: this oracle cannot be asked this question.
        """

    def estimates(self, question: Question, answer: Answer, measures: "Measures") -> Iterable[Estimates]:
        """What the answer says of each leaf."""


@dataclass(eq=False)
class Measures:
    """How far rounding moves what an oracle's program computes; measured when it is first asked for."""

    question: Question
    name: str
    program: Callable[..., Answer]

    def __post_init__(self) -> None:
        self._spreads: dict[int, tuple[Spread, int]] = {}

    def of(self, index: int) -> Measure:
        """The spread of the difference of the `index`-th arrays among `found` and `values`."""

        def measure(rounds: int) -> tuple[np.ndarray, int]:
            spread, count = self._spread(rounds)
            both = np.hypot(spread.sizes[index], spread.sizes[count + index])
            return np.asarray(both), spread.freedom

        return measure

    def _spread(self, rounds: int) -> tuple[Spread, int]:
        if rounds not in self._spreads:
            programs, key = self.question.derivative.programs, ("spread", self.name)

            def pairs(*arguments):
                answer = self.program(*arguments)
                return [*answer["found"], *answer["values"]]

            spreads = programs.setdefault(key, Spreads(pairs))
            spread = spreads(self.question.arguments, rounds, self.question.seed)
            self._spreads[rounds] = spread, len(spread.sizes) // 2
        return self._spreads[rounds]


def ask(
    question: Question, oracles: Iterable[Oracle], key: Any = ()
) -> tuple[dict[str, tuple[Answer, Measures]], list[str]]:
    """The answers of several oracles, by one program; and a note for each that cannot be asked.

    Args:
        question: what is asked.
        oracles: whom.
        key: what tells this program from others of the same derivative.
    """
    derivative, arguments = question.derivative, question.arguments
    programs: dict[str, Callable[..., Answer]] = {}
    notes: list[str] = []
    known = derivative.programs.get(("programs", key))
    if known is None:
        for oracle in oracles:
            try:
                program = oracle.program(question)
                jax.eval_shape(program, *arguments)
            except NotAskedError as error:
                notes.append(f"Not asked: {oracle.name} ({error}).")
            except Exception as error:  # whatever JAX has against this function
                notes.append(f"Not asked: {oracle.name} ({first_line(error)}).")
            else:
                programs[oracle.name] = program
        derivative.programs["programs", key] = known = programs, notes
    programs, notes = known

    def together(*arguments):
        return {name: program(*arguments) for name, program in programs.items()}

    try:
        answers = jax.device_get(derivative.program(("answers", key), lambda: together)(*arguments))
    except Exception:  # JAX can trace one of them and not compile it: then each is asked by itself
        answers = {}
        for name, program in list(programs.items()):
            try:
                answers[name] = jax.device_get(
                    derivative.program(("answers", key, name), lambda p=program: p)(*arguments)
                )
            except Exception as error:
                notes.append(f"Not asked: {name} ({first_line(error)}).")
                del programs[name]
        derivative.programs.pop(("answers", key), None)
    measures = {name: Measures(question, name, program) for name, program in programs.items()}
    return {name: (answers[name], measures[name]) for name in programs}, list(notes)
