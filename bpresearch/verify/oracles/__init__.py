"""Oracles: independent sources of a derivative. Each file has one, and no opinion: `verdict.py` decides.

An oracle is a program that computes, at the point of a question, the derivative in question and its own, side
by side. That both are one program has a use: random rounding of it measures the spread of each. It has a
`name`, and either of these, which raise `NotAskedError` where it cannot be asked a question:

* `program(question)` is `(point, others, y_bars, seed) -> answer`, to be compiled;
* `body(question)` is what is computed in each direction: oracles that have one share a loop, which is
  compiled once for all.

And `estimates(question, answer, measures)`: what the answer says of each leaf.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from bpresearch.verify.directions import along
from bpresearch.verify.question import NotAskedError, Question, first_line
from bpresearch.verify.spread import Spread, Spreads
from bpresearch.verify.verdict import Measure

Answer = dict[str, Any]
"""What a program computes: `found` and `values`, lists of arrays that should be equal, and more."""


Body = Callable[[PyTree, PyTree, PyTree], Callable[[PyTree, PyTree, PyTree], Answer]]
"""`(point, others, y_bars) -> (d, leaf, number) -> numbers`: of an oracle that sees directions one by one."""


def in_each_direction(question: Question, bodies: dict[str, Body]) -> Callable[..., dict[str, Answer]]:
    """A program with one loop over the directions for several oracles."""

    def program(point, others, y_bars, seed):
        at = {name: body(point, others, y_bars) for name, body in bodies.items()}

        def derivatives(d, leaf, number):
            return {name: of(d, leaf, number) for name, of in at.items()}

        answers = along(question.directions, point, seed, derivatives)
        return {
            name: {key: [values] if key in ("found", "values") else values for key, values in sides.items()}
            for name, sides in answers.items()
        }

    return program


def program_of(oracle: Any, question: Question) -> Callable[..., Answer]:
    """The program of one oracle alone."""
    if not hasattr(oracle, "body"):
        return oracle.program(question)
    program = in_each_direction(question, {oracle.name: oracle.body(question)})
    return lambda *arguments: program(*arguments)[oracle.name]


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
                sides = self.program(*arguments)
                return [*sides["found"], *sides["values"]]

            spreads = programs.setdefault(key, Spreads(pairs))
            spread = spreads(self.question.arguments, rounds, self.question.seed)
            self._spreads[rounds] = spread, len(spread.sizes) // 2
        return self._spreads[rounds]


def ask(
    question: Question, oracles: Sequence[Any], key: Hashable = (), fused: bool = True
) -> tuple[dict[str, tuple[Answer, Measures]], list[str]]:
    """The answers of several oracles, by one program; and a note for each that cannot be asked.

    Args:
        question: what is asked.
        oracles: whom.
        key: what tells this program from others of the same derivative.
        fused: whether XLA may compute the same number again with another rounding.
    """
    derivative, arguments = question.derivative, question.arguments
    programs: dict[str, Callable[..., Answer]] = {}
    notes: list[str] = []
    known = derivative.programs.get(("programs", key))
    if known is None:
        for oracle in oracles:
            try:
                program = program_of(oracle, question)
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
        bodies = {o.name: o.body(question) for o in oracles if o.name in programs and hasattr(o, "body")}
        answers = {name: program(*arguments) for name, program in programs.items() if name not in bodies}
        return answers | (in_each_direction(question, bodies)(*arguments) if bodies else {})

    try:
        answers = jax.device_get(derivative.program(("answers", key), lambda: together, fused)(*arguments))
    except Exception:  # JAX can trace one of them and not compile it: then each is asked by itself
        answers = {}
        for name, program in list(programs.items()):
            try:
                alone = derivative.program(("answers", key, name), _making(program), fused)
                answers[name] = jax.device_get(alone(*arguments))
            except Exception as error:
                notes.append(f"Not asked: {name} ({first_line(error)}).")
                del programs[name]
        derivative.programs.pop((("answers", key), fused), None)
    measures = {name: Measures(question, name, program) for name, program in programs.items()}
    return {name: (answers[name], measures[name]) for name in programs}, list(notes)


def _making(program: Callable[..., Answer]) -> Callable[[], Callable[..., Answer]]:
    return lambda: program
