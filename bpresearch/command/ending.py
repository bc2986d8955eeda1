"""How a process that trains with others ends when one of them is lost: within a minute, in one line.

JAX's runtime aborts a process that loses another, with a stack trace from a thread of its own, and lets a
process that has failed wait minutes for the others to end too.
"""

import ctypes
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable

import jax

LOST = "another process of the sweep has ended; what is saved is whole, the same command goes on from there"
SECONDS_FOR_THE_OTHERS = 5.0
"""How long a process that fails waits for others that fail too, and may still need what it has sent."""

_kept: list[object] = []  # what the handler of a signal needs lives as long as the process


def tell_of_lost_processes(program: str) -> None:
    """From now on, where JAX's runtime aborts because another process is lost, this one says so and exits
    with 2.

    What the runtime itself writes on stderr is held back; it is shown if the process aborts for another
    reason. Python's `sys.stderr` stays what it was.
    """
    shown, held = os.dup(2), tempfile.TemporaryFile()  # noqa: SIM115
    sys.stderr = open(shown, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.dup2(held.fileno(), 2)

    def tell() -> None:
        text = os.pread(held.fileno(), 2**16, 0)
        lost = b"distributed service" in text or b"coordination" in text.lower()
        os.write(shown, f"{program}: {LOST}\n".encode() if lost else text)
        os._exit(2 if lost else 128 + signal.SIGABRT)

    _at_abort(tell)
    _kept.append(held)


def _at_abort(end: Callable[[], None]) -> None:
    """Calls this where a thread of the runtime aborts. Python's own handlers run later, in the main thread,
    and there is no later."""

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(_: int) -> None:
        end()

    ctypes.CDLL(None).signal(signal.SIGABRT, aborted)
    _kept.append(aborted)


def of_a_lost_process(error: BaseException) -> bool:
    """Whether an error is of the communication between processes (of Gloo they are ValueErrors)."""
    return jax.distributed.is_initialized() and (
        isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
    )


def leave(code: int) -> None:
    """Ends a process of several with this exit code, although the others may not end with it.

    If they do, all leave together, so that each has said what it had to say.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    _at_abort(lambda: os._exit(code))
    parting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    parting.start()
    parting.join(SECONDS_FOR_THE_OTHERS)
    os._exit(code)
