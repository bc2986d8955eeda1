"""What becomes an equation while a function is traced, and what is known already.

Only what depends on the function's arguments becomes an equation. Everything else is computed where the trace
began, as `jax.grad` does it: outside of `jit` its value is there, so it may bound a loop or decide a branch,
and a function that closes over it, such as a user's `custom_vjp`, still holds it when the trace is over.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from jax.extend import source_info_util
from jax.extend.core import set_current_trace, take_current_trace

from bpresearch.chainrule.primitives import Equation, NoPrimitiveRuleError, Value


class Staging(jax.core.Trace):
    """Sends an operation to the trace of the program where an operand is of it, else to the one around.

    Args:
        program: the trace that collects equations.
        around: the trace in which tracing began.
    """

    def __init__(self, program: jax.core.Trace, around: jax.core.Trace):
        super().__init__()
        self.program, self.around = program, around
        self.requires_low = program.requires_low

    def chosen(self, operands: Sequence[Value]) -> jax.core.Trace:
        """The trace that an operation on these operands belongs to."""
        staged = any(isinstance(x, jax.core.Tracer) and x._trace is self.program for x in operands)
        return self.program if staged else self.around

    def process_primitive(self, primitive, operands, params, /):
        makes_reference = primitive.name in ("new_ref", "empty_ref")  # which may be written to later on
        with set_current_trace(self.program if makes_reference else self.chosen(operands)):
            return primitive.bind(*operands, **params)

    def process_call(self, primitive, f, operands, params, /):
        return self.process_primitive(primitive, operands, {**params, "subfuns": (f,)})

    def process_shard_map(self, primitive, f, operands, /, **params):
        return self.process_call(primitive, f, operands, params)

    def process_custom_jvp_call(self, primitive, f, jvp, operands, /, **params):
        return self._process_custom(primitive, (f, jvp), operands, params)

    def process_custom_vjp_call(self, primitive, f, fwd, bwd, operands, /, **params):
        return self._process_custom(primitive, (f, fwd, bwd), operands, params)

    def _process_custom(self, primitive, functions, operands, params):
        try:
            return self.process_primitive(primitive, operands, {**params, "subfuns": functions})
        except jax.errors.UnexpectedTracerError as error:  # known operands, but a function that closes over
            equation = Equation(primitive, params, tuple(operands), source=source_info_util.current())
            raise NoPrimitiveRuleError(closure(equation)) from error

    def stage_value(self, value):
        return self.chosen([value]).stage_value(value)


def closure(e: Equation) -> str:
    """What to say where a function with a derivative by its author closes over what is differentiated."""
    return f"{e.name} at {e.place} closes over a value that is traced with it; make it an argument"


@contextmanager
def staging(around: jax.core.Trace) -> Iterator[None]:
    """Context, inside of a trace, in which only what depends on the trace's arguments becomes an equation."""
    with set_current_trace(Staging(current_trace(), around)):
        yield


def current_trace() -> Any:
    """The trace that operations go to now."""
    with take_current_trace() as trace:
        return trace
