"""The command `bpresearch`, and its subcommands as scripts.

Each subcommand is a module of this room with a docstring, `define_flags()`, `main() -> exit code` and, where
more flags follow from the values of these, `options()`.
"""

import functools
import gc
import sys
from importlib import import_module
from typing import NoReturn

from bpresearch.imports import MissingExtraError, missing

COMMANDS = {
    "compare": "train every combination of optimizers, schedules and learning rates, and compare them",
    "verify": "is the hand-written gradient of a model right, and if not, which rule is wrong?",
    "explain": "why is the gradient of this weight what it is?",
    "report": "the report of a sweep, or of several: pages and pictures",
    "export": "a sweep's results for TensorBoard, as Parquet or CSV",
    "merge": "join the parts of a sweep that were trained apart",
    "coverage": "what of JAX, Flax and Optax has a hand-written rule?",
}
"""The subcommands, and what each is for."""


def main() -> NoReturn:
    """`bpresearch NAME [flags...]`."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("", "help", "-h", "--help"):
        print(usage())
        sys.exit(0 if name else 2)
    if name not in COMMANDS:
        from bpresearch.command import start

        try:
            start.choose("command", name, COMMANDS)
        except ValueError as error:
            start.fail(str(error).removeprefix("--command="))
    sys.argv = [f"{sys.argv[0]} {name}", *sys.argv[2:]]
    run(name)


def usage() -> str:
    """What `bpresearch --help` prints."""
    width = max(map(len, COMMANDS))
    lines = ["bpresearch COMMAND [flags...], and bpresearch COMMAND --help for its flags:", ""]
    return "\n".join([*lines, *(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())])


def run(name: str) -> NoReturn:
    """Runs a subcommand with the flags in `sys.argv`; what is not installed is one line and exit code 2."""
    gc.disable()  # until flags are read: to search the modules for garbage takes a fifth of their loading
    from bpresearch.command import start

    try:
        command = import_module(f"bpresearch.command.{name}")
        command.define_flags()
    except ImportError as error:
        reason = missing(error, f"the command {name}") if isinstance(error, ModuleNotFoundError) else error
        if not isinstance(reason, MissingExtraError):
            raise
        start.fail(str(reason))

    @functools.wraps(command.main)
    def guarded() -> int | None:
        try:
            return command.main()
        except ModuleNotFoundError as error:  # of what only some flags need
            raise missing(error, f"the command {name}") from error

    options = [command.options] if hasattr(command, "options") else []  # flags that follow from others
    start.run(guarded, *options)


if __name__ == "__main__":
    main()
